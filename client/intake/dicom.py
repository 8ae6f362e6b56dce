"""Turn a DICOM object into pictures.

The header is first cleaned by the Basic Application Level Confidentiality Profile of PS3.15 (table E.1-1 of
:data:`PROFILE`, by ``dicom-anonymizer``), and everything after that reads the cleaned header. None of it is kept but a
caption of four coded words. Pixels become 8 bits as a viewer would show them: modality rescale, the first VOI window or
table, MONOCHROME1 turned round (:mod:`client.intake.dicom_window`).

Objects without the file header of PS3.10 are read too, where the bytes are those of a DICOM data set.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from client.intake.dicom_terms import CODED, coded_word
from client.intake.dicom_window import shades
from client.intake.outcomes import Reason, Refused
from client.intake.pictures import check_size
from common.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from client.intake.rules import DicomRules, FileRules

PROFILE: Final = "dicomfields_2026c"
_MAGIC: Final = b"DICM"
_MAGIC_AT: Final = 128
_FROM_FILM_OR_SCREEN: Final = frozenset({"DV", "DF", "SD", "SI"})
"""Conversion types (PS3.3 C.8.6.1) of digitised film, scanned paper and screens: what was written there shows."""
_FIRST_GROUPS: Final = frozenset({b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08"})
"""What a data set without a file header begins with: group 2 or 8, in either byte order."""
_PIXELS: Final = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_NEEDED: Final = ("Rows", "Columns", "BitsAllocated", "SamplesPerPixel", "PhotometricInterpretation")
_ENCAPSULATED: Final = b"\xfe\xff\x00\xe0"
_PLUGINS: Final = ("pylibjpeg", "pillow", "pyjpegls", "pydicom", "gdcm")
"""Decoders, the one to be preferred first: GDCM, the largest, reads only what no other does."""
_EXTENDED_JPEG: Final = "1.2.840.10008.1.2.4.51"
_VIDEO: Final = "1.2.840.10008.1.2.4.10"
"""Beginning of the transfer syntaxes of MPEG-2, MPEG-4 and HEVC."""
_DECOMPRESS: Final = "save it uncompressed first, e.g. by gdcmconv --raw or dcmdjpeg"
_NO_DICOM: Final = "no DICOM object, though its name says so"
_OTHER_DECODERS: Final = (
    f'{_DECOMPRESS}; JPEG-LS and lossless JPEG come with "darkroom[vault]", lossy JPEG of 12 bits with '
    "pylibjpeg-libjpeg, which is under the GPL"
)
_BITS_OF_MOST: Final = 8
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
    """Whether the file begins as PS3.10 says, or as a data set without that header does."""
    return _has_magic(data) or data[:2] in _FIRST_GROUPS


def _has_magic(data: bytes) -> bool:
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

    try:
        header = pydicom.dcmread(io.BytesIO(data), force=not _has_magic(data))
    except Exception:
        if _has_magic(data):
            raise
        return Refused(Reason.NOT_A_PICTURE, _NO_DICOM)
    if refused := _no_picture(header, has_magic=_has_magic(data)):
        return refused
    patient = _patient(header)
    if not _clean(header):
        return Refused(Reason.DICOM_PROFILE, f"an element that {PROFILE} has no rule for the form of")
    plugin = _decoder(header)
    if isinstance(plugin, Refused):
        return plugin
    count = _count(header, files, rules)
    if isinstance(count, Refused):
        return count
    frames = tuple(_frame(header, index, plugin) for index in range(count))
    return DicomPictures(
        frames=frames, patient=patient, caption=_caption(header, rules), claims_text=_claims_text(header)
    )


def _no_picture(header: Any, *, has_magic: bool) -> Refused | None:  # noqa: ANN401 - pydicom's data set
    """Read by force, nearly anything has some elements; without a file header only an image's own ones count."""
    if not any(name in header for name in _PIXELS):
        if len(header) == 0 and has_magic:
            return Refused(Reason.DAMAGED, "nothing follows the file header; export it again")
        if has_magic or "SOPClassUID" in header:
            return Refused(Reason.NO_PIXELS, "a report, waveform, directory or the like")
        return Refused(Reason.NOT_A_PICTURE, _NO_DICOM)
    absent = [name for name in _NEEDED if header.get(name) in (None, "")]
    if absent:
        return Refused(Reason.DAMAGED, f"no {', '.join(absent)}: the header does not say how the pixels lie")
    return None


