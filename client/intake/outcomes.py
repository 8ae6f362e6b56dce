"""What became of each file that was offered to the vault: accepted, converted, refused, or a duplicate.

Reasons and changes are closed lists, so that they can be counted in a receipt without a word of any file's content.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TypeAlias


class Reason(enum.StrEnum):
    """Why a file or a metadata row is refused."""

    BAD_CAPTION = "caption that is too long or not UTF-8"
    BAD_ROW = "metadata row that cannot be read"
    BURNED_IN_TEXT = "text in the picture"
    COLOUR_MODE = "colour mode that is not handled"
    CRASHED = "decoder crashed"
    DAMAGED = "damaged or truncated"
    DICOM_PROFILE = "DICOM header that the confidentiality profile cannot clean"
    EMPTY = "empty file"
    EXPIRED = "consent or use expired"
    FORMAT = "picture format that is not read"
    MISSING = "no such file"
    NO_CONSENT = "no consent"
    NO_PICTURE = "caption beside no picture"
    NO_PIXELS = "DICOM object without pixels"
    NO_SUBJECT = "no subject"
    NOT_A_FILE = "not a regular file"
    NOT_A_PICTURE = "not a picture"
    OPTED_OUT = "opted out"
    OUTSIDE = "leads out of the folder"
    REPEATED_ROW = "second row for one file"
    SEVERAL_FRAMES = "several frames"
    TIMED_OUT = "took too long to decode"
    TOO_LARGE = "too many bytes or pixels"
    TOO_SMALL = "too few pixels"
    TRANSFER_SYNTAX = "DICOM compression that cannot be decoded here"
    UNLISTED = "no row in the metadata"
    UNREADABLE = "cannot be opened"


class Change(enum.StrEnum):
    """What was done to a picture or its caption beyond encoding its pixels anew."""

    ALPHA = "transparency laid on white"
    CAPTION_CUT = "caption shortened"
    CAPTION_SCRUBBED = "caption scrubbed"
    COLOURS = "colours converted to sRGB"
    DICOM = "DICOM header removed, values windowed"
    FACES = "faces covered"
    FIRST_FRAME = "first frame kept"
    METADATA = "metadata removed"
    RESIZED = "made smaller"
    TURNED = "turned upright"
    WIDE_VALUES = "more than 8 bits scaled to 8"


@dataclass(frozen=True, slots=True)
class Accepted:
    """Kept as it was, encoded anew."""


@dataclass(frozen=True, slots=True)
class Converted:
    """Kept, after these changes."""

    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """Not kept. The detail is for the institution's own people and goes into no receipt and no log."""

    reason: Reason
    detail: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Not kept: the same pixels, or almost, were kept before. Whose they are is for the institution's own people."""

    of: str = field(repr=False)
    """Name of the earlier file, or empty for a picture that was in the vault before this intake."""
    distance: int
    """Bits of 64 in which the perceptual hashes differ; 0 as well for equal pixels."""
    is_exact: bool


Outcome: TypeAlias = Accepted | Converted | Refused | Duplicate


def describe(outcome: Outcome) -> tuple[str, str]:
    """Outcome and reason in words that say nothing about the file."""
    match outcome:
        case Accepted():
            return "accepted", ""
        case Converted(changes):
            return "converted", ", ".join(sorted(changes))
        case Refused(reason, _):
            return "refused", reason.value
        case Duplicate(of, _, is_exact):
            where = "of another file" if of else "of a picture in the vault"
            return "duplicate", f"{'equal pixels' if is_exact else 'nearly equal'}, {where}"


def detail(outcome: Outcome) -> str:
    """What the institution's own people are told beyond :func:`describe`; empty if nothing."""
    match outcome:
        case Refused(_, words):
            return words
        case Duplicate(of, distance, is_exact):
            apart = "" if is_exact else f"{distance} of 64 bits of shape apart"
            return ", ".join(filter(None, (f"of {of}" if of else "", apart)))
        case _:
            return ""
