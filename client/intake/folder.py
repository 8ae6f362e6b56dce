"""What lies in a folder that is offered to the vault: every file, and what its metadata says of it.

Nothing is opened but metadata (:mod:`client.intake.metadata`) and captions beside pictures
(:mod:`client.intake.metadata`). Symbolic links to folders are not followed, and a file that is in fact elsewhere, by a
link or by ``..`` in the metadata, is refused. Hidden files (names beginning with a dot) do not count.

What becomes of a file rests on its own row, its own bytes and the rules, with these exceptions, where others could be
speaking of it: two rows of one file that disagree refuse it; a row that names no file that is there, or cannot be read,
refuses files without a row; and where some rows name their subject and others do not, the rules must say what that
means before anything is taken.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final, TypeAlias

from client.intake.metadata import BadRow, Row, Sidecars, above, find_metadata, read_rows
from client.intake.outcomes import Reason, Refused
from client.intake.subjects import clean_subject_id
from client.vault.records import MAX_TEXT_BYTES
from common.errors import DataError, EmptyFolder

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import date

    from client.intake.rules import IntakeRules

PICTURE_SUFFIXES: Final = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
)
_SHOWN: Final = 20
"""Rows and keys spelt out in one message; the rest are counted."""
_ROWS_SHOWN: Final = 5
"""Bad rows spelt out on the terminal; all are in the list of what was left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A regular file of the folder that may become a record."""

    name: str = field(repr=False)
    """Path below the folder, with ``/``."""
    path: Path = field(repr=False)
    where: str = field(repr=False, default="")
    """File and line of its row; its name if it has none."""
    caption: str = field(repr=False, default="")
    subject_id: str | None = field(repr=False, default=None)
    """None: a DICOM object's own patient, else this file by itself."""
    label: str = field(repr=False, default="")
    consent: bool | None = None
    expires: date | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """A file or row that is refused before anything is decoded."""

    name: str = field(repr=False)
    refused: Refused
    where: str = field(repr=False, default="")


Listed: TypeAlias = Candidate | Rejected


@dataclass(frozen=True, slots=True)
class Listing:
    """Everything in a folder."""

    entries: tuple[Listed, ...]
    """Every file and every unusable row, files in the order of the metadata, then by name."""
    notes: tuple[str, ...] = field(repr=False, default=())
    """What a person should know: sentences for the terminal."""


