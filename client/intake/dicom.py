"""Turn a DICOM object into pictures.

The header is first cleaned by the Basic Application Level Confidentiality Profile of PS3.15 (table E.1-1 of
:data:`PROFILE`, by ``dicom-anonymizer``), and everything after that reads the cleaned header. None of it is kept but a
caption of four coded words. Objects without the file header of PS3.10 are read too, where the bytes are those of a
DICOM data set.

Pixels become 8 bits as a viewer would show them: modality rescale, the first VOI window or table, MONOCHROME1 turned
round. Enhanced objects keep rescale and window in functional groups (PS3.3 C.7.6.16): what the frame's own group says
comes before what all frames share, and that before the object's top level.

A coded element is free text to whoever fills it in: patients' names and numbers have been found in all of them. So a
word goes into a caption only if the standard defines it. Sources: PS3.3 C.7.3.1.1.1 (modality), PS3.16 annex L (body
parts), PS3.3 C.7.3.1 (laterality), C.8.1.1 and C.8.11.1 (view positions). Blanks and underscores between the parts of a
word are overlooked.
"""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from client.intake.outcomes import Reason, Refused
from client.intake.pictures import check_size, scale_to_8_bit
from common.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from client.intake.rules import DicomRules, FileRules

PROFILE: Final = "dicomfields_2026c"
_MAGIC: Final = b"DICM"
_MAGIC_AT: Final = 128
_FIRST_GROUPS: Final = frozenset({b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08"})
"""What a data set without a file header begins with: group 2 or 8, in either byte order."""
_PIXELS: Final = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_NEEDED: Final = ("Rows", "Columns", "BitsAllocated", "SamplesPerPixel", "PhotometricInterpretation")
_ENCAPSULATED: Final = b"\xfe\xff\x00\xe0"
_FROM_FILM_OR_SCREEN: Final = frozenset({"DV", "DF", "SD", "SI"})
"""Conversion types (PS3.3 C.8.6.1) of digitised film, scanned paper and screens: what was written there shows."""
_PLUGINS: Final = ("pylibjpeg", "pillow", "pyjpegls", "pydicom", "gdcm")
"""Decoders, the one to be preferred first: GDCM, the largest, reads only what no other does."""
_EXTENDED_JPEG: Final = "1.2.840.10008.1.2.4.51"
_BITS_OF_MOST: Final = 8
_VIDEO: Final = "1.2.840.10008.1.2.4.10"
"""Beginning of the transfer syntaxes of MPEG-2, MPEG-4 and HEVC."""
_DECOMPRESS: Final = "save it uncompressed first, e.g. by gdcmconv --raw or dcmdjpeg"
_OTHER_DECODERS: Final = (
    f'{_DECOMPRESS}; JPEG-LS and lossless JPEG come with "darkroom[vault]", lossy JPEG of 12 bits with '
    "pylibjpeg-libjpeg, which is under the GPL"
)
_NO_DICOM: Final = "no DICOM object, though its name says so"
_MISSING: Final = 'DICOM objects need pydicom and dicom-anonymizer: pip install "darkroom[vault]"'
_FUNCTIONS: Final = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
_PADDING: Final = ("PixelPadding", "FloatPixelPadding", "DoubleFloatPixelPadding")
_MODALITIES: Final = """
AR AS ASMT AU BDUS BI BMD CD CF CFM CP CR CS CT DD DF DG DM DMS DS DX EC ECG EPS ES FA FID FS GM HC HD IO IOL
IVOCT IVUS KER LEN LP LS MA MG MR MS NM OAM OCT OP OPM OPR OPT OPTBSV OPTENF OPV OSS OT PA PT PX RF RG SM SRF
SS ST TG US VA VF XA XAPROTOCOL XC
"""
_BODY_PARTS: Final = """
ABDOMEN ABDOMENPELVIS ACJOINT ADRENAL ANKLE ANUS AORTA ARM AXILLA BACK BILEDUCT BLADDER BRAIN BREAST BRONCHUS
BUTTOCK CALCANEUS CALF CAROTID CEREBELLUM CEREBRALA CERVIX CHEEK CHEST CHESTABDOMEN CHESTABDPELVIS
CIRCLEOFWILLIS CLAVICLE COCCYX COLON CORNEA CORONARYARTERY CSPINE CTSPINE DUODENUM EAR ELBOW ESOPHAGUS
EXTREMITY EYE EYELID FACE FEMUR FETUS FIBULA FINGER FOOT FOREARM FOREFOOT GALLBLADDER HAND HEAD HEADNECK HEART
HINDFOOT HIP HUMERUS IAC ILEUM ILIUM JAW JEJUNUM KIDNEY KNEE LARYNX LEG LIVER LOWERLEG LSPINE LSSPINE LUNG
MANDIBLE MAXILLA MEDIASTINUM MOUTH NECK NECKCHEST NECKCHESTABDOMEN NECKCHESTABDPELV NOSE OPTICCANAL ORBIT
OVARY PANCREAS PAROTID PATELLA PELVIS PENIS PHARYNX PROSTATE RADIUS RECTUM RETINA RIB SACRUM SCALP SCAPULA
SCLERA SCROTUM SHOULDER SIJOINT SINUS SKIN SKULL SPINE SPLEEN SSPINE STERNUM STOMACH SUBMANDIBULAR TESTIS
THIGH THUMB THYMUS THYROID TIBIA TIBIAFIBULA TLSPINE TMJ TOE TONGUE TOOTH TRACHEA TSPINE ULNA UMBILICUS
UPPERARM URETER URETHRA UTERUS VAGINA VULVA WHOLEBODY WRIST ZYGOMA
"""
_VIEWS: Final = """
AP PA LL RL RLD LLD RLO LLO LAO RAO LPO RPO LAT OBL AXIAL TANGENTIAL CC MLO ML LM LMO SIO XCCL XCCM FB CV AT
"""
MODALITIES: Final = frozenset(_MODALITIES.split())
BODY_PARTS: Final = frozenset(_BODY_PARTS.split())
LATERALITIES: Final = frozenset({"R", "L", "B", "U"})
VIEWS: Final = frozenset(_VIEWS.split())
CODED: Final = (
    ("Modality", MODALITIES),
    ("BodyPartExamined", BODY_PARTS),
    ("Laterality", LATERALITIES),
    ("ViewPosition", VIEWS),
)
"""Elements and the values that count, in the order of a caption's words."""
_BETWEEN: Final = re.compile(r"[ _]+")


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


def shades(values: NDArray[Any], header: Any, index: int = 0) -> NDArray[np.uint8]:  # noqa: ANN401 - pydicom's data set
    """Grey [height, width] or RGB [height, width, 3] uint8 from one frame as pydicom decodes it.

    Without a window that the standard allows, grey values are spread over their own range. Padding is left out of that
    range and is black, also where MONOCHROME1 would make it white.
    """
    from pydicom.pixels import apply_color_lut  # noqa: PLC0415 - an extra

    photometric = str(header.PhotometricInterpretation)
    if photometric == "PALETTE COLOR":
        colours = apply_color_lut(values, header)
        return _top_8_bits(colours, 8 * colours.dtype.itemsize)
    if values.ndim == 3:
        return _top_8_bits(values, int(header.BitsStored))
    padding = _padding(values, header)
    grey = _windowed(_rescaled(values, header, index), padding, header, index)
    return np.where(padding, np.uint8(0), 255 - grey if photometric == "MONOCHROME1" else grey)


def window(values: NDArray[np.float64], centre: float, width: float, function: str) -> NDArray[np.float64]:
    """0 to 1, by the functions of PS3.3 C.11.2.1.2 and C.11.2.1.3.

    Raises:
        ValueError: A width or function that the standard forbids.

    """
    if not _is_allowed(centre, width, function):
        raise ValueError("wanted a window of the standard's form")
    if function == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700))))
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if width == 1:
        return (values > centre - 0.5).astype(np.float64)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def _is_allowed(centre: float, width: float, function: str) -> bool:
    narrowest_is_met = width >= 1 if function == "LINEAR" else width > 0
    return function in _FUNCTIONS and math.isfinite(centre) and math.isfinite(width) and narrowest_is_met


