"""Turn a DICOM object into pictures.

The header is first cleaned by the Basic Application Level Confidentiality Profile of PS3.15 (table E.1-1 of
:data:`PROFILE`, by ``dicom-anonymizer``), and everything after that reads the cleaned header. None of it is kept but a
caption of four coded words. Pixels become 8 bits as a viewer would show them: modality rescale, the header's first VOI
window or table, MONOCHROME1 turned round.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from client.vault.dicom_terms import CODED, coded_word
from client.vault.dicom_window import shades
from client.vault.outcomes import Reason, Refused
from client.vault.pictures import check_size
from common.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from client.vault.intake_rules import DicomRules, FileRules

PROFILE: Final = "dicomfields_2026c"
_MAGIC: Final = b"DICM"
_MAGIC_AT: Final = 128
_FROM_FILM_OR_SCREEN: Final = frozenset({"DV", "DF", "SD", "SI"})
"""Conversion types (PS3.3 C.8.6.1) of digitised film, scanned paper and screens: what was written there shows."""
_MISSING: Final = 'DICOM objects need pydicom and dicom-anonymizer: pip install "darkroom[vault]"'


@dataclass(frozen=True, kw_only=True, slots=True)
class DicomPictures:
    """What a DICOM object becomes."""

    frames: tuple[NDArray[np.uint8], ...] = field(repr=False)
    """RGB uint8 [height, width, 3]."""
    patient: str = field(repr=False)
    """PatientID with its issuer, to be made a pseudonym; empty if the object names nobody."""
    caption: str = field(repr=False)
    claims_text: bool
    """Whether the object itself says that it shows text, or comes from film, paper or a screen."""


def is_dicom(data: bytes) -> bool:
    """Whether the file begins as PS3.10 says."""
    return data[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] == _MAGIC


def read_dicom(data: bytes, files: FileRules, rules: DicomRules) -> DicomPictures | Refused:
    """Clean the header and show every frame.

    Raises:
        ConfigError: pydicom or the anonymiser is not installed.

    """
    try:
        return _read(data, files, rules)
    except MemoryError:
        return Refused(Reason.TOO_LARGE, "more pixels than fit into memory")
    except ImportError as error:
        raise ConfigError(_MISSING) from error
    except Exception as error:  # noqa: BLE001 - the parser raises nearly anything on damaged files
        return Refused(Reason.DAMAGED, f"{type(error).__name__} while reading the DICOM object")


def _read(data: bytes, files: FileRules, rules: DicomRules) -> DicomPictures | Refused:
    import pydicom  # noqa: PLC0415 - an extra

    header = pydicom.dcmread(io.BytesIO(data), force=not is_dicom(data))
    if "SOPClassUID" not in header:  # read by force, nearly anything has some elements
        return Refused(Reason.DAMAGED, "no DICOM object")
    patient = _patient(header)
    if not _clean(header):
        return Refused(Reason.DICOM_PROFILE, f"an element that {PROFILE} has no rule for the form of")
    count = _check(header, files, rules)
    if isinstance(count, Refused):
        return count
    frames = tuple(_frame(header, index) for index in range(count))
    return DicomPictures(
        frames=frames, patient=patient, caption=_caption(header, rules), claims_text=_claims_text(header)
    )


def _patient(header: Any) -> str:  # noqa: ANN401 - pydicom's data set
    """Before cleaning. The issuer counts: two hospitals may have given one number to two people."""
    number = str(header.get("PatientID", "") or "").strip()
    issuer = str(header.get("IssuerOfPatientID", "") or "").strip()
    return f"{issuer}/{number}" if number and issuer else number


def _clean(header: Any) -> bool:  # noqa: ANN401 - as above
    """Apply the profile in place; False where it does not know how to clean an element."""
    from dicomanonymizer import simpledicomanonymizer as profile  # noqa: PLC0415 - an extra

    try:
        profile.anonymize_dataset(header, base_rules_gen=lambda: profile.initialize_actions(PROFILE))
    except NotImplementedError:
        return False
    finally:
        profile.dictionary.clear()  # old and new UIDs of everything seen so far
    return True


def _check(header: Any, files: FileRules, rules: DicomRules) -> int | Refused:  # noqa: ANN401, PLR0911 - one check a line
    """Number of frames to show."""
    from pydicom.pixels import get_decoder  # noqa: PLC0415 - an extra

    if "PixelData" not in header:
        return Refused(Reason.NO_PIXELS, "a report, waveform, directory or the like")
    if refused := check_size(int(header.Columns), int(header.Rows), files):
        return refused
    count = int(header.get("NumberOfFrames", 1) or 1)
    if count > 1 and rules.frames == "refuse":
        return Refused(Reason.SEVERAL_FRAMES, f"{count} frames")
    if not 1 <= count <= rules.max_frames:
        return Refused(Reason.SEVERAL_FRAMES, f"{count} frames; at most {rules.max_frames} are allowed")
    if count * int(header.Columns) * int(header.Rows) > 4 * files.max_pixels:
        return Refused(Reason.TOO_LARGE, f"{count} frames have more than {4 * files.max_megapixels} megapixels")
    try:
        syntax = header.file_meta.TransferSyntaxUID
        usable = not syntax.is_compressed or get_decoder(syntax).is_available
    except (AttributeError, NotImplementedError, ValueError):
        return Refused(Reason.TRANSFER_SYNTAX, "no transfer syntax, or one without pictures")
    return count if usable else Refused(Reason.TRANSFER_SYNTAX, str(syntax.name))


def _frame(header: Any, index: int) -> NDArray[np.uint8]:  # noqa: ANN401 - as above
    from pydicom.pixels import pixel_array  # noqa: PLC0415 - an extra

    values = np.asarray(pixel_array(header, index=index))
    grey = shades(values, header)
    return np.repeat(grey[:, :, None], 3, axis=2) if grey.ndim == 2 else np.ascontiguousarray(grey[:, :, :3])


def _caption(header: Any, rules: DicomRules) -> str:  # noqa: ANN401 - as above
    """Words that the standard defines: free text of a header never becomes a caption."""
    if rules.caption == "none":
        return ""
    words = (coded_word(str(header.get(name, "") or ""), terms) for name, terms in CODED)
    return " ".join(filter(None, words))


def _claims_text(header: Any) -> bool:  # noqa: ANN401 - as above
    burned = str(header.get("BurnedInAnnotation", "") or "").strip().upper() == "YES"
    return burned or str(header.get("ConversionType", "") or "").strip().upper() in _FROM_FILM_OR_SCREEN
