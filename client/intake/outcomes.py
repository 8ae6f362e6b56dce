"""What became of each file offered to the vault (accepted, converted, refused, a duplicate), and how it is told.

Reasons and changes are closed lists, so that they can be counted in a receipt without a word of any file's content.
Everything else is for the institution's own people: an example of each outcome, the list of files that were left out,
and the contact sheet, on which a person looks at them.
"""

from __future__ import annotations

import base64
import enum
import os
from collections import Counter
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Final, Self, TextIO, TypeAlias

from common.command_line import spelt_out
from common.durable_files import open_new, write_atomically
from common.errors import DataError

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from client.vault.records import NewRecord, Split

SHEET_PICTURES: Final = 400
"""Previews on the contact sheet for each kind of outcome; the rest is counted."""
SUFFIX: Final = ".left-out.txt"
_TEMPLATE: Final = "contact_sheet.html"
_TITLES: Final = (
    ("refused", "Refused"),
    ("duplicate", "Duplicates"),
    ("converted", "Converted"),
    ("accepted", "Accepted"),
)


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One file, for the contact sheet."""

    name: str = field(repr=False)
    outcome: Outcome
    caption_before: str = field(repr=False, default="")
    caption_after: str = field(repr=False, default="")
    before: bytes = field(repr=False, default=b"")
    after: bytes = field(repr=False, default=b"")


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What became of a picture, and the record that goes into the vault with the next batch if it is kept."""

    example: Example
    record: NewRecord | None = None
    caption_rules: tuple[tuple[str, int], ...] = ()


@dataclass(kw_only=True)
class IntakeReport:
    """Counts grow as the intake goes on."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By outcome and reason, both from closed lists."""
    caption_rules: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    subjects: dict[str, set[str]] = field(default_factory=dict, repr=False)
    """Of the pictures that are kept, by side."""
    opted_out_inside: int = 0
    """Subjects on the opt-out list whose pictures are in the vault from before."""
    notes: list[str] = field(default_factory=list, repr=False)
    """What a person should know: sentences for the terminal."""
    state_before: str = ""
    state_after: str = ""
    examples: list[Example] = field(default_factory=list, repr=False)
    _shown: Counter[type] = field(default_factory=Counter, repr=False)
    _held: list[tuple[Split, Verdict]] = field(default_factory=list, repr=False)

    def note(self, example: Example) -> None:
        """Count a file, and keep it as an example while there is room."""
        self.outcomes[describe(example.outcome)] += 1
        kind = type(example.outcome)
        self._shown[kind] += 1
        if self._shown[kind] <= SHEET_PICTURES:
            self.examples.append(example)

    def hold(self, record: NewRecord, verdict: Verdict) -> None:
        """Count a picture's record, which is not in the vault yet."""
        self._held.append((record.split, verdict))
        self.splits[record.split] += 1
        self.subjects.setdefault(record.split, set()).add(record.subject_id)
        self.caption_rules.update(dict(verdict.caption_rules))

    def added(self) -> None:
        """What was held is in the vault."""
        self._held.clear()

    def cut_off(self, number: int) -> None:
        """An intake ended early, with so many records in the vault: take back what never came to be there."""
        if number == self.splits.total():  # all that was held was added, and the word of it did not come back
            self._held.clear()
        for split, verdict in self._held:
            self.outcomes[describe(verdict.example.outcome)] -= 1
            self._shown[type(verdict.example.outcome)] -= 1
            self.splits[split] -= 1
            self.caption_rules.subtract(dict(verdict.caption_rules))
        self._held.clear()
        for counts in (self.outcomes, self.splits, self.caption_rules):
            for key in [key for key, count in counts.items() if count == 0]:
                del counts[key]

    def number(self, kind: type[Outcome]) -> int:
        """Files with this kind of outcome."""
        return self._shown[kind]

    @property
    def kept(self) -> int:
        """Pictures that went into the vault, or would."""
        return self.number(Accepted) + self.number(Converted)

    @property
    def left_out(self) -> int:
        """Files that did not."""
        return self.number(Refused) + self.number(Duplicate)


@dataclass(slots=True)
class LeftOut:
    """A list of the files that an intake left out, one a line, open for writing; a context manager.

    It names files, whose names may say who somebody is: it is its owner's alone, stays beside the vault, and no receipt
    and no log holds a word of it. Lines are written as files are judged, so that an intake that is cut off leaves its
    list.
    """

    path: Path
    _file: TextIO

    @classmethod
    def create(cls, path: Path) -> Self:
        """A new list; one that exists is not overwritten.

        Raises:
            DataError: It cannot be made.

        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = open_new(path)
        except OSError as error:
            raise DataError(
                f"{path}: the list of files cannot be made ({error.strerror}); give another path"
            ) from error
        return cls(path, os.fdopen(descriptor, "w", encoding="utf-8", buffering=1))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()
        if not self.path.stat().st_size:
            self.path.unlink()

    def note(self, example: Example) -> None:
        """Write a file down unless it is kept.

        Raises:
            DataError: The disk does not take it.

        """
        if isinstance(example.outcome, Refused | Duplicate):
            try:
                self._file.write(f"{line(example)}\n")
            except OSError as error:
                raise DataError(f"{self.path}: {error.strerror}; make room and begin again") from error


def line(example: Example) -> str:
    """Outcome, reason, name and detail; what does not print is spelt out, so that a name cannot write a line."""
    outcome, why = describe(example.outcome)
    told = detail(example.outcome)
    more = f" ({told})" if told else ""
    return spelt_out(f"{outcome}: {why}: {example.name}{more}")


def write_contact_sheet(report: IntakeReport, path: Path, *, now: datetime) -> None:
    """Write or replace the page of before and after: a link in its place is replaced and not followed.

    It holds what must not leave: previews and captions as they came in. So it is one file, readable by its owner alone,
    that loads nothing and runs no script.
    """
    write_atomically(path, render_contact_sheet(report, now=now).encode(errors="backslashreplace"))


def render_contact_sheet(report: IntakeReport, *, now: datetime) -> str:
    """The page's HTML; everything from files is escaped."""
    import jinja2  # noqa: PLC0415 - only a dry run needs this extra

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(resources.files("client.intake").joinpath(_TEMPLATE).read_text("utf-8"))
    shown = [_shown(example) for example in report.examples]
    sections = [(title, [each for each in shown if each["outcome"] == kind]) for kind, title in _TITLES]
    return template.render(
        time=now.isoformat(timespec="seconds"),
        mode="dry run, nothing was added",
        counts=sorted(report.outcomes.items()),
        sections=[(title, examples) for title, examples in sections if examples],
        limit=SHEET_PICTURES,
    )


def _shown(example: Example) -> dict[str, str]:
    outcome, why = describe(example.outcome)
    return {
        "name": example.name,
        "outcome": outcome,
        "why": why,
        "detail": detail(example.outcome),
        "caption_before": example.caption_before,
        "caption_after": example.caption_after,
        "before": base64.b64encode(example.before).decode(),
        "after": base64.b64encode(example.after).decode(),
    }
