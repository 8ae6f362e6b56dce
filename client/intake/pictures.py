"""Decode a picture file into fresh RGB pixels, and nothing but pixels.

Whatever else a file holds (EXIF, GPS, XMP, comments, thumbnails, an archive behind the picture) stays behind, since
what is kept is a new PNG made from the pixels. What the decoders say of a file may quote it, so it is not passed on.
"""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from client.intake.outcomes import Change, Reason, Refused

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from client.intake.rules import FileRules

FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
"""Decoders that may run; Pillow's others (EPS starts Ghostscript) would only widen what a hostile file can reach."""
DECODER_ERRORS: Final = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    struct.error,
    zlib.error,
)
"""What Pillow raises on damaged files."""
PNG_COMPRESSION: Final = 1
"""zlib's quickest, with run lengths alone: a fifth less time for three per cent more bytes than its own matching, which
at level 6 takes four times as long for a tenth fewer."""
WIDE_PERCENTILES: Final = (0.5, 99.5)
"""Of pixels with more than 8 bits: what becomes black and white where nothing says which window is meant."""
_ANY_DECODER_ERROR: Final = (*DECODER_ERRORS, AttributeError, RuntimeError)
"""Odd modes and damaged metadata make Pillow raise these as well."""
_HEIF_BRANDS: Final = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_OTHER_SIGNATURES: Final = (
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"%PDF", "PDF"),
)
"""Of formats that Pillow has no name for."""
_TGA_TYPES: Final = frozenset({1, 2, 3, 9, 10, 11})
_TGA_BITS: Final = frozenset({8, 15, 16, 24, 32})
_EXPORT: Final = "save it as PNG, TIFF or JPEG"
_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_TRANSPARENT: Final = frozenset({"LA", "PA", "RGBA", "La", "RGBa"})
_PLAIN: Final = frozenset({"1", "L", "P", "RGB"})
_OTHER_COLOURS: Final = frozenset({"CMYK", "YCbCr", "HSV"})
_ORIENTATION: Final = 0x0112
_HARMLESS_INFO: Final = frozenset(
    {
        "background",
        "compression",
        "dpi",
        "duration",
        "extension",
        "gamma",
        "interlace",
        "jfif",
        "jfif_density",
        "jfif_unit",
        "jfif_version",
        "loop",
        "progression",
        "progressive",
        "resolution",
        "srgb",
        "timestamp",
        "transparency",
        "version",
    }
)
"""What Pillow tells of a file that says nothing about who or what it shows; all of it is dropped like the rest."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """Pixels of one picture, RGB uint8 [height, width, 3], and what was done to get them."""

    pixels: NDArray[np.uint8] = field(repr=False)
    changes: frozenset[Change]


def decode_picture(data: bytes, rules: FileRules) -> Decoded | Refused:
    """Decode one file of an ordinary picture format."""
    try:
        return _decode(data, rules)
    except UnidentifiedImageError:
        return _unread(data)
    except (Image.DecompressionBombError, MemoryError):
        return _too_large(rules)
    except _ANY_DECODER_ERROR as error:
        if "unsupported" in str(error).lower():  # Pillow's word for a variant that it knows and does not read
            return Refused(Reason.FORMAT, f"an unusual variant; {_EXPORT}")
        return Refused(Reason.DAMAGED, f"{type(error).__name__} while decoding; export it again")


@cache
def read_formats() -> tuple[str, ...]:
    """Formats whose decoders may run; HEIC's comes with the extra ``heic``."""
    try:
        import pi_heif  # noqa: PLC0415 - an extra
    except ImportError:
        return FORMATS
    pi_heif.register_heif_opener()
    return (*FORMATS, "HEIF")


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG of RGB pixels with the chunks IHDR, IDAT and IEND alone."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=PNG_COMPRESSION, compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def is_bare_png(data: bytes) -> bool:
    """Whether this is a PNG of the chunks IHDR, IDAT and IEND alone, with nothing before, between or after them."""
    if not data.startswith(_PNG_SIGNATURE):
        return False
    at, names = len(_PNG_SIGNATURE), []
    while at + 12 <= len(data):
        names.append(data[at + 4 : at + 8])
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    middle = names[1:-1]
    ends = names[:1] == [b"IHDR"] and names[-1:] == [b"IEND"]
    return at == len(data) and ends and bool(middle) and set(middle) == {b"IDAT"}


