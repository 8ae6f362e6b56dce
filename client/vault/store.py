"""INTERFACE ONLY SO FAR: the vault."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import date
    from pathlib import Path

    from client.vault.master_key import MasterKey
    from client.vault.records import (
        Erased,
        ErasurePlan,
        NewRecord,
        RecordHashes,
        RecordId,
        RecordInfo,
        Split,
        StoredRecord,
        Subject,
        VaultState,
    )


class Vault:
    """An open vault; usable from several threads, one call at a time. A context manager."""

    @classmethod
    def create(cls, directory: Path, key: MasterKey) -> Vault:
        """A new, empty vault, open for writing. Raises VaultError if the directory holds anything."""
        raise NotImplementedError

    @classmethod
    def open(
        cls,
        directory: Path,
        key: MasterKey,
        *,
        access: Literal["read", "write"] = "read",
        expected: VaultState | None = None,
    ) -> Vault:
        """Check and open; one writer at a time (else VaultBusy), any number of readers.

        Raises VaultMissing, VaultDamaged, VaultRolledBack (older than, or not a successor of ``expected``),
        ForeignVault, WrongMasterKey, VaultBusy, VaultUnavailable, WrongVaultVersion.
        """
        raise NotImplementedError

    def __enter__(self) -> Self:
        raise NotImplementedError

    def __exit__(self, *exc: object) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def state(self) -> VaultState:
        """For the audit log; hand it to :meth:`open` as ``expected``."""
        raise NotImplementedError

    def add(self, records: Sequence[NewRecord]) -> tuple[RecordId, ...]:
        """One atomic, durable transaction: after a crash all are there, or none."""
        raise NotImplementedError

    def infos(self, split: Split | None = None) -> tuple[RecordInfo, ...]:
        """In the order in which they were added, expired ones included."""
        raise NotImplementedError

    def read(self, record_id: RecordId) -> StoredRecord:
        """Raises UnknownRecord, VaultDamaged."""
        raise NotImplementedError

    def hashes(self) -> Iterator[RecordHashes]:
        """Of every record, for the search for near-duplicates."""
        raise NotImplementedError

    def has_exact(self, exact_hash: bytes) -> bool:
        """Whether a record with this exact hash is there."""
        raise NotImplementedError

    def subjects(self) -> tuple[Subject, ...]:
        raise NotImplementedError

    def find_subject(self, subject_id: str) -> Subject | None:
        raise NotImplementedError

    def derived(self, record_id: RecordId, kind: str) -> bytes | None:
        """What was computed from the record and kept under this kind. Raises UnknownRecord, VaultDamaged."""
        raise NotImplementedError

    def put_derived(self, kind: str, items: Mapping[RecordId, bytes]) -> None:
        """Keep or replace, in one transaction. Raises UnknownRecord."""
        raise NotImplementedError

    def note_run(self, run: str) -> None:
        """Write down that this run trains on what is in the vault now; idempotent, call before each shard is built."""
        raise NotImplementedError

    def plan_erasure(self, subject_id: str) -> ErasurePlan:
        """The dry run. Raises UnknownSubject."""
        raise NotImplementedError

    def erase_subject(self, subject_id: str) -> Erased:
        """Destroy a subject's keys, records and derived items. Raises UnknownSubject."""
        raise NotImplementedError

    def plan_expiry(self, today: date) -> ErasurePlan:
        """The dry run of :meth:`erase_expired`."""
        raise NotImplementedError

    def expired(self, today: date) -> tuple[RecordInfo, ...]:
        """Records whose ``expires`` is today or earlier."""
        raise NotImplementedError

    def erase_expired(self, today: date) -> Erased:
        """Destroy keys, records and derived items of what has expired; a subject goes with its last record."""
        raise NotImplementedError

    def rotate(self, key: MasterKey) -> None:
        """Lock the vault with another master key; no record is encrypted again."""
        raise NotImplementedError