def _patient(header: Any) -> str:  # noqa: ANN401 - as above
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


def _count(header: Any, files: FileRules, rules: DicomRules) -> int | Refused:  # noqa: ANN401 - as above
    """Number of frames to show."""
    if refused := check_size(int(header.Columns), int(header.Rows), files):
        return refused
    count = int(header.get("NumberOfFrames", 1) or 1)
    if count > 1 and rules.frames == "refuse":
        return Refused(Reason.SEVERAL_FRAMES, f"{count} frames")
    if not 1 <= count <= rules.max_frames:
        return Refused(Reason.SEVERAL_FRAMES, f"{count} frames; at most {rules.max_frames} are allowed")
    if count * int(header.Columns) * int(header.Rows) > 4 * files.max_pixels:
        return Refused(Reason.TOO_LARGE, f"{count} frames have more than {4 * files.max_megapixels} megapixels")
    return count


def _decoder(header: Any) -> str | Refused:  # noqa: ANN401 - as above
    """The plug-in that decodes the pixels; empty for those that are not compressed."""
    syntax = _transfer_syntax(header)
    if syntax is None:
        return Refused(Reason.TRANSFER_SYNTAX, f"compressed, and no header says how; {_DECOMPRESS}")
    if not syntax.is_transfer_syntax:
        return Refused(Reason.TRANSFER_SYNTAX, "a maker's own or an unknown one; export it in one of the standard's")
    if syntax.startswith(_VIDEO):
        return Refused(Reason.TRANSFER_SYNTAX, f"{syntax.name}, a video; export the frames that are meant")
    if not syntax.is_compressed:
        return ""
    available = _available(header, syntax)
    if not available:
        return Refused(Reason.TRANSFER_SYNTAX, f"{syntax.name}; {_OTHER_DECODERS}")
    return next((name for name in _PLUGINS if name in available), "")


def _available(header: Any, syntax: Any) -> tuple[str, ...]:  # noqa: ANN401 - as above
    """Plug-ins that are installed and decode such pixels."""
    from pydicom.pixels import get_decoder  # noqa: PLC0415 - an extra

    try:
        available = tuple(get_decoder(syntax).available_plugins)
    except NotImplementedError:
        return ()
    if syntax == _EXTENDED_JPEG and int(header.get("BitsStored") or header.BitsAllocated) > _BITS_OF_MOST:
        return tuple(name for name in available if name == "pylibjpeg")  # the others refuse more than 8 bits
    return available


def _transfer_syntax(header: Any) -> Any:  # noqa: ANN401 - as above
    """The object's, or the one that it was read by; None where it is compressed in a way that nothing names."""
    from pydicom.dataset import FileMetaDataset  # noqa: PLC0415 - an extra
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian  # noqa: PLC0415

    meta = getattr(header, "file_meta", None) or FileMetaDataset()
    if meta.get("TransferSyntaxUID"):
        return meta.TransferSyntaxUID
    if bytes(header.get("PixelData") or b"")[: len(_ENCAPSULATED)] == _ENCAPSULATED:
        return None
    is_implicit, is_little_endian = header.original_encoding
    explicit = ExplicitVRLittleEndian if is_little_endian else ExplicitVRBigEndian
    meta.TransferSyntaxUID = ImplicitVRLittleEndian if is_implicit else explicit
    header.file_meta = meta
    return meta.TransferSyntaxUID


def _frame(header: Any, index: int, plugin: str) -> NDArray[np.uint8]:  # noqa: ANN401 - as above
    from pydicom.pixels import pixel_array  # noqa: PLC0415 - an extra

    values = np.asarray(pixel_array(header, index=index, decoding_plugin=plugin))
    grey = shades(values, header, index)
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