def scale_to_8_bit(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Grey values of any range, linearly from :data:`WIDE_PERCENTILES`; what is not a number becomes black."""
    wide = np.asarray(values, np.float64)
    finite = wide[np.isfinite(wide)]
    if finite.size == 0:
        return np.zeros(wide.shape, np.uint8)
    low, high = np.percentile(finite, WIDE_PERCENTILES)
    if high <= low:
        low, high = float(finite.min()), float(finite.max())
    span = high - low if high > low else 1.0
    scaled = np.clip((np.nan_to_num(wide, nan=low, posinf=high, neginf=low) - low) / span, 0.0, 1.0)
    return np.asarray(np.rint(scaled * 255), np.uint8)


def shrink(pixels: NDArray[np.uint8], max_side: int) -> NDArray[np.uint8]:
    """At most ``max_side`` pixels on the longer side; 0: as it is."""
    height, width = pixels.shape[:2]
    factor = max_side / max(height, width) if max_side else 1.0
    if factor >= 1:
        return pixels
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def check_size(width: int, height: int, rules: FileRules) -> Refused | None:
    """Refuse what has too many or too few pixels, before it is decoded."""
    if width * height > rules.max_pixels:
        return _too_large(rules)
    if min(width, height) < rules.min_side:
        return Refused(Reason.TOO_SMALL, f"{width} by {height} pixels; wanted at least {rules.min_side} a side")
    return None


def _unread(data: bytes) -> Refused:
    """Why none of the decoders knew it, from its first bytes; no further decoder is run for that."""
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
        if "HEIF" not in read_formats():
            return Refused(Reason.FORMAT, f'HEIC: pip install "darkroom[heic]", or {_EXPORT}')
        return Refused(Reason.DAMAGED, f"HEIC that cannot be opened; {_EXPORT}")
    names = _formats_alike(data)
    if names & {*read_formats()}:
        known = " or ".join(sorted(names & {*read_formats()}))
        return Refused(Reason.DAMAGED, f"{known} that cannot be opened, or an unusual variant of it; export it again")
    if names:
        return Refused(Reason.FORMAT, f"{' or '.join(sorted(names))}; {_EXPORT}")
    return Refused(Reason.NOT_A_PICTURE, f"none of {', '.join(read_formats())}, nor DICOM")


def _formats_alike(data: bytes) -> set[str]:
    """Formats that begin like this; several, where signatures are short."""
    names = {name for signature, name in _OTHER_SIGNATURES if data.startswith(signature)}
    names |= {"SVG"} if b"<svg" in data[:1024] else set()
    if len(data) > 18 and data[1] <= 1 and data[2] in _TGA_TYPES and data[16] in _TGA_BITS and data[12:14] != b"\0\0":
        names.add("TGA")
    Image.init()  # learns the other formats' signatures; their decoders stay where they are
    for name in Image.ID:
        _, accepts = Image.OPEN[name]
        with suppress(*_ANY_DECODER_ERROR):  # a signature longer than the file
            if accepts is not None and accepts(data[:16]) is True:
                names.add(str(name))
    return names


def _decode(data: bytes, rules: FileRules) -> Decoded | Refused:
    with Image.open(io.BytesIO(data), formats=read_formats()) as image:
        if refused := check_size(image.width, image.height, rules):
            return refused
        if image.format == "TIFF" and image.info.get("compression") == "webp":  # libtiff is built without it
            return Refused(Reason.FORMAT, f"TIFF compressed by WebP; {_EXPORT}")
        changes: set[Change] = set()
        if getattr(image, "n_frames", 1) > 1:
            # phones write JPEGs whose further frames are previews of the first
            if image.format != "MPO" and rules.animated == "refuse":
                return Refused(Reason.SEVERAL_FRAMES, "save the frame that is meant as a picture of its own")
            changes.add(Change.FIRST_FRAME)
        image.verify()  # checks PNG's checksums, and leaves the image unusable: it is opened again
    with Image.open(io.BytesIO(data), formats=read_formats()) as image:
        size = image.size
        if image.format == "JPEG" and rules.max_side:
            image.draft(None, (rules.max_side, rules.max_side))  # decodes at a half, a quarter or an eighth
        image.load()
        if image.size != size:
            changes.add(Change.RESIZED)
        return _flatten(image, changes)


def _flatten(image: Image.Image, changes: set[Change]) -> Decoded | Refused:
    if image.info.keys() - _HARMLESS_INFO:
        changes.add(Change.METADATA)
    upright = _upright(image, changes)
    rgb = _as_rgb(upright, changes)
    if isinstance(rgb, Refused):
        return rgb
    return Decoded(np.array(rgb), frozenset(changes))


def _upright(image: Image.Image, changes: set[Change]) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
        if orientation not in range(2, 9):
            return image
        turned = ImageOps.exif_transpose(image)
    except _ANY_DECODER_ERROR:  # a damaged EXIF block does not spoil the pixels; it is dropped
        return image
    changes.add(Change.TURNED)
    return turned


def _as_rgb(image: Image.Image, changes: set[Change]) -> Image.Image | Refused:
    if image.mode in {"I", "F"} or image.mode.startswith("I;"):
        changes.add(Change.WIDE_VALUES)
        return Image.fromarray(scale_to_8_bit(np.asarray(image))).convert("RGB")
    if image.mode == "LAB":
        changes.add(Change.COLOURS)
        lab, target = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, target, outputMode="RGB")
        return converted if converted is not None else image.convert("RGB")
    if image.mode in _TRANSPARENT or (image.mode in _PLAIN and "transparency" in image.info):
        return _on_white(image, changes)
    if image.mode not in _PLAIN | _OTHER_COLOURS:
        return Refused(Reason.COLOUR_MODE, f"mode {image.mode}; save it as 8-bit RGB")
    profile = image.info.get("icc_profile")
    if isinstance(profile, bytes) and image.mode in {"RGB", "CMYK"} and b"sRGB" not in profile:
        converted = _through_profile(image, profile)
        if converted is not None:
            changes.add(Change.COLOURS)
            return converted
    if image.mode in _OTHER_COLOURS:
        changes.add(Change.COLOURS)
    return image.convert("RGB")


def _through_profile(image: Image.Image, profile: bytes) -> Image.Image | None:
    """Colours as the file's own profile means them; None where the profile is damaged or of another mode."""
    try:
        source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, *_ANY_DECODER_ERROR):
        return None


def _on_white(image: Image.Image, changes: set[Change]) -> Image.Image:
    layer = image.convert("RGBA")
    lowest, _ = layer.getchannel("A").getextrema()
    if lowest != 255:
        changes.add(Change.ALPHA)
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _too_large(rules: FileRules) -> Refused:
    return Refused(Reason.TOO_LARGE, f"more than {rules.max_megapixels} megapixels; save a smaller copy")
