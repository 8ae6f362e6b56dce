"""One file to clean pictures: read, decode, cover faces, look for text, hash, encode anew.

Runs in a worker process that holds no key (:mod:`client.intake.workers`), since decoders are where a hostile file would
take hold. Everything that comes back was made here from pixels; no byte of the file is passed on. Nor do decoders talk
meanwhile: what they log, warn or print quotes the files that they read.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import stat
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from PIL import Image

from client.intake.burned_text import count_text_lines
from client.intake.dicom import is_dicom, read_dicom
from client.intake.duplicates import exact_hash, perceptual_hash, thumbnail
from client.intake.faces import cover_faces
from client.intake.outcomes import Change, Reason, Refused
from client.intake.pictures import Decoded, decode_picture, encode_png, shrink

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from client.intake.rules import IntakeRules

PREVIEW_SIDE: Final = 160
_DICOM_SUFFIXES: Final = (".dcm", ".dicom", ".ima")
_TALKERS: Final = ("PIL", "pydicom", "dicomanonymizer")


@dataclass(frozen=True, kw_only=True, slots=True)
class CleanPicture:
    """A picture without anything but pixels."""

    png: bytes = field(repr=False)
    exact: bytes = field(repr=False)
    perceptual: int = field(repr=False)
    thumbnail: bytes = field(repr=False)
    """Grey, for comparing; see :mod:`client.intake.duplicates`."""
    changes: frozenset[Change]
    has_text: bool
    """Whether text was found in it, or its header says that there is."""
    before: bytes = field(repr=False, default=b"")
    """JPEG preview of the pixels as the file has them, if one was asked for."""
    after: bytes = field(repr=False, default=b"")


@dataclass(frozen=True, kw_only=True, slots=True)
class CleanFile:
    """Everything that one file became."""

    pictures: tuple[CleanPicture, ...]
    file_digest: bytes = field(repr=False)
    """SHA-256 of the file."""
    patient: str | None = field(repr=False, default=None)
    """A DICOM object's patient; empty if it names none. None for other files."""
    caption: str = field(repr=False, default="")
    """What a DICOM object's codes say."""


Cleaned: TypeAlias = CleanFile | Refused


@dataclass(frozen=True, slots=True)
class _Source:
    frames: tuple[Decoded, ...]
    patient: str | None = None
    caption: str = ""
    claims_text: bool = False


def clean_file(path: Path, rules: IntakeRules, *, previews: bool) -> Cleaned:
    """De-identify one file.

    Raises:
        ConfigError: The rules ask for something that is not installed.

    """
    data = read_file(path, rules)
    if isinstance(data, Refused):
        return data
    with quiet_decoders():
        source = _decode(data, path.suffix.lower(), rules)
        if isinstance(source, Refused):
            return source
        return CleanFile(
            pictures=tuple(_clean(frame, source, rules, previews=previews) for frame in source.frames),
            file_digest=hashlib.sha256(data).digest(),
            patient=source.patient,
            caption=source.caption,
        )


def read_file(path: Path, rules: IntakeRules) -> bytes | Refused:
    """Open without following a link or waiting for a pipe: the file may have been exchanged since it was listed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return Refused(Reason.UNREADABLE, error.strerror or "")
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            return Refused(Reason.NOT_A_FILE, "exchanged while it was read")
        limit = rules.files.max_file_mib << 20
        try:
            data = file.read(limit + 1)
        except OSError as error:
            return Refused(Reason.UNREADABLE, error.strerror or "")
    if len(data) > limit:
        return Refused(Reason.TOO_LARGE, f"more than {rules.files.max_file_mib} MiB")
    return data or Refused(Reason.EMPTY, "0 bytes; copy it again")


def _decode(data: bytes, suffix: str, rules: IntakeRules) -> _Source | Refused:
    """By its bytes: a name says little of what a file is. A suffix only chooses the words for what is neither."""
    found = read_dicom(data, rules.files, rules.dicom) if is_dicom(data) or suffix in _DICOM_SUFFIXES else None
    if found is None or (isinstance(found, Refused) and found.reason is Reason.NOT_A_PICTURE):
        decoded = decode_picture(data, rules.files)
        if isinstance(decoded, Refused):
            return found if found is not None and suffix in _DICOM_SUFFIXES else decoded
        return _Source((decoded,))
    if isinstance(found, Refused):
        return found
    frames = tuple(Decoded(frame, frozenset({Change.DICOM})) for frame in found.frames)
    return _Source(frames, found.patient, found.caption, found.claims_text)


def _clean(decoded: Decoded, source: _Source, rules: IntakeRules, *, previews: bool) -> CleanPicture:
    changes = set(decoded.changes)
    # before it is made smaller: small print is lost to the detector sooner than to the eye
    has_text = source.claims_text or count_text_lines(decoded.pixels) > 0
    pixels = shrink(decoded.pixels, rules.files.max_side)
    if pixels.shape != decoded.pixels.shape:
        changes.add(Change.RESIZED)
    if rules.pixels.faces == "blur":
        pixels, faces = cover_faces(pixels)
        if faces:
            changes.add(Change.FACES)
    return CleanPicture(
        png=encode_png(pixels),
        exact=exact_hash(pixels),
        perceptual=perceptual_hash(pixels),
        thumbnail=thumbnail(pixels).tobytes(),
        changes=frozenset(changes),
        has_text=has_text,
        before=_preview(decoded.pixels) if previews else b"",
        after=_preview(pixels) if previews else b"",
    )


def _preview(pixels: NDArray[np.uint8]) -> bytes:
    image = Image.fromarray(pixels)
    image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=75)
    return buffer.getvalue()


@contextlib.contextmanager
def quiet_decoders() -> Iterator[None]:
    """Whatever level a site logs at, nothing of a file is logged, warned of or printed in here.

    Python's own streams are not enough: libtiff, OpenJPEG and GDCM write to the process's file descriptors. For a
    process that does nothing else meanwhile: other threads are silenced, too.
    """
    loggers = [logging.getLogger(name) for name in _TALKERS]
    levels = [logger.level for logger in loggers]
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        _nowhere(1),
        _nowhere(2),
    ):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def _nowhere(descriptor: int) -> Iterator[None]:
    """What is written to the descriptor in here is lost, and only that: it is what it was afterwards."""
    try:
        kept = os.dup(descriptor)
    except OSError:  # it was closed: there is nothing to keep from talking
        yield
        return
    try:
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null, descriptor)
        os.close(null)
        yield
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)
