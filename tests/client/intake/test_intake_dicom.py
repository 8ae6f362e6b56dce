"""DICOM: shades as the standard says, against pydicom's own arithmetic; the header stays behind."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pydicom
import pytest
from dicomanonymizer import simpledicomanonymizer
from pydicom.pixels.processing import apply_windowing
from pydicom.sequence import Sequence

from client.intake.deidentify import CleanFile, clean_file, quiet_decoders
from client.intake.dicom import CODED, DicomPictures, _clean, is_dicom, read_dicom, shades, window
from client.intake.outcomes import Reason, Refused
from client.intake.pictures import is_bare_png
from client.intake.rules import DicomRules, FileRules, IntakeRules
from tests.client.bad_inputs import picture
from tests.client.dicom_objects import NAME, PATIENT, dicom_bytes, stored_values
from tests.client.intakes import Site

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


@pytest.mark.parametrize(
    ("centre", "width", "function"),
    [(1, 0.5, "LINEAR"), (1, np.nan, "SIGMOID"), (1, 0, "LINEAR"), (1, -5, "SIGMOID"), (1, 9, "CUBIC")],
)
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


def groups(**elements: float) -> Sequence:
    """A functional group's item, with a window, a rescale or both."""
    item = pydicom.Dataset()
    for name, keys in (
        ("FrameVOILUTSequence", ("WindowCenter", "WindowWidth", "VOILUTFunction")),
        ("PixelValueTransformationSequence", ("RescaleSlope", "RescaleIntercept")),
    ):
        inner = pydicom.Dataset()
        for key in elements.keys() & {*keys}:
            setattr(inner, key, elements[key])
        if len(inner):
            setattr(item, name, Sequence([inner]))
    return Sequence([item])


def test_functional_groups_rule_their_frames() -> None:
    """The frame's own group before the shared one, and that before the object's top level."""
    shared = groups(WindowCenter=1000, WindowWidth=801, RescaleSlope=2, RescaleIntercept=-1000)
    own = [
        *groups(WindowCenter=500, WindowWidth=1001),
        *groups(RescaleSlope=1, RescaleIntercept=0),
    ]
    data = dicom_bytes(
        4, frames=3, SharedFunctionalGroupsSequence=shared, PerFrameFunctionalGroupsSequence=Sequence(own)
    )
    stored = stored_values(4, 3).astype(float)
    expected = [
        (stored[0] * 2 - 1000 - 499.5) / 1000 + 0.5,
        (stored[1] - 999.5) / 800 + 0.5,
        (stored[2] * 2 - 1000 - 999.5) / 800 + 0.5,
    ]
    for frame, shade in zip(pictures(data).frames, expected, strict=True):
        assert np.abs(frame[:, :, 0] - np.clip(shade, 0, 1) * 255).max() <= 0.5


def test_frames_that_differ_by_their_groups_alone_differ() -> None:
    values = np.stack([stored_values(4)] * 2)
    own = [*groups(WindowCenter=1000, WindowWidth=400), *groups(WindowCenter=1200, WindowWidth=900)]
    free = {"WindowCenter": None, "WindowWidth": None, "RescaleSlope": None, "RescaleIntercept": None}
    data = dicom_bytes(4, frames=2, PixelData=values.tobytes(), PerFrameFunctionalGroupsSequence=Sequence(own), **free)
    first, second = pictures(data).frames
    assert np.abs(first.astype(int) - second).max() > 20


@pytest.mark.parametrize("function", ["", None, "linear", " LINEAR "])
def test_a_voi_function_that_is_empty_or_in_small_letters_is_the_linear_one(function: str | None) -> None:
    odd, plain = (pictures(dicom_bytes(1, **each)) for each in ({"VOILUTFunction": function}, {}))
    np.testing.assert_array_equal(odd.frames[0], plain.frames[0])


@pytest.mark.parametrize(
    "odd",
    [
        {"WindowCenter": "0", "WindowWidth": "0"},
        {"WindowCenter": "2000", "WindowWidth": "-4000"},
        {"WindowCenter": "2000", "WindowWidth": "0.5"},
        {"WindowCenter": "40", "WindowWidth": ""},
        {"WindowWidth": None},
        {"VOILUTFunction": "CUBIC"},
    ],
    ids=str,
)
def test_a_window_that_the_standard_forbids_counts_as_none(odd: dict[str, Any]) -> None:
    found = pictures(dicom_bytes(1, **odd)).frames[0]
    np.testing.assert_array_equal(found, pictures(dicom_bytes(1, WindowCenter=None, WindowWidth=None)).frames[0])


