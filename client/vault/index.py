"""The vault's SQLite file: its rows, its tables, and SQLite's failures in our own words.

Pictures do not lie in it. Ten thousand of them are gigabytes, which would pass through the write-ahead log and so be
written twice, be copied as one by every backup, and be lost together when one page goes bad. A file for each keeps the
index at a few megabytes: it is checked whole at every opening, and rewritten whole when something is erased.

Every column is a number, a random name, a keyed tag or sealed.
"""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, TypeVar

from client.vault.database import Fault, connect, created, damage, fault_of, marks, snapshot, transaction
from client.vault.errors import VaultBusy, VaultDamaged, VaultUnavailable, WrongVaultVersion
from common.errors import VaultError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

APPLICATION_ID: Final = 0x44525654
"""Marks the file as a vault's index ("DRVT")."""
SCHEMA_VERSION: Final = 1


class SubjectRow(NamedTuple):
    """A subject: its key, wrapped by the vault's, and its id, sealed by its own."""

    subject: int
    tag: bytes
    wrapped: bytes
    sealed: bytes


class RecordRow(NamedTuple):
    """A picture: its key, wrapped by its subject's; its facts, sealed by its own; and the name of its file."""

    number: int
    record_id: bytes
    subject: int
    exact_tag: bytes
    wrapped: bytes
    facts: bytes
    blob: bytes


class DerivedRow(NamedTuple):
    """Something computed from a picture: what kind, and the name of its file."""

    record_id: bytes
    kind_tag: bytes
    blob: bytes


class RunRow(NamedTuple):
    """A run that trained on the records up to a number."""

    tag: bytes
    high_water: int
    sealed: bytes


class PastRow(NamedTuple):
    """The digest of the vault's state after some earlier change."""

    generation: int
    digest: bytes


class Header(NamedTuple):
    """What is read before there is a key."""

    vault: bytes
    slot: bytes
    wrapped: bytes
    state: bytes


Row: TypeAlias = SubjectRow | RecordRow | DerivedRow | RunRow | PastRow

TABLES: Final[dict[type, str]] = {
    SubjectRow: "subjects",
    RecordRow: "records",
    DerivedRow: "derived",
    RunRow: "runs",
    PastRow: "past",
}
SCHEMA: Final = (
    """CREATE TABLE header (
        id INTEGER PRIMARY KEY CHECK (id = 1), vault BLOB NOT NULL, slot BLOB NOT NULL, wrapped BLOB NOT NULL,
        state BLOB NOT NULL, unscrubbed INTEGER NOT NULL DEFAULT 0
    ) STRICT""",
    """CREATE TABLE subjects (
        subject INTEGER PRIMARY KEY, tag BLOB NOT NULL UNIQUE, wrapped BLOB NOT NULL, sealed BLOB NOT NULL
    ) STRICT""",
    """CREATE TABLE records (
        number INTEGER PRIMARY KEY, record_id BLOB NOT NULL UNIQUE, subject INTEGER NOT NULL, exact_tag BLOB NOT NULL,
        wrapped BLOB NOT NULL, facts BLOB NOT NULL, blob BLOB NOT NULL UNIQUE
    ) STRICT""",
    """CREATE TABLE derived (
        record_id BLOB NOT NULL, kind_tag BLOB NOT NULL, blob BLOB NOT NULL UNIQUE, PRIMARY KEY (record_id, kind_tag)
    ) STRICT""",
    "CREATE TABLE runs (tag BLOB PRIMARY KEY, high_water INTEGER NOT NULL, sealed BLOB NOT NULL) STRICT",
    "CREATE TABLE past (generation INTEGER PRIMARY KEY, digest BLOB NOT NULL) STRICT",
    "CREATE INDEX by_subject ON records (subject)",
    "CREATE INDEX by_exact ON records (exact_tag)",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)
_RESTORE: Final = "restore the vault from a backup"
R = TypeVar("R", bound="Row")


