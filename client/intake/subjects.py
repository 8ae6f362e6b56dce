"""Who a picture shows, under which name, and on which side of the hold-out split.

Guarantee: without the intake key a pseudonym tells nothing about the patient's number, and no number can be tested
against it.
Guarantee: a subject has one side. It depends on the key and the subject alone, and for a subject that the vault holds
it is the side that the vault has, whatever the share is now.

The key comes from the site's identity and not from the vault, whose own keys change when it is rotated: re-ingested
patients must fall together with their earlier pictures.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from client.intake.captions import without_blanks
from client.intake.rules import read_list
from client.vault.records import normal_subject_id
from common.crypto.primitives import Label, derive_key, keyed_tag

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from client.vault.records import Split
    from common.crypto.primitives import Identity, Secret

_DIGEST: Final = re.compile(r"(?:sha256:)?([0-9a-f]{64})(?:\s.*)?", re.IGNORECASE)
"""Also as ``sha256sum`` writes it, before the file's name."""
_SEPARATOR: Final = re.compile(r"[;,\t|]")
_WRAPPING: Final = " \t\"'`\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb[](){}<>"
_COLUMN: Final = re.compile(
    r"(?:subject|patient|person|participant|donor|mrn|pid|sha256|file)s?(?:id|ids|no|nr|number|name|key|code|s)?|ids?"
)
_PADDING: Final = re.compile(r"(?<!\d)0+(?=\d)")
_UNWRITTEN: Final = re.compile(r"[\s_.\-\u2010-\u2015\u2212]+")
_PSEUDONYM_DIGITS: Final = 32
_SCALE: Final = 2**64


@dataclass(frozen=True, slots=True)
class IntakeKey:
    """Names patients and draws the hold-out."""

    secret: Secret

    @classmethod
    def of(cls, identity: Identity) -> IntakeKey:
        """The site's key: the same as long as the site keeps its identity."""
        return cls(derive_key(identity.seed(), salt=Label.INTAKE_KEY.value, info=b""))

    def pseudonym(self, patient: str) -> str:
        """A subject id for a patient's number (128 bits: no two patients share one by chance)."""
        number = normal_subject_id(patient).encode("utf-8", "surrogatepass")
        return f"patient-{keyed_tag(self.secret, Label.INTAKE_PSEUDONYM, number).hex()[:_PSEUDONYM_DIGITS]}"

    def split(self, subject_id: str, *, holdout: float) -> Split:
        """Held out with this probability, over keys."""
        subject = normal_subject_id(subject_id).encode("utf-8", "surrogatepass")
        drawn = int.from_bytes(keyed_tag(self.secret, Label.INTAKE_SPLIT, subject)[:8], "big")
        return "holdout" if drawn < round(holdout * _SCALE) else "train"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of an opt-out list: every way of writing that it may stand for."""

    names: frozenset[str] = field(repr=False)
    """Subject ids, or patients' numbers."""
    digest: bytes | None = field(repr=False, default=None)
    """SHA-256 of a file."""


@dataclass(frozen=True, slots=True)
class OptOut:
    """Who and what must not enter: subject ids or patients' numbers, and SHA-256 of files.

    Compared loosely, so that nobody who is on the list is let in for another way of writing: letter case, Unicode form,
    blanks, hyphens, padding zeros, quotes and characters that do not show make no difference, and neither does the
    issuer of a patient's number. Too many may be covered rather than too few: with ``1-11``, ``11-1`` is.
    """

    entries: tuple[Entry, ...] = field(default=(), repr=False)
    _names: dict[str, set[int]] = field(init=False, repr=False)
    _digests: dict[bytes, int] = field(init=False, repr=False)
    _met: set[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Make the tables to look up in."""
        names: dict[str, set[int]] = {}
        for number, entry in enumerate(self.entries):
            for key in {key for name in entry.names for key in _listed_as(name)}:
                names.setdefault(key, set()).add(number)
        object.__setattr__(self, "_names", names)
        digests = {entry.digest: number for number, entry in enumerate(self.entries) if entry.digest is not None}
        object.__setattr__(self, "_digests", digests)
        object.__setattr__(self, "_met", set())

    @classmethod
    def of(cls, lines: Sequence[str]) -> OptOut:
        """One entry a line. Of a table (``;``, ``,``, tabs or ``|``), the columns that its first line names, or all.

        64 hexadecimal digits are a file's digest, and may be a subject as well.
        """
        rows = [[_unwrapped(cell) for cell in _SEPARATOR.split(line)] for line in lines]
        named = [_COLUMN.fullmatch(_loosely(cell)) is not None for cell in rows[0]] if rows else []
        if any(named):
            rows = [[cell for cell, is_named in zip(row, named, strict=False) if is_named] for row in rows]
        return cls(tuple(_entry(row, line) for row, line in zip(rows, lines, strict=True)))

    @classmethod
    def read(cls, path: Path) -> OptOut:
        """The entries of a file; see :meth:`of`.

        Raises:
            ConfigError: Missing or not UTF-8.

        """
        return cls.of(read_list(path))

    def covers(self, subjects: tuple[str, ...], file_digest: bytes) -> bool:
        """Whether the file, or anybody it may be known as, is on the list."""
        found = {self._digests[file_digest]} if file_digest in self._digests else set[int]()
        for subject in subjects:
            loose = _loosely(subject)
            number = loose.rpartition("/")[2]
            for key in (loose, number, *([f"/{loose}"] if "/" not in loose else [])):
                found |= self._names.get(key, set())
        self._met.update(found)
        return bool(found)

    @property
    def subjects(self) -> frozenset[str]:
        """All names on the list, as they are written there."""
        return frozenset(name for entry in self.entries for name in entry.names)

    @property
    def met(self) -> int:
        """Entries that covered anything so far."""
        return len(self._met)


def _entry(cells: list[str], line: str) -> Entry:
    digests = [found.group(1) for cell in (*cells, line.strip()) if (found := _DIGEST.fullmatch(cell))]
    names = {cell for cell in (*cells, _unwrapped(line)) if _loosely(cell)}
    return Entry(frozenset(names), bytes.fromhex(digests[0]) if digests else None)


def _unwrapped(cell: str) -> str:
    return clean_subject_id(cell).strip(_WRAPPING)


def clean_subject_id(subject_id: str) -> str:
    """One spelling without characters that do not show: they would make two subjects of one person."""
    visible = "".join(char for char in without_blanks(subject_id) if unicodedata.category(char) not in {"Cf", "Cc"})
    return normal_subject_id(visible)


def _loosely(subject: str) -> str:
    """What is left of an id when everything is taken away that only writing adds."""
    folded = unicodedata.normalize("NFKC", clean_subject_id(subject)).casefold().strip(_WRAPPING)
    return _PADDING.sub("", _UNWRITTEN.sub("", _PADDING.sub("", folded)))


def _listed_as(name: str) -> Iterator[str]:
    """The keys under which an entry is looked up; without its issuer, such as a ward, if it names one."""
    loose = _loosely(name)
    issuer, _, number = loose.rpartition("/")
    if loose:
        yield loose
    if number and any(char.isalpha() for char in issuer):
        yield f"/{number}"
