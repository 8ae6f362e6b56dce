"""An ordinary image folder with captions, as the institution has it: the Hugging Face ``imagefolder`` convention.

``metadata.jsonl`` lies in the folder, one JSON object a line::

    {"file_name": "ward-3/0001.png", "text": "an axial brain mri, upper part", "subject_id": "p17", "label": "axial"}

What a folder may hold, and what its rows mean, is read as an intake reads it (:mod:`client.intake.folder`); an empty
caption is a picture that is learnt without one. Pixels are read one picture at a time, by :func:`load_pixels`.
"""

from __future__ import annotations

import logging
import struct
import zlib
from collections import Counter
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image, ImageOps

from client.intake.folder import PICTURE_SUFFIXES, Rejected, list_folder, locate
from client.intake.outcomes import Reason, Refused
from client.intake.rules import IntakeRules
from client.vault.records import today
from common.errors import BadCaption, BadImage, EmptyFolder

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from client.intake.folder import Candidate

MAX_PIXELS: Final = 80_000_000
"""A larger picture is refused before it is decoded, so that a few compressed bytes cannot fill the memory."""

_EXAMPLE: Final = '{"file_name": "0001.png", "text": "what the picture shows"}'
FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
"""Decoders that may run; Pillow's others (EPS starts Ghostscript) would only widen what a hostile file can reach."""
_OPAQUE: Final = frozenset({"1", "L", "P", "RGB"})
_TRANSPARENT: Final = frozenset({"LA", "PA", "RGBA"})
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
_UNUSED: Final = frozenset({Reason.UNLISTED, Reason.NO_PICTURE})
"""Files that no row names, and captions of nothing: they are not used, and are no fault."""
_LISTED: Final = 50
"""Faults spelt out in one message; the rest are counted."""

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One row of the metadata; no pixels are held."""

    file_name: str
    """Path below the folder, with ``/``."""
    caption: str
    subject_id: str
    """Who or what is shown; pictures of one subject share it. The file name if the metadata has none."""
    label: str
    """The metadata's, else the sub-folder, else empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFolder:
    """What can be trained on, and what a person should know of the rest."""

    pictures: tuple[Picture, ...]
    """In the order of the metadata, then by name."""
    left_out: tuple[str, ...] = field(repr=False, default=())
    """Pictures without consent, or whose use has expired."""
    others: tuple[str, ...] = field(repr=False, default=())
    """Files without a row that are no pictures by their names; an intake may know them."""
    notes: tuple[str, ...] = field(repr=False, default=())


def read_imagefolder(folder: Path) -> tuple[Picture, ...]:
    """The folder's pictures in the order of its metadata; no picture is opened.

    Pictures without a row or without consent are left out, and logged; see :func:`look_at`.

    Raises:
        BadCaption: Rows that cannot be used, every one of them with its line; or ``subject_id`` in some rows only.
        EmptyFolder: No picture that may be used.
        DataError: No such folder, or metadata that cannot be trusted as a whole.

    """
    found = look_at(folder)
    if not found.pictures:
        raise EmptyFolder(f"{folder}: no picture that may be used; give its metadata a row for each, as {_EXAMPLE}")
    if found.left_out:
        _log.warning("%s: %d pictures have no consent or have expired and are left out", folder, len(found.left_out))
    _log_unlisted(folder, found.pictures)
    return found.pictures


def look_at(folder: Path) -> ImageFolder:
    """Read the folder as an intake does, with its default rules; there may be no picture.

    Raises:
        BadCaption: As :func:`read_imagefolder`.
        DataError: As :func:`read_imagefolder`.

    """
    listing, day = list_folder(folder, IntakeRules()), today()
    pictures, left_out, others, faults = list[Picture](), list[str](), list[str](), list[str]()
    for entry in listing.entries:
        if isinstance(entry, Rejected):
            if entry.refused.reason not in _UNUSED:
                faults.append(f"{entry.where}: {entry.refused.reason}: {entry.refused.detail}")
        elif entry.consent is False or (entry.expires is not None and entry.expires <= day):
            left_out.append(entry.name)
        elif entry.where != entry.name or PurePosixPath(entry.name).suffix.lower() in PICTURE_SUFFIXES:
            pictures.append(_picture(entry))
        else:
            others.append(entry.name)
    if faults:
        raise BadCaption(_joined(folder, faults))
    return ImageFolder(pictures=tuple(pictures), left_out=tuple(left_out), others=tuple(others), notes=listing.notes)


