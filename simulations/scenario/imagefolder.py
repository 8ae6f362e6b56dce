"""An ordinary image folder with captions, as a user has it: the Hugging Face ``imagefolder`` convention.

``metadata.jsonl`` lies in the folder, one JSON object a line::

    {"file_name": "ward-3/0001.png", "text": "an axial brain mri, upper part", "subject_id": "p17", "label": "axial"}

What a folder may hold, what its rows mean and what a picture's pixels are is read as an intake reads it
(:mod:`client.intake.folder`, :mod:`client.intake.pictures`); an empty caption is a picture that is learnt without one.
Nothing is written, and nothing is taken out: neither faces nor text, nor what only a DICOM object has.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

from client.intake.deidentify import read_file
from client.intake.folder import PICTURE_SUFFIXES, Rejected, list_folder, locate
from client.intake.outcomes import Change, Reason, Refused
from client.intake.pictures import decode_picture
from client.intake.rules import FileRules, IntakeRules
from client.vault.records import today
from common.errors import BadCaption, BadImage, DataError, EmptyFolder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from client.intake.folder import Candidate

_EXAMPLE: Final = '{"file_name": "0001.png", "text": "what the picture shows"}'
_RULES: Final = IntakeRules(files=FileRules(min_side=1, max_side=0))
"""Small pictures are taken and large ones are not shrunk: what is learnt from is made of all pixels that there are."""
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
    unlisted: tuple[str, ...] = field(repr=False, default=())
    """Picture files that no row names."""
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
    if found.unlisted:
        kinds = Counter(PurePosixPath(name).suffix.lower() for name in found.unlisted)
        _log.warning("%s: %d picture files have no row and are left out: %s", folder, kinds.total(), dict(kinds))
    return found.pictures


def look_at(folder: Path) -> ImageFolder:
    """Read the folder as an intake with the default rules does; there may be no picture.

    Raises:
        BadCaption: As :func:`read_imagefolder`.
        DataError: As :func:`read_imagefolder`.

    """
    listing, day = list_folder(folder, _RULES), today()
    pictures, faults = list[Picture](), list[str]()
    left_out, unlisted, others = list[str](), list[str](), list[str]()
    for entry in listing.entries:
        is_picture = PurePosixPath(entry.name).suffix.lower() in PICTURE_SUFFIXES
        if isinstance(entry, Rejected):
            if entry.refused.reason not in _UNUSED:
                faults.append(f"{entry.where}: {entry.refused.reason}: {entry.refused.detail}")
            elif is_picture:
                unlisted.append(entry.name)
        elif entry.consent is False or (entry.expires is not None and entry.expires <= day):
            left_out.append(entry.name)
        elif entry.where != entry.name or is_picture:
            pictures.append(_picture(entry))
        else:
            others.append(entry.name)
    if faults:
        listed = "\n".join(f"  - {fault}" for fault in faults[:_LISTED])
        rest = f"\n  and {len(faults) - _LISTED} more" if len(faults) > _LISTED else ""
        raise BadCaption(f"{folder}: {len(faults)} row{'s' * (len(faults) > 1)} to mend:\n{listed}{rest}")
    return ImageFolder(
        pictures=tuple(pictures),
        left_out=tuple(left_out),
        unlisted=tuple(unlisted),
        others=tuple(others),
        notes=listing.notes,
    )


def check_images(folder: Path, pictures: Sequence[Picture]) -> None:
    """Decode every picture.

    Raises:
        DataError: Pictures that :func:`decode` refuses; the text lists each of them.

    """
    bad: list[BadImage] = []
    for picture in pictures:
        try:
            decode(folder, picture)
        except BadImage as error:
            bad.append(error)
    if bad:
        listed = "\n".join(f"  - {fault}" for fault in bad)
        raise DataError(f"{folder}: {len(bad)} of {len(pictures)} pictures cannot be used:\n{listed}")


def decode(folder: Path, picture: Picture) -> NDArray[np.uint8]:
    """One picture as RGB uint8 [height, width, 3], as :func:`client.intake.pictures.decode_picture` reads it.

    Raises:
        BadImage: What an intake refuses; or grey values of more than 8 bits, of which an intake makes what it says in
            its report, and nobody is told here.

    """
    path = locate(folder, picture.file_name)
    data = path if isinstance(path, Refused) else read_file(path, _RULES)
    found = data if isinstance(data, Refused) else decode_picture(data, _RULES.files)
    if isinstance(found, Refused):
        raise BadImage(f"{picture.file_name}: {found.reason}: {found.detail}")
    if Change.WIDE_VALUES in found.changes:
        raise BadImage(
            f"{picture.file_name}: holds grey values of more than 8 bits; choose which values become black and white "
            "(the window), and save it as 8-bit PNG"
        )
    return found.pixels


def _picture(found: Candidate) -> Picture:
    return Picture(
        file_name=found.name,
        caption=found.caption,
        subject_id=found.name if found.subject_id is None else found.subject_id,
        label=found.label,
    )
