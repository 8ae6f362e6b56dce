"""SQLite files as a site keeps its vault's index and its ledger: opened in one way, and changed durably or not at all.

Who asks turns SQLite's failures into errors of their own, by :func:`fault_of`: what a failure means for a vault is not
what it means for a budget.
"""

from __future__ import annotations

import contextlib
import enum
import os
import sqlite3
from typing import TYPE_CHECKING, Final

from common.durable_files import open_new

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_SETTINGS: Final = (
    "journal_mode = WAL",
    "synchronous = FULL",
    "secure_delete = ON",
    "temp_store = MEMORY",  # sorting and rewriting must not leave rows in a temporary file
    "trusted_schema = OFF",
)


class Fault(enum.Enum):
    """What SQLite's failures come to."""

    DAMAGED = enum.auto()
    """Not a database, a bad page, or a table that is not there."""
    CONSTRAINT = enum.auto()
    BUSY = enum.auto()
    FULL = enum.auto()
    OTHER = enum.auto()


def connect(path: Path, *, busy_seconds: float) -> sqlite3.Connection:
    """A durable connection that never makes a file and waits at most so long for others.

    Threads may share it if they take turns. Raises SQLite's own errors, as everything here does.
    """
    uri = f"{path.absolute().as_uri()}?mode=rw"
    store = sqlite3.connect(uri, uri=True, timeout=busy_seconds, isolation_level=None, check_same_thread=False)
    try:
        for setting in _SETTINGS:
            store.execute(f"PRAGMA {setting}")
    except sqlite3.Error:
        store.close()
        raise
    return store


@contextlib.contextmanager
def created(path: Path, schema: Iterable[str], *, busy_seconds: float) -> Iterator[sqlite3.Connection]:
    """A new database, readable by its owner only; the schema, and what is written inside, come whole or not at all.

    Raises:
        FileExistsError: There is a file.
        OSError: It cannot be made.

    """
    os.close(open_new(path))
    with contextlib.closing(connect(path, busy_seconds=busy_seconds)) as store, transaction(store):
        for statement in schema:
            store.execute(statement)
        yield store


@contextlib.contextmanager
def snapshot(store: sqlite3.Connection) -> Iterator[None]:
    """Everything read inside comes from one moment."""
    with _within(store, "BEGIN"):
        yield


@contextlib.contextmanager
def transaction(store: sqlite3.Connection) -> Iterator[None]:
    """All or nothing, and alone: IMMEDIATE keeps others from reading what is about to be changed."""
    with _within(store, "BEGIN IMMEDIATE"):
        yield


@contextlib.contextmanager
def _within(store: sqlite3.Connection, begin: str) -> Iterator[None]:
    store.execute(begin)
    try:
        yield
        store.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # the first error says more; closing ends the transaction anyway
            store.execute("ROLLBACK")
        raise


def scalar(store: sqlite3.Connection, query: str) -> object:
    """The first column of the first row."""
    return store.execute(query).fetchone()[0]


def marks(store: sqlite3.Connection) -> tuple[object, object]:
    """Whose file it is, and of which version: ``application_id`` and ``user_version``."""
    return scalar(store, "PRAGMA application_id"), scalar(store, "PRAGMA user_version")


def damage(store: sqlite3.Connection) -> str:
    """What is wrong with the first bad page of all; empty where every page is whole."""
    found = str(scalar(store, "PRAGMA integrity_check(1)"))
    return "" if found == "ok" else found


def fault_of(error: sqlite3.Error) -> Fault:
    """What a failure comes to; what SQLite names no code for is damage."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}:
        return Fault.DAMAGED
    known = {
        sqlite3.SQLITE_CONSTRAINT: Fault.CONSTRAINT,
        sqlite3.SQLITE_BUSY: Fault.BUSY,
        sqlite3.SQLITE_FULL: Fault.FULL,
    }
    return known.get(code, Fault.OTHER)