def unlisted_files(folder: Path, pictures: Iterable[Picture]) -> tuple[str, ...]:
    """Picture files below the folder that no row names: they are not used. Hidden files do not count."""
    listed = {picture.file_name for picture in pictures}
    return tuple(name for name in _picture_files(folder) if name not in listed)


def check_images(folder: Path, pictures: Iterable[Picture]) -> tuple[BadImage, ...]:
    """Decode every picture and hand back one error for each that :func:`load_pixels` would refuse."""
    bad: list[BadImage] = []
    for picture in pictures:
        try:
            load_pixels(folder, picture, 16)
        except BadImage as error:
            bad.append(error)
    return tuple(bad)


def load_pixels(folder: Path, picture: Picture, resolution: int) -> NDArray[np.uint8]:
    """One picture as RGB uint8 [resolution, resolution, 3]: turned as its EXIF says, centre square, Lanczos.

    Nothing but pixels is kept: EXIF, text chunks and colour profiles are dropped. Transparency is laid on white. Wide
    grey values are not scaled to 8 bits here, since which window of them to show is the institution's choice; CMYK is
    not converted, since without its profile the colours come out wrong.

    Raises:
        BadImage: The file is missing, outside the folder, empty, truncated, damaged, too large, of another format,
            animated or of a colour mode that is not handled.

    """
    path = locate(folder, picture.file_name)
    if isinstance(path, Refused):
        raise BadImage(f"{picture.file_name!r}: {path.reason}: {path.detail}")
    return decode_pixels(path, picture.file_name, resolution)


def decode_pixels(source: Path | bytes, name: str, resolution: int) -> NDArray[np.uint8]:
    """The same for a file, or for a file's content; errors call it by ``name``."""
    try:
        return _decode(source, name, resolution)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(_too_large(name)) from error
    except DECODER_ERRORS as error:
        raise BadImage(
            f"{name}: cannot be read as {', '.join(FORMATS)} ({error}); "
            "export it again as 8-bit PNG or JPEG, or take its row out"
        ) from error


def _decode(source: Path | bytes, name: str, resolution: int) -> NDArray[np.uint8]:
    if not (source if isinstance(source, bytes) else source.stat().st_size):
        raise BadImage(f"{name}: is empty (0 bytes); copy it again")
    with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
        _refuse(image, name)
        image.verify()  # leaves the image unusable: it is opened again
    with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
        upright = ImageOps.exif_transpose(image)
        flat = _on_white(upright) if upright.mode in _TRANSPARENT or "transparency" in upright.info else upright
        side = min(flat.size)
        left, top = (flat.width - side) // 2, (flat.height - side) // 2
        square = flat.convert("RGB").crop((left, top, left + side, top + side))
        return np.array(square.resize((resolution, resolution), Image.Resampling.LANCZOS))


def _refuse(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(_too_large(name))
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise BadImage(f"{name}: holds {frames} frames; save the one that is meant as a picture of its own")
    if image.mode in {"I", "F"} or image.mode.startswith("I;"):
        raise BadImage(
            f"{name}: holds grey values of more than 8 bits (mode {image.mode}); choose which values become black and "
            "white (the window), and save it as 8-bit PNG"
        )
    if image.mode not in _OPAQUE | _TRANSPARENT:
        raise BadImage(
            f"{name}: has colour mode {image.mode}; convert it to sRGB with its own colour profile and save it as PNG"
        )


def _too_large(name: str) -> str:
    return f"{name}: has more than {MAX_PIXELS:_} pixels; save a smaller copy"


def _on_white(image: Image.Image) -> Image.Image:
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)


def _picture(found: Candidate) -> Picture:
    return Picture(
        file_name=found.name,
        caption=found.caption,
        subject_id=found.name if found.subject_id is None else found.subject_id,
        label=found.label,
    )


def _picture_files(folder: Path) -> list[str]:
    paths = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.suffix.lower() in PICTURE_SUFFIXES)
    return [path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)]


def _joined(folder: Path, faults: list[str]) -> str:
    listed = "\n".join(f"  - {fault}" for fault in faults[:_LISTED])
    rest = f"\n  and {len(faults) - _LISTED} more" if len(faults) > _LISTED else ""
    return f"{folder}: {len(faults)} row{'s' if len(faults) > 1 else ''} to mend:\n{listed}{rest}"


def _log_unlisted(folder: Path, pictures: tuple[Picture, ...]) -> None:
    unlisted = unlisted_files(folder, pictures)
    if unlisted:
        kinds = Counter(PurePosixPath(name).suffix.lower() for name in unlisted)
        _log.warning("%s: %d picture files have no row and are left out: %s", folder, len(unlisted), dict(kinds))
