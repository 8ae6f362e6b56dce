"""What lies in a folder that is offered to the vault: every file, and what its metadata says of it.

Nothing is opened but metadata and sidecars. Symbolic links to folders are not followed, and a file that is in fact
elsewhere, by a link or by ``..`` in the metadata, is refused. Hidden files (names beginning with a dot) do not count.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final, TypeAlias

from client.vault.captions import MAX_RAW_CHARACTERS
from client.vault.metadata_rows import BadRow, Row, read_csv, read_jsonl
from client.vault.outcomes import Reason, Refused
from client.vault.records import MAX_TEXT_BYTES
from common.errors import DataError, EmptyFolder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import date

    from client.vault.intake_rules import IntakeRules

METADATA: Final = ("metadata.jsonl", "metadata.csv")
_SIDECAR: Final = ".txt"


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A regular file of the folder that may become a record."""

    name: str = field(repr=False)
    """Path below the folder, with ``/``."""
    path: Path = field(repr=False)
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


Listed: TypeAlias = Candidate | Rejected


def list_folder(folder: Path, rules: IntakeRules) -> tuple[Listed, ...]:
    """Every file and every unusable row, files in the order of the metadata, then by name.

    Raises:
        DataError: No such folder, one that cannot be read, or two metadata files.
        EmptyFolder: Nothing in it.

    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder that holds the pictures")
    listed: list[Listed] = []
    files = _walk(folder, listed)
    rows = _metadata(folder)
    listed += _from_rows(folder, rows, rules) if rows is not None else ()
    rest = files.keys() - {each.name for each in listed} - {*METADATA} - _sidecars(files)
    for name in sorted(rest):
        if rows is not None and rules.files.unlisted == "refuse":
            listed.append(Rejected(name, Refused(Reason.UNLISTED, "add a row to the metadata")))
        else:
            listed.append(_candidate(folder, Row(where=name, file_name=name), rules, sidecars=True))
    if not listed:
        raise EmptyFolder(f"{folder}: no files")
    return tuple(listed)


def _walk(folder: Path, listed: list[Listed]) -> dict[str, None]:
    """Names of everything but folders, in order; a folder that cannot be read is listed as refused."""

    def note(error: OSError) -> None:
        name = Path(os.fsdecode(error.filename)).relative_to(folder).as_posix()
        listed.append(Rejected(_printable(name), Refused(Reason.UNREADABLE, f"folder: {error.strerror}")))

    names: list[str] = []
    for root, folders, files in os.walk(folder, onerror=note, followlinks=False):
        linked = [name for name in folders if (Path(root) / name).is_symlink()]
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in linked)
        below = Path(root).relative_to(folder)
        names += [(below / name).as_posix() for name in (*files, *linked) if not name.startswith(".")]
    return dict.fromkeys(sorted(names))


def _sidecars(files: dict[str, None]) -> set[str]:
    """Text files that are the caption of a file beside them."""
    texts = {name for name in files if name.endswith(_SIDECAR)}
    others = files.keys() - texts
    stems = {str(PurePosixPath(name).with_suffix("")) for name in others} | others
    return {name for name in texts if name.removesuffix(_SIDECAR) in stems}


def _metadata(folder: Path) -> Iterator[Row | BadRow] | None:
    found = [folder / name for name in METADATA if (folder / name).is_file() and not (folder / name).is_symlink()]
    if len(found) > 1:
        raise DataError(f"{folder}: both {' and '.join(METADATA)}; keep one")
    if not found:
        return None
    if not os.access(found[0], os.R_OK):
        raise DataError(f"{found[0]}: cannot be read; mend its rights")
    return read_csv(found[0]) if found[0].suffix == ".csv" else read_jsonl(found[0])


def _from_rows(folder: Path, rows: Iterator[Row | BadRow], rules: IntakeRules) -> Iterator[Listed]:
    seen: set[Path] = set()
    for row in rows:
        if isinstance(row, BadRow):
            yield Rejected(row.where, row.refused)
            continue
        found = _candidate(folder, row, rules, sidecars=False)
        if isinstance(found, Candidate):
            if found.path in seen:
                yield Rejected(row.where, Refused(Reason.REPEATED_ROW, "the first row counts"))
                continue
            seen.add(found.path)
        yield found


def _candidate(folder: Path, row: Row, rules: IntakeRules, *, sidecars: bool) -> Listed:
    """Find the file and the caption that lies beside it."""
    where = _locate(folder, row.file_name)
    if isinstance(where, Refused):
        return Rejected(_printable(row.file_name), where)
    name = str(PurePosixPath(row.file_name))
    caption = _sidecar(where) if sidecars else row.caption
    if isinstance(caption, Refused):
        return Rejected(name, caption)
    parts = PurePosixPath(name).parent.parts
    by_folder = parts[0] if parts and rules.subjects.default == "folder" else None
    return Candidate(
        name=name,
        path=where,
        caption=caption,
        subject_id=row.subject_id if row.subject_id is not None else by_folder,
        label="/".join(parts) if row.label is None else row.label,
        consent=row.consent,
        expires=row.expires,
    )


def _locate(folder: Path, name: str) -> Path | Refused:  # noqa: PLR0911 - one check a line
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


def _sidecar(path: Path) -> str | Refused:
    """The text beside a picture: ``a.txt`` or ``a.png.txt`` for ``a.png``; empty if there is none."""
    for beside in (path.with_suffix(_SIDECAR), path.with_name(path.name + _SIDECAR)):
        if beside == path or not beside.is_file() or beside.is_symlink():
            continue
        try:
            with beside.open("rb") as file:
                data = file.read(4 * MAX_RAW_CHARACTERS + 1)
            return data.decode("utf-8-sig")
        except OSError as error:
            return Refused(Reason.BAD_CAPTION, f"{beside.name}: {error.strerror}")
        except UnicodeDecodeError as error:
            return Refused(Reason.BAD_CAPTION, f"{beside.name}: not UTF-8 at byte {error.start}")
    return ""


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()[:200]
