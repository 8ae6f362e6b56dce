"""Subjects and records as rows of the index, sealed; and opened again."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING

import msgspec

from client.vault.errors import VaultDamaged
from client.vault.keys import Purpose, VaultKeys
from client.vault.records import RecordId, RecordInfo, Split, Subject, normal_subject_id
from client.vault.rows import RecordRow, RunRow, SubjectRow
from common.crypto.primitives import Secret, random_key, random_name

if TYPE_CHECKING:
    from client.vault.records import NewRecord

RECORD_ID_BYTES = 16


class Facts(msgspec.Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True):
    """A record without its picture."""

    caption: str
    label: str
    source_name: str
    split: Split
    expires: date | None
    exact_hash: bytes
    perceptual_hash: int

    def __repr__(self) -> str:
        """Nothing of it."""
        return "Facts(…)"


class Noted(msgspec.Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True):
    """A run that trained on the vault."""

    run: str
    first_used: str


def subject_tag(keys: VaultKeys, subject_id: str) -> bytes:
    """What a subject is found by."""
    return keys.tag(Purpose.SUBJECT_ID, normal_subject_id(subject_id).encode())


def seal_subject(keys: VaultKeys, subject: int, subject_id: str, *, key: Secret) -> SubjectRow:
    """A subject's row, under this key of its own."""
    return SubjectRow(
        subject=subject,
        tag=subject_tag(keys, subject_id),
        wrapped=keys.wrap_key(None, Purpose.SUBJECT_KEY, key, _number(subject)),
        sealed=keys.seal(key, Purpose.SUBJECT_ID, normal_subject_id(subject_id).encode(), _number(subject)),
    )


def subject_key(keys: VaultKeys, row: SubjectRow) -> Secret:
    """The subject's key, or VaultDamaged."""
    return keys.unwrap_key(None, Purpose.SUBJECT_KEY, row.wrapped, _number(row.subject))


def subject_name(keys: VaultKeys, row: SubjectRow) -> str:
    """The subject's id, or VaultDamaged."""
    return keys.open(subject_key(keys, row), Purpose.SUBJECT_ID, row.sealed, _number(row.subject)).decode()


def seal_record(
    keys: VaultKeys, record: NewRecord, *, number: int, subject: SubjectRow, blob: bytes
) -> tuple[RecordRow, bytes]:
    """A new record's row and its sealed picture, under a key of its own."""
    key, record_id = random_key(), random_name(RECORD_ID_BYTES)
    facts = Facts(
        caption=record.caption,
        label=record.label,
        source_name=record.source_name,
        split=record.split,
        expires=record.expires,
        exact_hash=record.exact_hash,
        perceptual_hash=record.perceptual_hash,
    )
    row = RecordRow(
        number=number,
        record_id=record_id,
        subject=subject.subject,
        exact_tag=keys.tag(Purpose.EXACT_HASH, record.exact_hash),
        wrapped=keys.wrap_key(subject_key(keys, subject), Purpose.RECORD_KEY, key, record_id),
        facts=keys.seal(key, Purpose.FACTS, msgspec.msgpack.encode(facts), record_id),
        blob=blob,
    )
    return row, keys.seal(key, Purpose.PICTURE, record.image, record_id, blob)


def record_key(keys: VaultKeys, row: RecordRow, above: Secret) -> Secret:
    """The record's key, or VaultDamaged."""
    return keys.unwrap_key(above, Purpose.RECORD_KEY, row.wrapped, row.record_id)


def open_facts(keys: VaultKeys, row: RecordRow, key: Secret) -> Facts:
    """The record's facts, or VaultDamaged."""
    try:
        return msgspec.msgpack.decode(keys.open(key, Purpose.FACTS, row.facts, row.record_id), type=Facts)
    except msgspec.DecodeError as error:
        raise VaultDamaged("a record's facts were written by something else; use the Darkroom of that time") from error


def info_of(row: RecordRow, facts: Facts) -> RecordInfo:
    """What a record says about itself without its content."""
    return RecordInfo(
        record_id=RecordId(row.record_id.hex()), subject=Subject(row.subject), split=facts.split, expires=facts.expires
    )


def run_tag(keys: VaultKeys, run: str) -> bytes:
    """What a run is found by."""
    return keys.tag(Purpose.RUN, run.encode())


def seal_run(keys: VaultKeys, noted: Noted, *, high_water: int) -> RunRow:
    """A run's row."""
    tag = run_tag(keys, noted.run)
    return RunRow(tag=tag, high_water=high_water, sealed=keys.seal_top(Purpose.RUN, msgspec.msgpack.encode(noted), tag))


def open_run(keys: VaultKeys, row: RunRow) -> Noted:
    """What a run's row holds, or VaultDamaged."""
    return msgspec.msgpack.decode(keys.open_top(Purpose.RUN, row.sealed, row.tag), type=Noted)


def _number(number: int) -> bytes:
    return number.to_bytes(8, "big")