def _functional(header: Any, index: int, sequence: str) -> Any:  # noqa: ANN401 - as above
    """The frame's own item of a functional group, else the shared one, else the object itself."""
    own, shared = (
        header.get(name) or () for name in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")
    )
    groups = (*own[index : index + 1], *shared[:1])
    return next((items[0] for group in groups if (items := group.get(sequence))), header)


def _rescaled(values: NDArray[Any], header: Any, index: int) -> NDArray[np.float64]:  # noqa: ANN401 - as above
    from pydicom.pixels import apply_modality_lut  # noqa: PLC0415 - an extra

    source = _functional(header, index, "PixelValueTransformationSequence")
    if source is header and header.get("ModalityLUTSequence"):
        return np.asarray(apply_modality_lut(values, header), np.float64)
    slope, intercept = (_numbers(source, name) for name in ("RescaleSlope", "RescaleIntercept"))
    factor = slope[0] if slope and math.isfinite(slope[0]) and slope[0] != 0 else 1.0
    offset = intercept[0] if intercept and math.isfinite(intercept[0]) else 0.0
    return np.asarray(values, np.float64) * factor + offset


def _windowed(
    rescaled: NDArray[np.float64],
    padding: NDArray[np.bool_],
    header: Any,  # noqa: ANN401 - as above
    index: int,
) -> NDArray[np.uint8]:
    from pydicom.pixels import apply_voi  # noqa: PLC0415 - as above

    tables = header.get("VOILUTSequence")
    if tables:
        bits = int(tables[0].LUTDescriptor[2])
        return _top_8_bits(apply_voi(rescaled.astype(np.int64), header), bits)
    for centre, width, function in _windows(_functional(header, index, "FrameVOILUTSequence")):
        return _screen(window(rescaled, centre, width, function))
    return scale_to_8_bit(np.where(padding, np.nan, rescaled))