def test_of_several_windows_the_first_that_is_allowed_counts() -> None:
    several = pictures(dicom_bytes(1, WindowCenter=[0, 40, 300], WindowWidth=[0, 400, 1500]))
    np.testing.assert_array_equal(several.frames[0], pictures(dicom_bytes(1)).frames[0])


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("window", [{}, {"WindowCenter": None, "WindowWidth": None}], ids=["window", "none"])
@pytest.mark.parametrize("padding", [4095, 0])
def test_padding_is_black(photometric: str, window: dict[str, None], padding: int) -> None:
    values = stored_values(3).copy()
    values[:10] = padding
    elements = {"PhotometricInterpretation": photometric, "PixelPaddingValue": padding, **window}
    found = pictures(dicom_bytes(3, PixelData=values.tobytes(), **elements)).frames[0]
    assert not found[:10].any()
    assert found[10:].max() > 200


def test_a_range_of_padding_may_be_written_either_way_round() -> None:
    values = stored_values(3).copy()
    values[:5], values[5:10] = 4000, 4090
    for first, last in ((4000, 4095), (4095, 4000)):
        elements = {"PixelPaddingValue": first, "PixelPaddingRangeLimit": last, "PixelData": values.tobytes()}
        assert not pictures(dicom_bytes(3, PhotometricInterpretation="MONOCHROME1", **elements)).frames[0][:10].any()


def test_padding_may_be_the_bits_of_a_signed_value() -> None:
    values = stored_values(3).astype(np.int16)
    values[:10] = -2000
    elements = {"PixelRepresentation": 1, "BitsStored": 16, "HighBit": 15, "PixelData": values.tobytes()}
    header = pydicom.dcmread(io.BytesIO(dicom_bytes(3, PhotometricInterpretation="MONOCHROME1", **elements)))
    header.add_new("PixelPaddingValue", "US", 2**16 - 2000)
    assert not shades(values, header)[:10].any()


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_pixels_of_floating_point_are_spread_over_their_range(kind: type) -> None:
    values = (stored_values(3) / 1e6).astype(kind)
    values[0] = np.finfo(kind).min
    name = "FloatPixelData" if kind is np.float32 else "DoubleFloatPixelData"
    padding = name.replace("Data", "PaddingValue")
    free = {"WindowCenter": None, "WindowWidth": None, "RescaleSlope": None, "RescaleIntercept": None}
    elements = {name: values.tobytes(), padding: float(np.finfo(kind).min), "BitsAllocated": 8 * values.itemsize}
    found = pictures(dicom_bytes(3, pixels=False, **elements, **free)).frames[0][:, :, 0]
    expected = (values[1:] - values[1:].min()) / np.ptp(values[1:]) * 255
    assert not found[0].any()
    assert np.abs(found[1:] - expected).max() < 4


def headerless(seed: int, *, implicit: bool, little: bool, **elements: Any) -> bytes:
    """The data set alone, as it goes over the network and as old archives keep it."""
    header = pydicom.dcmread(io.BytesIO(dicom_bytes(seed, **elements)))
    del header.file_meta
    if not little:
        header.PixelData = np.frombuffer(header.PixelData, "<u2").astype(">u2").tobytes()
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, header, implicit_vr=implicit, little_endian=little, enforce_file_format=False)
    data = buffer.getvalue().removeprefix(bytes(128) + b"DICM")
    assert data[128:132] != b"DICM"
    return data


@pytest.mark.parametrize(("implicit", "little"), [(True, True), (False, True), (False, False)])
def test_objects_without_a_file_header_are_read(implicit: bool, little: bool) -> None:  # noqa: FBT001 - parametrized
    found = pictures(headerless(1, implicit=implicit, little=little))
    np.testing.assert_array_equal(found.frames[0], pictures(dicom_bytes(1)).frames[0])
    assert found.patient == PATIENT


@pytest.mark.parametrize("name", ["scan", "scan.ima", "scan.dcm", "scan.img"])
def test_a_file_is_what_its_bytes_say(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(headerless(1, implicit=True, little=True))
    assert isinstance(clean_file(tmp_path / name, IntakeRules(), previews=False), CleanFile)
    (tmp_path / name).write_bytes(picture(1))
    found = clean_file(tmp_path / name, IntakeRules(), previews=False)
    assert isinstance(found, CleanFile)
    assert found.patient is None
    for data in (b"\x08\x00\x05\x00 nothing of the kind", bytes(9000), b"hello"):
        (tmp_path / name).write_bytes(data)
        found = clean_file(tmp_path / name, IntakeRules(), previews=False)
        assert isinstance(found, Refused)
        assert found.reason is Reason.NOT_A_PICTURE


def test_compressed_pixels_without_a_file_header_are_refused_as_such() -> None:
    data = (SAMPLES / "MR_small_RLE.dcm").read_bytes()
    header = pydicom.dcmread(io.BytesIO(data))
    del header.file_meta
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, header, implicit_vr=False, little_endian=True, enforce_file_format=False)
    assert refused(buffer.getvalue().removeprefix(bytes(128) + b"DICM")) is Reason.TRANSFER_SYNTAX


