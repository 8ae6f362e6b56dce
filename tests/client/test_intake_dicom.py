"""DICOM: shades as the standard says, against pydicom's own arithmetic; the header stays behind."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicomanonymizer import simpledicomanonymizer
from pydicom.pixels.processing import apply_windowing

from client.vault.dicom import DicomPictures, _clean, is_dicom, read_dicom
from client.vault.dicom_window import window
from client.vault.intake_rules import DicomRules, FileRules
from client.vault.outcomes import Reason, Refused
from client.vault.quiet import quiet_decoders
from tests.client.dicom_objects import NAME, PATIENT, dicom_bytes, stored_values

SAMPLES = Path(pydicom.__file__).parent / "data/test_files"


def pictures(data: bytes, **rules: Any) -> DicomPictures:
    found = read_dicom(data, FileRules(), DicomRules(**rules))
    assert isinstance(found, DicomPictures), found
    return found


def refused(data: bytes, **rules: Any) -> Reason:
    found = read_dicom(data, FileRules(), DicomRules(**rules))
    assert isinstance(found, Refused)
    return found.reason


def test_a_window_is_applied_after_the_rescale() -> None:
    found = pictures(dicom_bytes(1))
    hounsfield = stored_values(1).astype(float) - 1024
    expected = np.clip((hounsfield - 39.5) / 399 + 0.5, 0, 1) * 255
    assert np.abs(found.frames[0][:, :, 0] - expected).max() <= 0.5
    assert (found.frames[0] == found.frames[0][:, :, :1]).all()


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_agree_with_pydicom(function: str) -> None:
    header = pydicom.Dataset()
    header.WindowCenter, header.WindowWidth, header.VOILUTFunction = 100, 50, function
    header.PhotometricInterpretation, header.BitsStored, header.PixelRepresentation = "MONOCHROME2", 8, 0
    values = np.arange(256, dtype=np.uint8)
    ours = window(values.astype(float), 100, 50, function) * 255
    np.testing.assert_allclose(ours, apply_windowing(values, header), atol=1e-6)


@pytest.mark.parametrize(("centre", "width", "function"), [(1, 0, "LINEAR"), (1, -5, "SIGMOID"), (1, 9, "CUBIC")])
def test_windows_that_the_standard_forbids(centre: float, width: float, function: str) -> None:
    with pytest.raises(ValueError, match="window"):
        window(np.zeros(3), centre, width, function)


def test_the_narrowest_window_is_a_step() -> None:
    assert list(window(np.array([0.0, 1.0, 2.0]), 1, 1, "LINEAR")) == [0, 1, 1]


def test_monochrome1_is_turned_round() -> None:
    plain, turned = (
        pictures(dicom_bytes(2, PhotometricInterpretation=name)) for name in ("MONOCHROME2", "MONOCHROME1")
    )
    np.testing.assert_array_equal(turned.frames[0], 255 - plain.frames[0])


def test_without_a_window_padding_does_not_count() -> None:
    values = stored_values(3).copy()
    values[0, 0] = 4095
    free = {"WindowCenter": None, "WindowWidth": None, "PixelData": values.tobytes()}
    padded = pictures(dicom_bytes(3, PixelPaddingValue=4095, **free)).frames[0]
    plain = pictures(dicom_bytes(3, WindowCenter=None, WindowWidth=None)).frames[0]
    assert (padded[1:] == plain[1:]).mean() > 0.98
    assert padded[0, 0, 0] == 0


def test_every_frame_is_a_picture() -> None:
    found = pictures(dicom_bytes(4, frames=3))
    expected = np.clip((stored_values(4, 3).astype(float) - 1024 - 39.5) / 399 + 0.5, 0, 1) * 255
    assert np.abs(np.stack(found.frames)[..., 0] - expected).max() <= 0.5
    assert refused(dicom_bytes(4, frames=3), frames="refuse") is Reason.SEVERAL_FRAMES
    assert refused(dicom_bytes(4, frames=3), max_frames=2) is Reason.SEVERAL_FRAMES


def test_only_coded_words_make_a_caption() -> None:
    assert pictures(dicom_bytes(5, Laterality="L", ViewPosition="AP")).caption == "ct chest l ap"
    assert pictures(dicom_bytes(5, caption="none"), caption="none").caption == ""
    assert pictures(dicom_bytes(5, BodyPartExamined="C_SPINE")).caption == "ct cspine"


@pytest.mark.parametrize("name", ["Modality", "BodyPartExamined", "Laterality", "ViewPosition"])
@pytest.mark.parametrize("text", ["Doe, Jane", "DOE JANE", "DOE_JANE 77", "CHEST DOE", "CT\\DOE", "DOE"])
def test_what_somebody_typed_into_a_coded_element_is_left_out(name: str, text: str) -> None:
    found = pictures(dicom_bytes(5, **{name: text}))
    assert set(found.caption.split()) <= {"ct", "chest"}


def test_text_in_unused_bits_of_the_pixels_is_not_shown() -> None:
    """Old objects keep an overlay, such as the patient's name, in the bits above those that are stored."""
    plain, overlay = stored_values(5), np.zeros((64, 64), np.uint16)
    overlay[20:30, 8:56:2] = 1
    for bit in (12, 15):
        for elements in ({}, {"WindowCenter": None, "WindowWidth": None}):
            marked = pictures(dicom_bytes(5, PixelData=(plain | overlay << bit).tobytes(), **elements))
            assert np.array_equal(marked.frames[0], pictures(dicom_bytes(5, **elements)).frames[0])


