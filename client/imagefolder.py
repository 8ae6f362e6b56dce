"""An ordinary image folder with captions, as the institution has it: the Hugging Face ``imagefolder`` convention.

``metadata.jsonl`` lies at the top of the folder, one JSON object a line::

    {"file_name": "ward-3/0001.png", "text": "an axial brain mri, upper part", "subject_id": "p17", "label": "axial"}

``file_name`` and ``text`` (or ``caption``) are needed; the rest is optional, and other keys are ignored. An empty
caption is a picture that is learnt without one. Pixels are read one picture at a time, by :func:`load_pixels`.
"""

from __future__ import annotations

import logging
import struct
import unicodedata
import zlib
from collections import Counter
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType
from PIL import Image, ImageOps

from common.errors import BadCaption, BadImage, DataError, EmptyFolder

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from numpy.typing import NDArray

METADATA: Final = "metadata.jsonl"
MAX_PIXELS: Final = 80_000_000
"""A larger picture is refused before it is decoded, so that a few compressed bytes cannot fill the memory."""

_EXAMPLE: Final = '{"file_name": "0001.png", "text": "what the picture shows"}'
_SUFFIXES: Final = frozenset({".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
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


class _Row(msgspec.Struct, frozen=True):
    file_name: str
    text: str | UnsetType = UNSET
    caption: str | UnsetType = UNSET
    subject_id: str | int | None = None
    label: str | int | None = None


def read_imagefolder(folder: Path) -> tuple[Picture, ...]:
    """The folder's pictures in the order of its metadata; no picture is opened.

    Picture files without a row are left out, and logged; see :func:`unlisted_files`.

    Raises:
        BadCaption: Rows that cannot be used, every one of them with its line: not JSON, no caption, a caption that is
            not text, a file that is missing, listed twice or outside the folder; or ``subject_id`` in some rows only.
        EmptyFolder: No row and no picture.
        DataError: No such folder, or pictures without a ``metadata.jsonl``.

    """
    lines = _metadata_lines(folder)
    faults: list[str] = []
    rows: dict[Path, tuple[int, _Row]] = {}
    for number, line in lines:
        try:
            row = _parse(line)
            path = _locate(folder, row.file_name)
            if path in rows:
                raise BadCaption(f"{row.file_name}: already listed in line {rows[path][0]}; keep one row a picture")  # noqa: TRY301 - collected like the others
        except BadCaption as error:
            faults.append(f"line {number}: {error}")
        else:
            rows[path] = (number, row)
    faults += _subject_faults(rows.values())
    if faults:
        raise BadCaption(_joined(folder / METADATA, faults))
    if not rows:
        raise EmptyFolder(f"{folder / METADATA}: has no rows; write one a picture, as {_EXAMPLE}")
    pictures = tuple(_picture(row) for _, row in rows.values())
    _log_unlisted(folder, pictures)
    return pictures


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
    try:
        path = _locate(folder, picture.file_name)
    except BadCaption as error:
        raise BadImage(str(error)) from error
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


def _metadata_lines(folder: Path) -> list[tuple[int, bytes]]:
    """Numbered lines that are not blank. Lines end at a line feed only: JSON strings may hold other separators."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder that holds {METADATA} and the pictures")
    path = folder / METADATA
    if not path.is_file():
        found = len(_picture_files(folder))
        if not found:
            raise EmptyFolder(f"{folder}: no pictures and no {METADATA}")
        raise DataError(f"{folder}: {found} pictures but no {METADATA}; write one line a picture, as {_EXAMPLE}")
    try:
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    return [(number, line) for number, line in enumerate(data.split(b"\n"), start=1) if line.strip()]


def _parse(line: bytes) -> _Row:
    try:
        row = msgspec.json.decode(line, type=_Row)
    except (ValueError, RecursionError) as error:  # msgspec's own errors, and Unicode's, are ValueErrors
        raise BadCaption(f"{error}; wanted {_EXAMPLE}") from error
    if row.text is UNSET and row.caption is UNSET:
        raise BadCaption(f'{row.file_name}: has no caption; add "text": "..." ("" for none)')
    if UNSET not in {row.text, row.caption} and row.text != row.caption:
        raise BadCaption(f'{row.file_name}: "text" and "caption" differ; keep one')
    if row.subject_id is not None and not _normal(row.subject_id):
        raise BadCaption(f"{row.file_name}: subject_id is blank; name the subject or leave the key out")
    return row


def _locate(folder: Path, name: str) -> Path:
    """Where the named file really is: a row must not reach outside the folder, by ``..`` or by a symbolic link."""
    pure = PurePosixPath(name)
    if not pure.name or "\0" in name or "\\" in name or pure.is_absolute() or ".." in pure.parts:
        raise BadCaption(f"{name!r}: wanted a path below the folder, with / and without ..")
    try:
        path = (folder / pure).resolve()
        is_below, is_file = path.is_relative_to(folder.resolve()), path.is_file()
    except (OSError, RuntimeError) as error:
        raise BadCaption(f"{name!r}: cannot be followed ({error})") from error
    if not is_below:
        raise BadCaption(f"{name!r}: is a link that leads out of the folder; copy the file into the folder")
    if not is_file:
        raise BadCaption(f"{name!r}: no such file; mend the name or take the row out")
    return path


def _subject_faults(rows: Collection[tuple[int, _Row]]) -> list[str]:
    """A row without ``subject_id`` beside rows with one would count a person's picture as a subject of its own."""
    without = [number for number, row in rows if row.subject_id is None]
    if not without or len(without) == len(rows):
        return []
    return [
        f"line {number}: has no subject_id while other rows have; give it in every row or in none" for number in without
    ]


def _picture(row: _Row) -> Picture:
    name = PurePosixPath(row.file_name)
    parent = "" if name.parent == PurePosixPath() else str(name.parent)
    caption = row.text if row.text is not UNSET else row.caption
    return Picture(
        file_name=str(name),
        caption="" if caption is UNSET else caption,
        subject_id=str(name) if row.subject_id is None else _normal(row.subject_id),
        label=parent if row.label is None else str(row.label),
    )


def _normal(subject_id: str | int) -> str:
    """One spelling a subject: stray blanks or another Unicode form must not split a person into two privacy units."""
    return unicodedata.normalize("NFC", str(subject_id)).strip()


def _picture_files(folder: Path) -> list[str]:
    paths = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.suffix.lower() in _SUFFIXES)
    return [path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)]


def _joined(source: Path, faults: list[str]) -> str:
    listed = "\n".join(f"  - {fault}" for fault in faults[:_LISTED])
    rest = f"\n  and {len(faults) - _LISTED} more" if len(faults) > _LISTED else ""
    return f"{source}: {len(faults)} row{'s' if len(faults) > 1 else ''} to mend:\n{listed}{rest}"


def _log_unlisted(folder: Path, pictures: tuple[Picture, ...]) -> None:
    unlisted = unlisted_files(folder, pictures)
    if unlisted:
        kinds = Counter(PurePosixPath(name).suffix.lower() for name in unlisted)
        _log.warning("%s: %d picture files have no row and are left out: %s", folder, len(unlisted), dict(kinds))
