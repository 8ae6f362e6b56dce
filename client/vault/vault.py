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
from typing import TYPE_CHECKING, Final, Self

import msgspec

from client.vault.access import Interior
from client.vault.blobs import BlobFolder, generation_of, new_name, sync_folder
from client.vault.commitment import Commitment, first_state, lock_digest
from client.vault.erasure import erase, expired_scope, plan_erasure, subject_scope
from client.vault.errors import UnknownRecord, VaultDamaged, VaultMissing, VaultUnavailable
from client.vault.index import DerivedRow, Header, Index, PastRow, RecordRow, RunRow, SubjectRow
from client.vault.master_key import KeySlot
from client.vault.records import Erased, RecordHashes, RecordId, StoredRecord, Subject
from client.vault.sealing import (
    Facts,
    Noted,
    Purpose,
    VaultKeys,
    info_of,
    kind_tag,
    lock_vault_key,
    open_facts,
    open_run,
    record_key,
    run_tag,
    seal_record,
    seal_run,
    seal_subject,
    subject_name,
    subject_tag,
    unlock_vault_key,
)
from common.crypto.primitives import random_key, random_name
from common.errors import VaultError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import date
    from pathlib import Path

    from client.vault.access import Access
    from client.vault.commitment import Change
    from client.vault.master_key import MasterKey
    from client.vault.records import ErasurePlan, NewRecord, RecordInfo, Split, VaultState
    from common.crypto.primitives import Secret

INDEX: Final = "index.sqlite3"
BLOBS: Final = "blobs"
LOCK: Final = "lock"
BUSY_SECONDS: Final = 10.0
"""How long a writer waits for another."""
_PARTIAL: Final = "index.partial"
_VAULT_BYTES: Final = 16


