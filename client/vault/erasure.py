"""Forgetting a subject, or what has expired: which rows that concerns, and what it comes to.

Guarantee: after an erasure, the master key together with every file in the directory, and with any copies of sealed
pictures and derived items made before, opens nothing of what was erased.
Guarantee: no file in the directory holds the wrapped keys of what was erased.

Assumptions: SQLite overwrites what it deletes (``secure_delete``, then ``VACUUM`` and a truncated log); and no older
copy of the *index* exists, since with the master key it opens what it opened then. Let backups of the index expire.
What a file system or a flash disk keeps of overwritten and deleted blocks is beyond a program: encrypt the disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from client.vault.errors import UnknownSubject
from client.vault.index import DerivedRow, RecordRow, RunRow, SubjectRow
from client.vault.records import Erased, ErasurePlan
from client.vault.sealing import open_facts, open_run, record_key, subject_key, subject_tag

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import date

    from client.vault.access import Interior
    from client.vault.blobs import BlobFolder
    from client.vault.index import Index
    from client.vault.sealing import VaultKeys
    from common.crypto.primitives import Secret


@dataclass(frozen=True, kw_only=True, slots=True)
class Scope:
    """The rows that an erasure takes out."""

    subjects: tuple[SubjectRow, ...]
    records: tuple[RecordRow, ...]
    derived: tuple[DerivedRow, ...]
    trained: int | None
    """Smallest number of a record that trains; None: all are held out."""

    def blobs(self) -> tuple[bytes, ...]:
        """Names of their files."""
        return (*(row.blob for row in self.records), *(row.blob for row in self.derived))


def subject_scope(index: Index, keys: VaultKeys, subject_id: str) -> Scope:
    """Everything of one subject.

    Raises:
        UnknownSubject: There is no such subject.

    """
    found = index.rows(SubjectRow, "tag = ?", subject_tag(keys, subject_id))
    if not found:
        raise UnknownSubject("no such subject in this vault; ids are compared exactly, but for blanks at the ends")
    return _scope(index, keys, found, index.rows(RecordRow, "subject = ?", found[0].subject))


def expired_scope(index: Index, keys: VaultKeys, today: date) -> Scope:
    """Every record that has expired, and the subjects of which nothing else is left."""
    subjects = {row.subject: row for row in index.rows(SubjectRow)}
    above = {number: subject_key(keys, row) for number, row in subjects.items()}
    rows = index.rows(RecordRow)
    gone = [row for row in rows if _has_expired(keys, row, today, above)]
    left = {row.subject for row in rows} - {row.subject for row in set(rows).difference(gone)}
    return _scope(index, keys, [subjects[number] for number in sorted(left)], gone)


def plan_of(scope: Scope, index: Index, keys: VaultKeys, blobs: BlobFolder) -> ErasurePlan:
    """What the erasure comes to."""
    noted = [
        open_run(keys, row)
        for row in index.rows(RunRow)
        if scope.trained is not None and row.high_water >= scope.trained
    ]
    return ErasurePlan(
        subjects=len(scope.subjects),
        records=len(scope.records),
        derived=len(scope.derived),
        bytes_freed=blobs.size(scope.blobs()),
        runs=tuple(each.run for each in sorted(noted, key=lambda each: (each.first_used, each.run))),
    )


def plan_erasure(inside: Interior, scope_of: Callable[[Index, VaultKeys], Scope]) -> ErasurePlan:
    """The dry run."""
    with inside.reading():
        return plan_of(scope_of(inside.index, inside.keys), inside.index, inside.keys, inside.blobs)


def erase(inside: Interior, scope_of: Callable[[Index, VaultKeys], Scope]) -> Erased:
    """Destroy keys and rows in one change, then files and traces; what a crash leaves of these, the next opening wipes.

    Raises:
        VaultBusy: Another writer is at work; or all is erased, but a reader keeps traces in use.

    """
    with inside.writing():
        with inside.reading() as state:
            scope = scope_of(inside.index, inside.keys)
            plan = plan_of(scope, inside.index, inside.keys, inside.blobs)
            if not scope.records:
                return Erased(plan=plan, state=inside.commitment.public(state))
        with inside.commitment.changing() as change:
            change.delete(scope.derived)
            change.delete(scope.records)
            change.delete(scope.subjects)
            inside.index.mark_unscrubbed()
        try:
            inside.index.scrub(always=True)
        finally:  # the keys' traces matter more, and either is tried if the other fails
            inside.blobs.remove(scope.blobs())
        with inside.reading() as state:
            return Erased(plan=plan, state=inside.commitment.public(state))


def _scope(index: Index, keys: VaultKeys, subjects: list[SubjectRow], records: list[RecordRow]) -> Scope:
    derived = [row for record in records for row in index.rows(DerivedRow, "record_id = ?", record.record_id)]
    return Scope(
        subjects=tuple(subjects),
        records=tuple(records),
        derived=tuple(derived),
        trained=min((row.number for row in records if _trains(index, keys, row)), default=None),
    )


def _trains(index: Index, keys: VaultKeys, row: RecordRow) -> bool:
    (subject,) = index.rows(SubjectRow, "subject = ?", row.subject)
    return open_facts(keys, row, record_key(keys, row, subject_key(keys, subject))).split == "train"


def _has_expired(keys: VaultKeys, row: RecordRow, today: date, above: dict[int, Secret]) -> bool:
    expires = open_facts(keys, row, record_key(keys, row, above[row.subject])).expires
    return expires is not None and expires <= today