class Index:
    """An open index. Its methods raise the errors of :mod:`client.vault.errors` and none of SQLite's."""

    def __init__(self, path: Path, *, busy_seconds: float) -> None:
        """Open an index that exists.

        Raises:
            VaultDamaged: Not an index, or a page of it is bad.
            WrongVaultVersion: Of another version.
            VaultUnavailable: Unreadable.

        """
        self.path: Final = path
        with self._translated():
            self._store: Final = connect(path, busy_seconds=busy_seconds)
        try:
            with self._translated():
                self._check_file()
        except VaultError:
            self._store.close()
            raise

    @classmethod
    def create(cls, path: Path, header: Header, *, busy_seconds: float) -> None:
        """Make an index without rows, durably and whole or not at all.

        Raises:
            VaultUnavailable: It cannot be written.

        """
        partial = path.with_suffix(".partial")
        try:
            with created(partial, SCHEMA, busy_seconds=busy_seconds) as store:
                store.execute("INSERT INTO header (id, vault, slot, wrapped, state) VALUES (1, ?, ?, ?, ?)", header)
            partial.replace(path)
        except (OSError, sqlite3.Error) as error:
            raise VaultUnavailable(f"{path.parent}: no vault can be created here ({error})") from error

    def close(self) -> None:
        """Close the connection; the last one of all empties the write-ahead log."""
        with self._translated():
            self._store.close()

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Everything read inside comes from one moment."""
        with self._translated(), snapshot(self._store):
            yield

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside happens, durably, or nothing does."""
        with self._translated(), transaction(self._store):
            yield

    def header(self) -> Header:
        """The header.

        Raises:
            VaultDamaged: It is gone.

        """
        found = self._store.execute("SELECT vault, slot, wrapped, state FROM header").fetchone()
        if found is None:
            raise VaultDamaged(f"{self.path}: its header is gone; {_RESTORE}")
        return Header(*found)

    def set_header(self, header: Header) -> None:
        """Put another in its place."""
        self._store.execute("UPDATE header SET vault = ?, slot = ?, wrapped = ?, state = ?", header)

    def rows(self, kind: type[R], where: str = "", *values: bytes | int) -> list[R]:
        """Rows for which ``where`` holds, in the order of their numbers; all of them if it is empty."""
        condition = f"WHERE {where}" if where else ""
        query = f"SELECT {', '.join(kind._fields)} FROM {TABLES[kind]} {condition} ORDER BY {kind._fields[0]}"  # noqa: S608 - our own names
        return [kind(*found) for found in self._store.execute(query, values)]

    def every_row(self) -> Iterator[Row]:
        """Every row of every table."""
        for kind in TABLES:
            yield from self.rows(kind)

    def insert(self, row: Row) -> None:
        """Add a row."""
        marks = ", ".join("?" * len(row))
        self._store.execute(f"INSERT INTO {TABLES[type(row)]} ({', '.join(row._fields)}) VALUES ({marks})", row)  # noqa: S608 - our own names

    def delete(self, row: Row) -> None:
        """Take out exactly this row."""
        same = " AND ".join(f"{field} = ?" for field in row._fields)
        self._store.execute(f"DELETE FROM {TABLES[type(row)]} WHERE {same}", row)  # noqa: S608 - our own names

    def mark_unscrubbed(self) -> None:
        """Write down, in the same transaction as a deletion, that its traces are still to be wiped."""
        self._store.execute("UPDATE header SET unscrubbed = 1")

    def scrub(self, *, always: bool) -> None:
        """Wipe what deleted rows left in the file and in the write-ahead log, if there may be any.

        ``secure_delete`` overwrites deleted cells, but not the copies that moving cells between pages leaves in unused
        space, and never the log. So the file is written anew and the log cut to nothing.

        Raises:
            VaultBusy: A reader still holds the old pages; the deletion itself has happened.

        """
        with self._translated():
            if not always and not self._store.execute("SELECT unscrubbed FROM header").fetchone()[0]:
                return
            self._store.execute("VACUUM")
            if self._store.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                raise VaultBusy(
                    f"{self.path}: rows were deleted, but a reader keeps their old pages in use; close it, then open "
                    "the vault for writing, which wipes them"
                )
            self._store.execute("UPDATE header SET unscrubbed = 0")

    def _check_file(self) -> None:
        mark, version = marks(self._store)
        if mark != APPLICATION_ID:
            raise VaultDamaged(f"{self.path}: not a vault's index; {_RESTORE}")
        if version != SCHEMA_VERSION:
            raise WrongVaultVersion(
                f"{self.path}: wanted vault version {SCHEMA_VERSION}, got {version}; use the Darkroom of that time"
            )
        if found := damage(self._store):
            raise VaultDamaged(f"{self.path}: damaged ({found}); {_RESTORE}")

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _in_our_words(self.path, error) from error


def _in_our_words(path: Path, error: sqlite3.Error) -> VaultError:
    fault = fault_of(error)
    if fault in {Fault.DAMAGED, Fault.CONSTRAINT}:
        return VaultDamaged(f"{path}: damaged, or not a vault's index ({error}); {_RESTORE}")
    if fault is Fault.BUSY:
        return VaultBusy(f"{path}: another process is writing to it; try again when it is done")
    reason = "the disk is full" if fault is Fault.FULL else str(error)
    return VaultUnavailable(f"{path}: {reason}; nothing was changed")