@dataclass(slots=True, repr=False)
class Vault:
    """An open vault; a context manager. Threads may share one, and take turns. Writers take turns change by change."""

    _interior: Interior
    _now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))

    @classmethod
    def create(cls, directory: Path, key: MasterKey, *, busy_seconds: float = BUSY_SECONDS) -> Self:
        """A new, empty vault, open for writing; what an interrupted creation left is taken over.

        Raises:
            VaultError: The directory holds something else.
            MasterKeyUnavailable: The key cannot be had, or is too weak to lock anything.
            VaultUnavailable: The directory cannot be written.

        """
        _claim(directory)
        vault, vault_key = random_name(_VAULT_BYTES), random_key()
        slot, wrapped = _locked(key, vault, vault_key)
        keys = VaultKeys(vault, vault_key)
        header = Header(vault, slot, wrapped, first_state(keys, slot, wrapped))
        Index.create(directory / INDEX, header, busy_seconds=busy_seconds)
        sync_folder(directory)
        index = Index(directory / INDEX, busy_seconds=busy_seconds)
        return cls(_interior(directory, index, keys, header, access="write", busy_seconds=busy_seconds))

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
        if not (directory / INDEX).is_file():
            raise VaultMissing(f"{directory}: no vault; create one, or mend the path")
        newest = max(map(generation_of, BlobFolder(directory / BLOBS).names()), default=0)
        index = Index(directory / INDEX, busy_seconds=busy_seconds)
        try:
            with index.snapshot():
                header = index.header()
            keys = _unlocked(key, header)
            inside = _interior(directory, index, keys, header, access=access, busy_seconds=busy_seconds)
            inside.check(newest, expected)
            if access == "write":
                inside.tidy()
        except BaseException:
            index.close()
            raise
        return cls(inside)

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
        if not records:
            return ()
        inside, names, added = self._interior, list[bytes](), list[RecordId]()
        with inside.writing(), inside.commitment.changing() as change, inside.new_files(names):
            for record in records:
                names.append(new_name(change.generation))
                subject = _subject(change, inside.keys, record.subject_id)
                row, picture = seal_record(
                    inside.keys, record, number=change.new_record(), subject=subject, blob=names[-1]
                )
                inside.blobs.write(names[-1], picture)
                change.insert(row)
                added.append(RecordId(row.record_id.hex()))
        return tuple(added)

    def infos(self, split: Split | None = None) -> tuple[RecordInfo, ...]:
        """Of all records, or of one split, in the order in which they were added; expired ones are among them."""
        infos = (info_of(row, facts) for row, facts in self._facts())
        return tuple(info for info in infos if split in {None, info.split})

    def read(self, record_id: RecordId) -> StoredRecord:
        """A record.

        Raises:
            UnknownRecord: No such record, or no longer.
            VaultDamaged: It is not as it was written.

        """
        inside, missing = self._interior, b""
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

    def captions(self, record_ids: Sequence[RecordId]) -> tuple[str, ...]:
        """Of these records, without opening their pictures.

        Raises:
            UnknownRecord: No such record, or no longer.

        """
        known = {row.record_id.hex(): facts.caption for row, facts in self._facts()}
        if lost := [each for each in record_ids if each not in known]:
            raise UnknownRecord(f"no record {lost[0][:64]!r} in this vault; it was erased, or is another vault's")
        return tuple(known[each] for each in record_ids)

    def hashes(self) -> Iterator[RecordHashes]:
        """Of every record, for the search for near-duplicates."""
        for row, facts in self._facts():
            yield RecordHashes(
                record_id=RecordId(row.record_id.hex()),
                subject=Subject(row.subject),
                exact=facts.exact_hash,
                perceptual=facts.perceptual_hash,
            )

    def subject_ids(self) -> tuple[str, ...]:
        """Everybody's; for the institution's own people alone."""
        inside = self._interior
        with inside.reading():
            return tuple(subject_name(inside.keys, row) for row in inside.index.rows(SubjectRow))

    def find_subject(self, subject_id: str) -> Subject | None:
        """The number of who goes by this id, if anybody does."""
        inside = self._interior
        with inside.reading():
            found = inside.index.rows(SubjectRow, "tag = ?", subject_tag(inside.keys, subject_id))
            return Subject(found[0].subject) if found else None

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
            info_of(row, facts) for row, facts in self._facts() if generation_of(row.blob) > past[0].generation
        )

    def derived(self, record_id: RecordId, kind: str) -> bytes | None:
        """What was computed from a record and kept under this kind; None if nothing was.

        Raises:
            UnknownRecord: No such record, or no longer.
            VaultDamaged: It is not as it was written.

        """
        inside = self._interior
        key, row = self._find_derived(record_id, kind)
        while row is not None:
            name = row.blob
            sealed = inside.file_content(name)
            if sealed is not None:
                return inside.keys.open(key, Purpose.DERIVED, sealed, row.record_id, row.kind_tag, name)
            key, row = self._find_derived(record_id, kind)
            if row is not None and row.blob == name:
                raise inside.file_gone()
        return None

    def put_derived(self, kind: str, items: Mapping[RecordId, bytes]) -> None:
        """Keep what was computed from records, or replace it; all of them, or none, durably.

        Each item is kept under its record's own key, and so is erased with it.

        Raises:
            UnknownRecord: No such record, or no longer.
            VaultBusy: Another writer is at work.
            VaultUnavailable: Full disk, or another fault.

        """
        if not items:
            return
        inside, names, replaced = self._interior, list[bytes](), list[DerivedRow]()
        with inside.writing():
            with inside.commitment.changing() as change, inside.new_files(names):
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

    def note_run(self, run: str) -> None:
        """Write down that this run trains on what the vault holds now, before each time that training data is made.

        Raises:
            VaultBusy: Another writer is at work.

        """
        inside = self._interior
        with inside.reading() as state:
            known = inside.index.rows(RunRow, "tag = ?", run_tag(inside.keys, run))
            if known and known[0].high_water == state.next_record - 1:
                return
        with inside.writing(), inside.commitment.changing() as change:
            known = inside.index.rows(RunRow, "tag = ?", run_tag(inside.keys, run))
            noted = open_run(inside.keys, known[0]) if known else Noted(run=run, first_used=self._now().isoformat())
            change.delete(known)
            change.insert(seal_run(inside.keys, noted, high_water=change.next_record - 1))

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
        """Lock the vault with another master key, without touching a picture.

        The vault key and every subject key are made anew, and record keys, tags and the rest of the index are sealed
        again under them; the keys of the records themselves stay, and so do their files. Wrapping the old vault key
        anew would have been enough to change a passphrase, but whoever left with an old passphrase and an old copy of
        the index would then open everything that is added later. So he opens what he could open when he left, and
        nothing since.

        Raises:
            MasterKeyUnavailable: The key cannot be had, or is too weak to lock anything.
            VaultBusy: Another writer is at work; or all is done, but a reader keeps the old lock's traces in use.

        """
        inside, vault_key = self._interior, random_key()
        slot, wrapped = _locked(key, inside.keys.vault, vault_key)
        new = VaultKeys(inside.keys.vault, vault_key)
        with inside.writing():
            with inside.commitment.changing() as change:
                change.rekey(inside.keys, new, slot=slot, wrapped=wrapped)
                inside.index.mark_unscrubbed()
            inside.index.scrub(always=True)

    def _facts(self) -> list[tuple[RecordRow, Facts]]:
        """Every record without its picture, in the order in which they were added."""
        inside = self._interior
        with inside.reading():
            above = inside.subject_keys()
            return [
                (row, open_facts(inside.keys, row, record_key(inside.keys, row, above[row.subject])))
                for row in inside.index.rows(RecordRow)
            ]

    def _find_derived(self, record_id: RecordId, kind: str) -> tuple[Secret, DerivedRow | None]:
        inside = self._interior
        with inside.reading():
            record, key = inside.record(record_id)
            tag = kind_tag(key, kind)
            found = inside.index.rows(DerivedRow, "record_id = ? AND kind_tag = ?", record.record_id, tag)
            return key, found[0] if found else None


