"""The ledger's file: its schema, its rows and their chain, and SQLite's failures in our own words.

SQLite checks its structure and not its content, so each row also holds a hash over itself and the row before: a flipped
bit in a noise multiplier is found before anything is composed from it.
"""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from client.vault.database import Fault, connect, created, damage, fault_of, marks, scalar, snapshot
from common.crypto.primitives import Label, digest
from common.errors import LedgerCorrupt, LedgerError, LedgerUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

APPLICATION_ID: Final = 0x44524C47
"""Marks the file as a ledger ("DRLG")."""
SCHEMA_VERSION: Final = 1
BUSY_SECONDS: Final = 10.0
"""How long whoever only looks waits for whoever writes."""

_SCHEMA: Final = (
    """CREATE TABLE contributions (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        population TEXT NOT NULL, run TEXT NOT NULL, round INTEGER NOT NULL, attempt INTEGER NOT NULL,
        relation TEXT NOT NULL, noise_multiplier REAL NOT NULL, sampling_rate REAL NOT NULL,
        slack REAL NOT NULL, lost REAL NOT NULL,
        charged_at REAL NOT NULL, chain BLOB NOT NULL,
        UNIQUE (run, round, attempt)
    ) STRICT""",
    "CREATE INDEX by_population ON contributions (population)",
    "CREATE TABLE clock (accepted_at REAL NOT NULL, after_id INTEGER NOT NULL) STRICT",
    "CREATE TRIGGER no_update BEFORE UPDATE ON contributions BEGIN SELECT RAISE(ABORT, 'rows do not change'); END",
    "CREATE TRIGGER no_delete BEFORE DELETE ON contributions BEGIN SELECT RAISE(ABORT, 'rows do not go'); END",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)


class Row(NamedTuple):
    """One contribution."""

    population: str
    """The site's collection, as the file has always called it."""
    run: str
    round: int
    attempt: int
    relation: str
    noise_multiplier: float
    sampling_rate: float
    slack: float
    lost: float
    charged_at: float
    """Seconds since 1970, for people; nothing is computed from it but that the clock runs forward."""


_COLUMNS: Final = ", ".join(Row._fields)


def create_store(path: Path, *, busy_seconds: float) -> None:
    """Make an empty ledger file, readable by its owner only.

    Raises:
        LedgerError: There is a file.
        LedgerUnavailable: It cannot be written.

    """
    try:
        with created(path, _SCHEMA, busy_seconds=busy_seconds):
            pass
    except FileExistsError as error:
        raise LedgerError(f"{path}: exists; a new ledger would forget what the old one spent") from error
    except OSError as error:
        raise LedgerUnavailable(f"{path}: cannot be created ({error.strerror})") from error
    except sqlite3.Error as error:
        raise _translated(path, error) from error


def check_store(path: Path, *, busy_seconds: float = BUSY_SECONDS) -> None:
    """Check that the file is a ledger and that every page of it is whole.

    Raises:
        LedgerCorrupt: Missing, damaged, or not a ledger of this version.
        LedgerUnavailable: Locked or unreadable.

    """
    with connection(path, busy_seconds=busy_seconds) as store:
        if marks(store) != (APPLICATION_ID, SCHEMA_VERSION):
            raise LedgerCorrupt(f"{path}: not a ledger of version {SCHEMA_VERSION}")
        if found := damage(store):
            raise LedgerCorrupt(f"{path}: damaged ({found}); restore it together with the audit log")
        read_rows(store)


def rows_in(path: Path) -> list[Row]:
    """Every row of a ledger's file, checked; raises as :func:`connection` and :func:`read_rows`."""
    with connection(path) as store:
        return read_rows(store)


def read_rows(store: sqlite3.Connection) -> list[Row]:
    """Every row in order, checked against the chain; of one moment, or a charge meanwhile would look like rows lost.

    Raises:
        LedgerCorrupt: A row was changed, removed or added by something else than :func:`append_row`.

    """
    with contextlib.nullcontext() if store.in_transaction else snapshot(store):
        return _checked_rows(store)


def _checked_rows(store: sqlite3.Connection) -> list[Row]:
    rows, chain = [], b""
    for number, *fields, stored in store.execute(f"SELECT id, {_COLUMNS}, chain FROM contributions ORDER BY id"):  # noqa: S608 - our own column names
        row = Row(*fields)
        rows.append(row)
        chain = _link(chain, row)
        if (number, stored) != (len(rows), chain):
            raise LedgerCorrupt(f"ledger row {number} is not as it was written; restore it together with the audit log")
    if (scalar(store, "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'contributions'")) != len(rows):
        raise LedgerCorrupt(f"rows after {len(rows)} are gone; restore the ledger together with the audit log")
    return rows


def chain_of(rows: Sequence[Row]) -> bytes:
    """32 bytes that stand for these rows and their order; empty for none."""
    chain = b""
    for row in rows:
        chain = _link(chain, row)
    return chain


def chain_at(store: sqlite3.Connection, number: int) -> bytes:
    """The chain with this row, which :func:`read_rows` checks; empty where there is no such row."""
    found = store.execute("SELECT chain FROM contributions WHERE id = ?", (number,)).fetchone()
    return b"" if found is None else bytes(found[0])


def append_row(store: sqlite3.Connection, row: Row) -> tuple[int, bytes]:
    """Add a row to those that :func:`read_rows` checked in the same transaction; its number, and the chain with it."""
    found = store.execute("SELECT chain FROM contributions ORDER BY id DESC LIMIT 1").fetchone()
    chain = _link(b"" if found is None else found[0], row)
    marks = ", ".join("?" * (len(row) + 1))
    cursor = store.execute(f"INSERT INTO contributions ({_COLUMNS}, chain) VALUES ({marks})", (*row, chain))  # noqa: S608 - our own column names
    return cursor.lastrowid or 0, chain


def _link(previous: bytes, row: Row) -> bytes:
    return digest(Label.LEDGER_ROW, previous, msgspec.json.encode(row))


@contextlib.contextmanager
def connection(path: Path, *, busy_seconds: float = BUSY_SECONDS) -> Iterator[sqlite3.Connection]:
    """A connection that never makes a file and waits at most so long for others.

    Raises:
        LedgerCorrupt: Missing or damaged.
        LedgerUnavailable: Full disk, locked or read-only.

    """
    if not path.is_file():
        raise LedgerCorrupt(f"{path}: missing; restore it, for without it the spent budget is unknown")
    try:
        with contextlib.closing(connect(path, busy_seconds=busy_seconds)) as store:
            yield store
    except sqlite3.Error as error:
        raise _translated(path, error) from error


def _translated(path: Path, error: sqlite3.Error) -> LedgerError:
    fault = fault_of(error)
    if fault is Fault.DAMAGED:
        return LedgerCorrupt(f"{path}: damaged or not a ledger ({error}); restore it together with the audit log")
    reason = {Fault.FULL: "the disk is full", Fault.BUSY: "another process holds it"}.get(fault)
    return LedgerUnavailable(f"{path}: {reason or error}; nothing was charged, so nothing may be sent")
