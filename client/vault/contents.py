"""Records and what was computed from them: put in, and read back.

What is computed from a record is kept under the record's own key, and so is erased with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from client.vault.blobs import new_name
from client.vault.index import DerivedRow, RecordRow, RunRow, SubjectRow
from client.vault.records import RecordId, StoredRecord
from client.vault.sealing import (
    Facts,
    Noted,
    Purpose,
    info_of,
    kind_tag,
    open_facts,
    open_run,
    record_key,
    run_tag,
    seal_record,
    seal_run,
    seal_subject,
    subject_name,
    subject_tag,
)
from common.crypto.primitives import random_key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from client.vault.access import Interior
    from client.vault.commitment import Change
    from client.vault.records import NewRecord
    from client.vault.sealing import VaultKeys
    from common.crypto.primitives import Secret


def add_records(inside: Interior, records: Sequence[NewRecord]) -> tuple[RecordId, ...]:
    """See :meth:`client.vault.vault.Vault.add`."""
    names, added = list[bytes](), list[RecordId]()
    with inside.writing(), inside.changing() as change, inside.new_files(names):
        for record in records:
            names.append(new_name(change.generation))
            subject = _subject(change, inside.keys, record.subject_id)
            row, picture = seal_record(inside.keys, record, number=change.new_record(), subject=subject, blob=names[-1])
            inside.blobs.write(names[-1], picture)
            change.insert(row)
            added.append(RecordId(row.record_id.hex()))
    return tuple(added)


def read_record(inside: Interior, record_id: RecordId) -> StoredRecord:
    """See :meth:`client.vault.vault.Vault.read`."""
    missing = b""
    while True:
        with inside.reading():
            row, key = inside.record(record_id)
            (subject,) = inside.index.rows(SubjectRow, "subject = ?", row.subject)
            facts, subject_id = open_facts(inside.keys, row, key), subject_name(inside.keys, subject)
        sealed = inside.file_content(row.blob)
        if sealed is not None:
            break
        if missing == row.blob:  # asked again, the index still refers to it
            raise inside.file_gone()
        missing = row.blob  # or another process is erasing the record at this moment
    return StoredRecord(
        info=info_of(row, facts),
        image=inside.keys.open(key, Purpose.PICTURE, sealed, row.record_id, row.blob),
        caption=facts.caption,
        subject_id=subject_id,
        label=facts.label,
        source_name=facts.source_name,
    )


def all_facts(inside: Interior) -> list[tuple[RecordRow, Facts]]:
    """Every record without its picture, in the order in which they were added."""
    with inside.reading():
        above = inside.subject_keys()
        return [
            (row, open_facts(inside.keys, row, record_key(inside.keys, row, above[row.subject])))
            for row in inside.index.rows(RecordRow)
        ]


def read_derived(inside: Interior, record_id: RecordId, kind: str) -> bytes | None:
    """See :meth:`client.vault.vault.Vault.derived`."""
    key, row = _find(inside, record_id, kind)
    while row is not None:
        name = row.blob
        sealed = inside.file_content(name)
        if sealed is not None:
            return inside.keys.open(key, Purpose.DERIVED, sealed, row.record_id, row.kind_tag, name)
        key, row = _find(inside, record_id, kind)
        if row is not None and row.blob == name:
            raise inside.file_gone()
    return None


def put_derived(inside: Interior, kind: str, items: Mapping[RecordId, bytes]) -> None:
    """See :meth:`client.vault.vault.Vault.put_derived`."""
    names, replaced = list[bytes](), list[DerivedRow]()
    with inside.writing():
        with inside.changing() as change, inside.new_files(names):
            for record_id, data in items.items():
                record, key = inside.record(record_id)
                tag = kind_tag(key, kind)
                old = inside.index.rows(DerivedRow, "record_id = ? AND kind_tag = ?", record.record_id, tag)
                names.append(new_name(change.generation))
                sealed = inside.keys.seal(key, Purpose.DERIVED, data, record.record_id, tag, names[-1])
                inside.blobs.write(names[-1], sealed)
                change.delete(old)
                change.insert(DerivedRow(record.record_id, tag, names[-1]))
                replaced += old
        inside.blobs.remove([row.blob for row in replaced])


def _find(inside: Interior, record_id: RecordId, kind: str) -> tuple[Secret, DerivedRow | None]:
    with inside.reading():
        record, key = inside.record(record_id)
        found = inside.index.rows(DerivedRow, "record_id = ? AND kind_tag = ?", record.record_id, kind_tag(key, kind))
        return key, found[0] if found else None


def note_run(inside: Interior, run: str, *, now: datetime) -> None:
    """See :meth:`client.vault.vault.Vault.note_run`."""
    with inside.reading() as state:
        known = inside.index.rows(RunRow, "tag = ?", run_tag(inside.keys, run))
        if known and known[0].high_water == state.next_record - 1:
            return
    with inside.writing(), inside.changing() as change:
        known = inside.index.rows(RunRow, "tag = ?", run_tag(inside.keys, run))
        noted = open_run(inside.keys, known[0]) if known else Noted(run=run, first_used=now.isoformat())
        change.delete(known)
        change.insert(seal_run(inside.keys, noted, high_water=change.next_record - 1))


def _subject(change: Change, keys: VaultKeys, subject_id: str) -> SubjectRow:
    """The subject of this id, new or known."""
    known = change.index.rows(SubjectRow, "tag = ?", subject_tag(keys, subject_id))
    if known:
        return known[0]
    row = seal_subject(keys, change.new_subject(), subject_id, key=random_key())
    change.insert(row)
    return row