def _windows(source: Any) -> Iterator[tuple[float, float, str]]:  # noqa: ANN401 - as above
    """Those that the standard allows, in order: a width of 0 is how much equipment says that it has no window."""
    function = str(source.get("VOILUTFunction") or "").strip().upper() or "LINEAR"
    for centre, width in zip(_numbers(source, "WindowCenter"), _numbers(source, "WindowWidth"), strict=False):
        if _is_allowed(centre, width, function):
            yield centre, width, function


def _padding(values: NDArray[Any], header: Any) -> NDArray[np.bool_]:  # noqa: ANN401 - as above
    """Stored values that stand for no measurement (PS3.3 C.7.5.1.1.2): one, or all between two."""
    for name in _PADDING:
        limits = (*_numbers(header, f"{name}Value"), *_numbers(header, f"{name}RangeLimit"))
        if limits:
            found = [_as_stored(limit, values) for limit in limits]
            return np.asarray((values >= min(found)) & (values <= max(found)))
    return np.zeros(values.shape, np.bool_)


def _as_stored(limit: float, values: NDArray[Any]) -> float:
    """Some equipment writes a signed value's bits as an unsigned number, or the other way round."""
    if values.dtype.kind not in "iu" or np.iinfo(values.dtype).min <= limit <= np.iinfo(values.dtype).max:
        return limit
    return limit - math.copysign(2.0 ** (8 * values.dtype.itemsize), limit)


def _numbers(source: Any, name: str) -> tuple[float, ...]:  # noqa: ANN401 - as above
    """An element's values; none where it is absent, empty or no number."""
    try:
        value = source.get(name)
        if value is None:
            return ()
        several = value if hasattr(value, "__iter__") and not isinstance(value, (str, bytes)) else (value,)
        return tuple(float(each) for each in several)
    except (TypeError, ValueError, OverflowError):
        return ()


def _screen(shade: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.rint(shade * 255).astype(np.uint8)


def _top_8_bits(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    return _screen(np.clip(np.asarray(values, np.float64) / (2**bits - 1), 0, 1))


def _caption(header: Any, rules: DicomRules) -> str:  # noqa: ANN401 - as above
    """Words that the standard defines: free text of a header never becomes a caption."""
    if rules.caption == "none":
        return ""
    words = (coded_word(str(header.get(name, "") or ""), terms) for name, terms in CODED)
    return " ".join(filter(None, words))


def coded_word(value: str, terms: frozenset[str]) -> str:
    """The term in small letters; empty if the value is none."""
    term = _BETWEEN.sub("", value)
    return term.lower() if term in terms else ""


def _claims_text(header: Any) -> bool:  # noqa: ANN401 - as above
    burned = str(header.get("BurnedInAnnotation", "") or "").strip().upper() == "YES"
    return burned or str(header.get("ConversionType", "") or "").strip().upper() in _FROM_FILM_OR_SCREEN
