"""What a vault's index holds: every column is a number, a random name, a keyed tag or sealed."""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

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