def _claim(directory: Path) -> None:
    """Make the directory, or take over an empty one."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = list(directory.iterdir())
        partial = [each for each in found if each.name.startswith(_PARTIAL)]
        others = {each.name for each in found} - {each.name for each in partial} - {LOCK, BLOBS}
        if others or any((directory / BLOBS).glob("*")):
            raise VaultError(f"{directory}: is not empty; give a new directory for the vault")
        for each in partial:
            each.unlink()
        directory.chmod(0o700)
        (directory / BLOBS).mkdir(exist_ok=True, mode=0o700)
    except OSError as error:
        raise VaultUnavailable(f"{directory}: no vault can be created here ({error.strerror})") from error


def _locked(key: MasterKey, vault: bytes, vault_key: Secret) -> tuple[bytes, bytes]:
    """A slot for this master key, and the vault key wrapped by it."""
    slot = key.new_slot()
    encoded = msgspec.json.encode(slot)
    return encoded, lock_vault_key(key.unlock(slot), vault_key, vault=vault, slot=encoded)


def _unlocked(key: MasterKey, header: Header) -> VaultKeys:
    """The keys of the vault with this header."""
    try:
        slot = msgspec.json.decode(header.slot, type=KeySlot)
    except msgspec.DecodeError as error:
        raise VaultDamaged(f"the vault's lock was altered ({error}); restore the index from a backup") from error
    vault_key = unlock_vault_key(key.unlock(slot), header.wrapped, vault=header.vault, slot=header.slot)
    return VaultKeys(header.vault, vault_key)


def _interior(
    directory: Path, index: Index, keys: VaultKeys, header: Header, *, access: Access, busy_seconds: float
) -> Interior:
    return Interior(
        index=index,
        commitment=Commitment(index, keys, lock_digest(keys, header)),
        blobs=BlobFolder(directory / BLOBS),
        lock=directory / LOCK,
        access=access,
        busy_seconds=busy_seconds,
    )


def _subject(change: Change, keys: VaultKeys, subject_id: str) -> SubjectRow:
    """The subject of this id, new or known."""
    known = change.index.rows(SubjectRow, "tag = ?", subject_tag(keys, subject_id))
    if known:
        return known[0]
    row = seal_subject(keys, change.new_subject(), subject_id, key=random_key())
    change.insert(row)
    return row