def test_an_object_that_names_nobody_says_so_and_how_to_name_its_patient(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "ward").mkdir(parents=True)
    (folder / "ward/a.dcm").write_bytes(dicom_bytes(1, PatientID=""))
    site = Site.make(tmp_path)
    outcome = site.take(folder).examples[0].outcome
    assert isinstance(outcome, Refused)
    assert outcome.reason is Reason.NO_SUBJECT
    for word in ("PatientID", "subject_id", 'subjects.default = "folder"'):
        assert word in outcome.detail
    assert "other files" not in outcome.detail
    assert site.take(folder, commit=False, rules={"subjects": {"default": "folder"}}).kept == 1
    (folder / "metadata.jsonl").write_text('{"file_name": "ward/a.dcm", "text": "", "subject_id": "p1"}')
    assert site.take(folder, commit=False).kept == 1


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


@pytest.mark.parametrize("path", sorted(SAMPLES.rglob("*.dcm")), ids=lambda path: path.name)
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


SAMPLES_REFUSED = {
    "JPEG-lossy.dcm": Reason.TRANSFER_SYNTAX,  # 12 bits: nothing here decodes it
    "JPGExtended.dcm": Reason.TRANSFER_SYNTAX,
    "JPEG2000-embedded-sequence-delimiter.dcm": Reason.DAMAGED,
    "MR_truncated.dcm": Reason.DAMAGED,
    "badVR.dcm": Reason.DAMAGED,
    "meta_missing_tsyntax.dcm": Reason.DAMAGED,  # pixels, but no element that says how they lie
    "nested_priv_SQ.dcm": Reason.DAMAGED,
    "no_meta.dcm": Reason.NOT_A_PICTURE,  # one element
}
"""Of the parser's samples: what cannot be shown although it is no report or the like."""


def test_everything_that_the_parser_ships_has_its_true_reason() -> None:
    """Whatever a file is called; a picture that is kept holds nothing but pixels."""
    rules = msgspec.convert({"files": {"min_side": 1}}, IntakeRules)
    files = [path for path in sorted(SAMPLES.rglob("*")) if path.is_file() and "TINY_ALPHA/" not in str(path)]
    reasons: dict[str, Reason] = {}
    for path in files:
        found = clean_file(path, rules, previews=False)
        if isinstance(found, Refused):
            reasons[path.name] = found.reason
            continue
        for each in found.pictures:
            assert is_bare_png(each.png)
        assert set(found.caption.split()) <= {word.lower() for _, terms in CODED for word in terms}
    by_force = {path.name: pydicom.dcmread(path, force=True) for path in files if path.name in reasons}
    for name, reason in reasons.items():
        if name.endswith((".txt", ".json", ".dump", ".gz", ".icc")) or name == "README":
            assert reason is Reason.NOT_A_PICTURE
        elif name in SAMPLES_REFUSED:
            assert reason is SAMPLES_REFUSED[name]
        else:
            assert reason is Reason.NO_PIXELS
            assert "PixelData" not in by_force[name]
    assert SAMPLES_REFUSED.keys() <= reasons.keys()
    assert len(files) - len(reasons) > 60


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("MR_small_RLE.dcm", "MR_small.dcm"),
        ("MR_small_implicit.dcm", "MR_small.dcm"),
        ("MR_small_bigendian.dcm", "MR_small.dcm"),
        ("MR_small_jp2klossless.dcm", "MR_small.dcm"),
        ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"),
        ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle.dcm"),  # process 14, selection value 1
    ],
)
def test_lossless_compression_makes_no_difference(name: str, twin: str) -> None:
    one, other = (pictures((SAMPLES / each).read_bytes()).frames[0] for each in (name, twin))
    np.testing.assert_array_equal(one, other)


def test_compression_that_nothing_here_decodes() -> None:
    assert refused(dicom_bytes(9, syntax="1.2.840.10008.1.2.4.100")) is Reason.TRANSFER_SYNTAX
    assert refused(dicom_bytes(9, syntax="1.2.3.4")) is Reason.TRANSFER_SYNTAX


def test_compression_of_which_the_decoder_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = (SAMPLES / "MR_small_jpeg_ls_lossless.dcm").read_bytes()
    monkeypatch.setattr("client.intake.dicom._available", lambda *_: ())
    found = read_dicom(data, FileRules(), DicomRules())
    assert isinstance(found, Refused)
    assert "JPEG-LS" in found.detail
    assert "darkroom[vault]" in found.detail


def test_colours_come_through() -> None:
    """Colour bars of which pydicom's README says what is where."""
    found = pictures((SAMPLES / "SC_rgb_rle.dcm").read_bytes()).frames[0]
    assert tuple(found[5, 50]) == (255, 0, 0)
    assert tuple(found[25, 50]) == (0, 255, 0)
    assert tuple(found[95, 50]) == (255, 255, 255)


def test_magic() -> None:
    assert is_dicom(dicom_bytes(10))
    assert not is_dicom(b"DICM")