def test_the_patient_is_named_with_the_issuer() -> None:
    assert pictures(dicom_bytes(6)).patient == PATIENT
    assert pictures(dicom_bytes(6, IssuerOfPatientID="WARD")).patient == f"WARD/{PATIENT}"


@pytest.mark.parametrize("element", [{"BurnedInAnnotation": "YES"}, {"ConversionType": "SD"}])
def test_objects_that_say_they_show_text(element: dict[str, str]) -> None:
    assert pictures(dicom_bytes(7, **element)).claims_text
    assert not pictures(dicom_bytes(7, BurnedInAnnotation="NO")).claims_text


def test_the_profile_empties_the_header() -> None:
    """The profile's library, seen through the parser: what it leaves is what the windowing reads."""
    header = pydicom.dcmread(io.BytesIO(dicom_bytes(8)))
    assert _clean(header)
    left = str(header)
    for canary in (NAME, PATIENT, "Canary", "ACC-", "19700102"):
        assert canary not in left
    assert [each for each in header.iterall() if each.tag.is_private] == []
    assert header.Modality == "CT"
    assert not simpledicomanonymizer.dictionary


def test_what_the_profile_cannot_clean_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise NotImplementedError("Not anonymized. VR OW not yet implemented.")

    monkeypatch.setattr(simpledicomanonymizer, "anonymize_dataset", unknown)
    assert refused(dicom_bytes(8)) is Reason.DICOM_PROFILE


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.dcm")), ids=lambda path: path.name)
def test_the_parsers_own_samples_are_shown_or_refused(
    path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    with quiet_decoders():
        found = read_dicom(path.read_bytes(), FileRules(min_side=1), DicomRules())
    if isinstance(found, DicomPictures):
        assert all(frame.dtype == np.uint8 and frame.shape[2] == 3 for frame in found.frames)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("MR_small_RLE.dcm", "MR_small.dcm"),
        ("MR_small_implicit.dcm", "MR_small.dcm"),
        ("MR_small_bigendian.dcm", "MR_small.dcm"),
        ("MR_small_jp2klossless.dcm", "MR_small.dcm"),
    ],
)
def test_lossless_compression_makes_no_difference(name: str, twin: str) -> None:
    one, other = (pictures((SAMPLES / each).read_bytes()).frames[0] for each in (name, twin))
    np.testing.assert_array_equal(one, other)


def test_compression_that_nothing_here_decodes() -> None:
    assert refused(dicom_bytes(9, syntax="1.2.840.10008.1.2.4.100")) is Reason.TRANSFER_SYNTAX
    assert refused(dicom_bytes(9, syntax="1.2.3.4")) is Reason.TRANSFER_SYNTAX


def test_colours_come_through() -> None:
    """Colour bars of which pydicom's README says what is where."""
    found = pictures((SAMPLES / "SC_rgb_rle.dcm").read_bytes()).frames[0]
    assert tuple(found[5, 50]) == (255, 0, 0)
    assert tuple(found[25, 50]) == (0, 255, 0)
    assert tuple(found[95, 50]) == (255, 255, 255)


def test_magic() -> None:
    assert is_dicom(dicom_bytes(10))
    assert not is_dicom(b"DICM")