def list_folder(folder: Path, rules: IntakeRules) -> Listing:
    """Look at the folder.

    Raises:
        DataError: No such folder, one that cannot be read, or metadata that cannot be trusted as a whole.
        EmptyFolder: Nothing in it.

    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder that holds the pictures")
    return _Lister(folder, rules).listing()


class _Lister:
    """One look at one folder."""

    def __init__(self, folder: Path, rules: IntakeRules) -> None:
        self._folder, self._rules = folder, rules
        self._entries: list[Listed] = []
        self._names = self._walk()
        self._by_form: dict[str, list[str]] = {}
        for name in self._names:
            self._by_form.setdefault(unicodedata.normalize("NFC", name), []).append(name)
        self._sidecars = Sidecars(self._names)
        self._taken: dict[Path, int] = {}
        """Place in the entries of the file that a row named first."""
        self._spoken_for: set[str] = set()
        self._badly_listed: set[str] = set()
        """Files whose row cannot be used."""
        self._bad_paths: set[Path] = set()
        self._is_unplaced = False
        """Whether a row may speak of any file."""
        self._unused: Counter[str] = Counter()
        self._other_captions = 0

    def listing(self) -> Listing:
        metadata = find_metadata(self._folder, (name for name in self._names if name not in self._sidecars.names))
        for name in metadata:
            self._read(name)
        self._entries = [self._unless_bad(entry) for entry in self._entries]
        rest = self._names.keys() - self._spoken_for - {*metadata} - self._sidecars.names
        for name in sorted(rest):
            self._entries.append(self._without_row(name, is_listed=bool(metadata)))
        if not self._entries and not metadata:
            raise EmptyFolder(f"{self._folder}: no files")
        _check_subjects(self._folder, self._entries, self._rules)
        return Listing(tuple(self._entries), tuple(self._notes(has_metadata=bool(metadata))))

    def _walk(self) -> dict[str, None]:
        """Names of everything but folders, in order; a folder that cannot be read is listed as refused."""

        def note(error: OSError) -> None:
            name = Path(os.fsdecode(error.filename)).relative_to(self._folder).as_posix()
            self._entries.append(
                Rejected(_printable(name), Refused(Reason.UNREADABLE, f"folder: {error.strerror}"), _printable(name))
            )

        names: list[str] = []
        for root, folders, files in os.walk(self._folder, onerror=note, followlinks=False):
            linked = [name for name in folders if (Path(root) / name).is_symlink()]
            folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in linked)
            below = Path(root).relative_to(self._folder)
            names += [(below / name).as_posix() for name in (*files, *linked) if not name.startswith(".")]
        return dict.fromkeys(sorted(names))

    def _read(self, metadata: str) -> None:
        """The rows of one metadata file."""
        base = PurePosixPath(metadata).parent
        try:
            for row in read_rows(self._folder / metadata, metadata):
                self._add(base, row)
                self._unused.update(row.unused if isinstance(row, Row) else ())
        except OSError as error:
            raise DataError(f"{self._folder / metadata}: cannot be read ({error.strerror}); mend its rights") from error

    def _add(self, base: PurePosixPath, row: Row | BadRow) -> None:
        name = None if row.file_name is None else self._find(base, row.file_name)
        found = Refused(Reason.MISSING) if name is None else locate(self._folder, name)
        if isinstance(row, BadRow):
            self._entries.append(Rejected(_printable(row.where), row.refused, row.where))
            self._is_unplaced |= isinstance(found, Refused)
            self._badly_listed |= set() if name is None else {name}
            self._bad_paths |= {found} if isinstance(found, Path) else set()
            return
        name = name or row.file_name
        self._spoken_for.add(name)
        if isinstance(found, Refused):
            self._is_unplaced |= found.reason is Reason.MISSING
            detail = found.detail + self._hint(name) if found.reason is Reason.MISSING else found.detail
            self._entries.append(Rejected(_printable(name), Refused(found.reason, detail), row.where))
            return
        entry = self._candidate(name, found, row)
        if found in self._taken:
            self._repeated(self._taken[found], entry, row)
            return
        self._taken[found] = len(self._entries)
        self._entries.append(entry)

    def _repeated(self, place: int, entry: Listed, row: Row) -> None:
        """A second row of one file: the first counts, unless they disagree on what may be done with it."""
        first = self._entries[place]
        refused = Refused(Reason.REPEATED_ROW, f"already listed in {first.where}; keep one row a picture")
        self._entries.append(Rejected(row.where, refused, row.where))
        if isinstance(first, Candidate) and (not isinstance(entry, Candidate) or _terms(first) != _terms(entry)):
            unlike = Refused(Reason.REPEATED_ROW, f"{row.where} says otherwise of subject, consent or expiry; keep one")
            self._entries[place] = Rejected(first.name, unlike, first.where)

    def _unless_bad(self, entry: Listed) -> Listed:
        """A file that has a good row is refused as well if a row that cannot be used speaks of it."""
        if isinstance(entry, Candidate) and entry.path in self._bad_paths:
            return Rejected(
                entry.name, Refused(Reason.REPEATED_ROW, "another row of it cannot be used: mend that"), entry.where
            )
        return entry

    def _find(self, base: PurePosixPath, written: str) -> str | None:
        """The name that a row means, with ``/`` and as the disk spells it; None if it cannot be one."""
        name = written.replace("\\", "/")
        if not name.strip("/ ") or name.startswith("/"):
            return name or None
        name = str(base / name)
        alike = self._by_form.get(unicodedata.normalize("NFC", name), [])
        return name if name in self._names or len(alike) != 1 else alike[0]

    def _hint(self, name: str) -> str:
        near = [each for each in self._names if each.casefold() == name.casefold()]
        return f"; did you mean {near[0]!r}?" if near else ""

    def _candidate(self, name: str, path: Path, row: Row) -> Listed:
        """What a row, and the caption beside the file, say."""
        caption: str | Refused = row.caption
        if not row.caption.strip():
            caption = self._sidecars.read(self._folder, name)
        elif self._sidecars.beside(name):
            beside = self._sidecars.read(self._folder, name)
            self._other_captions += isinstance(beside, Refused) or beside.strip() != row.caption.strip()
        if isinstance(caption, Refused):
            return Rejected(name, caption, row.where)
        parts = PurePosixPath(name).parent.parts
        by_folder = clean_subject_id(parts[0]) if parts and self._rules.subjects.default == "folder" else None
        return Candidate(
            name=name,
            path=path,
            where=row.where,
            caption=caption,
            subject_id=row.subject_id if row.subject_id is not None else by_folder,
            label="/".join(parts) if row.label is None else row.label,
            consent=row.consent,
            expires=row.expires,
        )

    def _without_row(self, name: str, *, is_listed: bool) -> Listed:
        """A file that no row names."""
        shown = _printable(name)
        if name in self._sidecars.alone:
            return Rejected(shown, Refused(Reason.NO_PICTURE, "nothing beside it has its name"), shown)
        if is_listed and self._rules.files.unlisted == "refuse":
            return Rejected(shown, Refused(Reason.UNLISTED, "add a row to the metadata"), shown)
        if name in self._badly_listed or self._is_unplaced:
            return Rejected(shown, Refused(Reason.UNLISTED, "a row that cannot be used may be its own: mend it"), shown)
        if "\\" in name:
            return Rejected(shown, Refused(Reason.UNREADABLE, "its name holds a backslash; rename it"), shown)
        path = locate(self._folder, name)
        if isinstance(path, Refused):
            return Rejected(shown, path, shown)
        return self._candidate(name, path, Row(where=shown, file_name=name))

    def _notes(self, *, has_metadata: bool) -> Iterable[str]:
        bad = [each for each in self._entries if isinstance(each, Rejected) and each.refused.reason is Reason.BAD_ROW]
        yield from (f"{_printable(each.where)}: {each.refused.detail}" for each in bad[:_ROWS_SHOWN])
        if self._unused:
            keys = ", ".join(f"{_printable(key)} ({number})" for key, number in sorted(self._unused.items())[:_SHOWN])
            yield f"keys of the metadata that are not used: {keys}"
        if self._other_captions:
            yield f"{self._other_captions} captions beside pictures were not read: their rows say something else"
        if not has_metadata and (found := above(self._folder)):
            yield f"{found} is not read: it lies above the folder; give the folder above if it speaks of these pictures"
        spelt: dict[str, set[str]] = {}
        for entry in self._entries:
            if isinstance(entry, Candidate) and entry.subject_id is not None:
                spelt.setdefault(entry.subject_id.casefold(), set()).add(entry.subject_id)
        if many := sum(len(each) > 1 for each in spelt.values()):
            yield f"{many} subjects are written in several letter cases, and each way counts as a subject of its own"


def _terms(entry: Candidate) -> tuple[object, ...]:
    return entry.subject_id, entry.consent, entry.expires


def _check_subjects(folder: Path, entries: Iterable[Listed], rules: IntakeRules) -> None:
    """A picture without a subject, beside others with one, may show anybody: a person says what that means."""
    if rules.subjects.default != "ask":
        return
    found = [each for each in entries if isinstance(each, Candidate)]
    without = [
        each
        for each in found
        if each.subject_id is None and PurePosixPath(each.name).suffix.casefold() in PICTURE_SUFFIXES
    ]
    if without and any(each.subject_id is not None for each in found):
        shown = "".join(f"\n  - {_printable(each.where)}: has no subject_id" for each in without[:_SHOWN])
        rest = f"\n  and {len(without) - _SHOWN} more" if len(without) > _SHOWN else ""
        raise DataError(
            f"{folder}: {len(without)} pictures have no subject_id while others have, and may show the same people; "
            'give it in every row, or set subjects.default in ingest.toml to "refuse" or "file"'
            f"{shown}{rest}"
        )


def locate(folder: Path, name: str) -> Path | Refused:  # noqa: PLR0911 - one check a line
    """Where the named file really is, or why it is not read."""
    pure = PurePosixPath(name)
    if not pure.name or "\0" in name or "\\" in name or pure.is_absolute() or ".." in pure.parts:
        return Refused(Reason.OUTSIDE, "wanted a path below the folder, with / and without ..")
    try:
        name.encode()
        path = (folder / pure).resolve(strict=True)
        mode = path.stat().st_mode
    except FileNotFoundError:
        return Refused(Reason.MISSING, "mend the name, or take the row out")
    except UnicodeEncodeError:
        return Refused(Reason.UNREADABLE, "its name is not UTF-8; rename it")
    except (OSError, RuntimeError, ValueError) as error:
        return Refused(Reason.UNREADABLE, getattr(error, "strerror", None) or "a link to itself")
    if not path.is_relative_to(folder.resolve()):
        return Refused(Reason.OUTSIDE, "a link that leads out of the folder; copy the file into the folder")
    if len(str(pure).encode()) > MAX_TEXT_BYTES:
        return Refused(Reason.UNREADABLE, "its name is too long")
    return path if stat.S_ISREG(mode) else Refused(Reason.NOT_A_FILE, "a folder, pipe, socket or device")


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()[:200]
