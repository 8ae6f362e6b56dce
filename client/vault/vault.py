"""The vault: an institution's pictures in one directory that tells nothing to whoever lacks the master key.

::

    index.sqlite3   sealed rows (see client.vault.index); with -wal and -shm while it is open
    blobs/          one sealed file for each picture and derived item
    lock            held by whoever writes

Guarantee: no file shows a picture, caption, label, file name, subject id, hash, split, date of expiry or derived item,
nor lets a guess at one be tested.
Guarantee: a record, row or derived item that was altered, cut, exchanged, put back or brought from another vault is
refused, and so is an index that lacks one.
Guarantee: whatever moment the process dies at, every change that was acknowledged is there, and each other change is
there as a whole or not at all.

What does show: how many records, subjects and derived items there are and which belong together, sizes of files to
within 12 %, and when they were written. Keys, erasure and roll-backs of the whole directory are treated in
:mod:`client.vault.sealing`, :mod:`client.vault.erasure` and :mod:`client.vault.commitment`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Self

from client.vault.blobs import generation_of
from client.vault.contents import add_records, all_facts, note_run, put_derived, read_derived, read_record
from client.vault.erasure import erase, expired_scope, plan_erasure, subject_scope
from client.vault.errors import UnknownRecord, VaultDamaged
from client.vault.index import PastRow, RecordRow, SubjectRow
from client.vault.opening import create, locked, open_checked
from client.vault.records import Erased, RecordHashes, RecordId, StoredRecord, Subject
from client.vault.rotation import rekey
from client.vault.sealing import Purpose, VaultKeys, info_of, subject_name, subject_tag
from common.crypto.primitives import random_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import date
    from pathlib import Path

    from client.vault.access import Access, Interior
    from client.vault.master_key import MasterKey
    from client.vault.records import ErasurePlan, NewRecord, RecordInfo, Split, VaultState

BUSY_SECONDS = 10.0
"""How long a writer waits for another."""


@dataclass(slots=True, repr=False)
class Vault:
    """An open vault; a context manager. Threads may share one, and take turns. Writers take turns change by change."""

    _interior: Interior
    _now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))

    @classmethod
    def create(cls, directory: Path, key: MasterKey, *, busy_seconds: float = BUSY_SECONDS) -> Self:
        """A new, empty vault, open for writing.

        Raises:
            VaultError: The directory holds something else.
            MasterKeyUnavailable: The key cannot be had, or is too weak to lock anything.
            VaultUnavailable: The directory cannot be written.

        """
        return cls(create(directory, key, busy_seconds=busy_seconds))

    @classmethod
    def open(
        cls,
        directory: Path,
        key: MasterKey,
        *,
        access: Access = "read",
        expected: VaultState | None = None,
        busy_seconds: float = BUSY_SECONDS,
    ) -> Self:
        """Open and check a vault; for writing, also clear away what a process that died left behind.

        Args:
            directory: The vault's.
            key: The master key.
            access: ``read`` changes nothing, neither here nor later.
            expected: The newest state that was noted outside, if one was; the vault must be it or its successor.
            busy_seconds: How long a change waits for another writer.

        Raises:
            VaultMissing: No vault there.
            WrongMasterKey: It does not open the vault.
            MasterKeyUnavailable: It cannot be had.
            VaultDamaged: Something of the index is not as it was written.
            VaultRolledBack: An older copy, or one that grew from an older copy.
            ForeignVault: Another vault than the expected one.
            WrongVaultVersion: Made by another version.
            VaultUnavailable: Unreadable.

        """
        return cls(open_checked(directory, key, access=access, expected=expected, busy_seconds=busy_seconds))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close; again is no error."""
        self._interior.close()

    @property
    def access(self) -> Access:
        """What it was opened for."""
        return self._interior.access

    def state(self) -> VaultState:
        """For the audit log, and for :meth:`open` to be handed as ``expected``."""
        with self._interior.reading() as state:
            return self._interior.commitment.public(state)

    def add(self, records: Sequence[NewRecord]) -> tuple[RecordId, ...]:
        """Keep records, all or none, durably; their ids in the same order. Some dozens at a time are quick enough.

        Raises:
            VaultBusy: Another writer is at work.
            VaultUnavailable: Full disk, or another fault; nothing was added.

        """
        return add_records(self._interior, records) if records else ()

    def infos(self, split: Split | None = None) -> tuple[RecordInfo, ...]:
        """Of all records, or of one split, in the order in which they were added; expired ones are among them."""
        infos = (info_of(row, facts) for row, facts in all_facts(self._interior))
        return tuple(info for info in infos if split in {None, info.split})

    def read(self, record_id: RecordId) -> StoredRecord:
        """A record.

        Raises:
            UnknownRecord: No such record, or no longer.
            VaultDamaged: It is not as it was written.

        """
        return read_record(self._interior, record_id)

    def captions(self, record_ids: Sequence[RecordId]) -> tuple[str, ...]:
        """Of these records, without opening their pictures.

        Raises:
            UnknownRecord: No such record, or no longer.

        """
        known = {row.record_id.hex(): facts.caption for row, facts in all_facts(self._interior)}
        if lost := [each for each in record_ids if each not in known]:
            raise UnknownRecord(f"no record {lost[0][:64]!r} in this vault; it was erased, or is another vault's")
        return tuple(known[each] for each in record_ids)

    def hashes(self) -> Iterator[RecordHashes]:
        """Of every record, for the search for near-duplicates."""
        for row, facts in all_facts(self._interior):
            yield RecordHashes(
                record_id=RecordId(row.record_id.hex()),
                subject=Subject(row.subject),
                exact=facts.exact_hash,
                perceptual=facts.perceptual_hash,
            )

    def has_exact(self, exact_hash: bytes) -> bool:
        """Whether a record with this exact hash is there."""
        inside = self._interior
        with inside.reading():
            return bool(inside.index.rows(RecordRow, "exact_tag = ?", inside.keys.tag(Purpose.EXACT_HASH, exact_hash)))

    def subjects(self) -> tuple[Subject, ...]:
        """Everybody's number."""
        with self._interior.reading():
            return tuple(Subject(row.subject) for row in self._interior.index.rows(SubjectRow))

    def subject_ids(self) -> tuple[str, ...]:
        """Everybody's; for the institution's own people alone."""
        inside = self._interior
        with inside.reading():
            return tuple(subject_name(inside.keys, row) for row in inside.index.rows(SubjectRow))

    def added_since(self, state: VaultState) -> tuple[RecordInfo, ...]:
        """Records that were added after the vault was in this state, and are still there.

        Raises:
            ForeignVault: Another vault's state.
            VaultRolledBack: The vault was never in it.

        """
        inside = self._interior
        with inside.reading() as current:
            inside.commitment.check_successor(current, state)
            past = inside.index.rows(PastRow, "digest = ?", state.digest)
        if not past:  # it is in that state now
            return ()
        return tuple(
            info_of(row, facts) for row, facts in all_facts(inside) if generation_of(row.blob) > past[0].generation
        )

    def find_subject(self, subject_id: str) -> Subject | None:
        """The number of who goes by this id, if anybody does."""
        inside = self._interior
        with inside.reading():
            found = inside.index.rows(SubjectRow, "tag = ?", subject_tag(inside.keys, subject_id))
            return Subject(found[0].subject) if found else None

    def derived(self, record_id: RecordId, kind: str) -> bytes | None:
        """What was computed from a record and kept under this kind; None if nothing was.

        Raises:
            UnknownRecord: No such record, or no longer.
            VaultDamaged: It is not as it was written.

        """
        return read_derived(self._interior, record_id, kind)

    def put_derived(self, kind: str, items: Mapping[RecordId, bytes]) -> None:
        """Keep what was computed from records, or replace it; all of them, or none, durably.

        Raises:
            UnknownRecord: No such record, or no longer.
            VaultBusy: Another writer is at work.
            VaultUnavailable: Full disk, or another fault.

        """
        if items:
            put_derived(self._interior, kind, items)

    def damaged(self) -> tuple[RecordId, ...]:
        """Open every picture; the ids of those that cannot be, to be restored from a backup or erased."""
        bad = []
        for info in self.infos():
            try:
                self.read(info.record_id)
            except VaultDamaged:
                bad.append(info.record_id)
        return tuple(bad)

    def note_run(self, run: str) -> None:
        """Write down that this run trains on what the vault holds now, before each time that training data is made.

        Raises:
            VaultBusy: Another writer is at work.

        """
        note_run(self._interior, run, now=self._now())

    def plan_erasure(self, subject_id: str) -> ErasurePlan:
        """What :meth:`erase_subject` would destroy.

        Raises:
            UnknownSubject: Nobody goes by this id.

        """
        return plan_erasure(self._interior, partial(subject_scope, subject_id=subject_id))

    def erase_subject(self, subject_id: str) -> Erased:
        """Destroy a subject's keys, records and derived items; see :mod:`client.vault.erasure` for what that holds.

        Raises:
            UnknownSubject: Nobody goes by this id.
            VaultBusy: Another writer is at work; or all is erased, but a reader keeps traces in use.

        """
        return erase(self._interior, partial(subject_scope, subject_id=subject_id))

    def expired(self, today: date) -> tuple[RecordInfo, ...]:
        """Records that may no longer be used."""
        return tuple(info for info in self.infos() if info.expires is not None and info.expires <= today)

    def plan_expiry(self, today: date) -> ErasurePlan:
        """What :meth:`erase_expired` would destroy."""
        return plan_erasure(self._interior, partial(expired_scope, today=today))

    def erase_expired(self, today: date) -> Erased:
        """Destroy keys and derived items of records that have expired, and the subjects that nothing is left of.

        Raises:
            VaultBusy: As for :meth:`erase_subject`.

        """
        return erase(self._interior, partial(expired_scope, today=today))

    def rotate(self, key: MasterKey) -> None:
        """Lock the vault with another master key; no picture is encrypted again. See :mod:`client.vault.rotation`.

        Raises:
            MasterKeyUnavailable: The key cannot be had, or is too weak to lock anything.
            VaultBusy: Another writer is at work; or all is done, but a reader keeps the old lock's traces in use.

        """
        inside, vault_key = self._interior, random_key()
        slot, wrapped = locked(key, inside.keys.vault, vault_key)
        new = VaultKeys(inside.keys.vault, vault_key)
        with inside.writing():
            with inside.changing() as change:
                rekey(change, inside.keys, new, slot=slot, wrapped=wrapped)
                inside.index.mark_unscrubbed()
            inside.index.scrub(always=True)
