"""An open vault's parts, and whose turn it is to use them."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from client.vault.blobs import writing
from client.vault.errors import UnknownRecord, VaultBusy, VaultDamaged, VaultRolledBack
from client.vault.index import DerivedRow, RecordRow, SubjectRow
from client.vault.sealing import record_key, subject_key
from common.errors import VaultError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from client.vault.blobs import BlobFolder
    from client.vault.commitment import Commitment, State
    from client.vault.index import Index
    from client.vault.records import RecordId, VaultState
    from client.vault.sealing import VaultKeys
    from common.crypto.primitives import Secret

Access: TypeAlias = Literal["read", "write"]


@dataclass(kw_only=True, slots=True)
class Interior:
    """Index, commitment and files of one open vault. One thread at a time; one writing process at a time."""

    index: Index
    commitment: Commitment
    blobs: BlobFolder
    lock: Path
    access: Access
    busy_seconds: float
    guard: threading.RLock = field(default_factory=threading.RLock)
    is_open: bool = True

    @property
    def keys(self) -> VaultKeys:
        """The present ones; rotation exchanges them."""
        return self.commitment.keys

    @contextlib.contextmanager
    def reading(self) -> Iterator[State]:
        """One moment of the index, checked.

        Raises:
            VaultError: The vault was closed, damaged or locked anew.

        """
        with self.guard:
            if not self.is_open:
                raise VaultError("this vault was closed; open it again")
            with self.commitment.reading() as state:
                yield state

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """No other writer, in this process or another.

        Raises:
            VaultBusy: Another one is at work.
            VaultError: Closed, or open for reading only.

        """
        with self.guard:
            if not self.is_open or self.access != "write":
                raise VaultError('this vault is closed, or open for reading only; open it with access="write"')
            with writing(self.lock, busy_seconds=self.busy_seconds):
                yield

    @contextlib.contextmanager
    def new_files(self, names: list[bytes]) -> Iterator[None]:
        """Files are written inside, and their names added to the list before each is; forced to disk at the end.

        Must be left before the index is committed: once that was tried, nobody knows whether it refers to them until it
        is opened again, and the files stay for the sweep.
        """
        try:
            yield
            self.blobs.sync()
        except BaseException:
            with contextlib.suppress(VaultError):  # the first error says more, and the next opening sweeps
                self.blobs.remove(names)
            raise

    def subject_keys(self) -> dict[int, Secret]:
        """Every subject's key."""
        return {row.subject: subject_key(self.keys, row) for row in self.index.rows(SubjectRow)}

    def record(self, record_id: RecordId) -> tuple[RecordRow, Secret]:
        """A record's row and key.

        Raises:
            UnknownRecord: There is no such record.

        """
        try:
            found = self.index.rows(RecordRow, "record_id = ?", bytes.fromhex(record_id))
        except ValueError:
            found = []
        if not found:
            raise UnknownRecord(f"no record {record_id[:64]!r} in this vault; it was erased, or is another vault's")
        (subject,) = self.index.rows(SubjectRow, "subject = ?", found[0].subject)
        return found[0], record_key(self.keys, found[0], subject_key(self.keys, subject))

    def file_content(self, name: bytes) -> bytes | None:
        """A sealed file; None if it is not there, which is damage if the index, read again, still refers to it."""
        try:
            return self.blobs.read(name)
        except FileNotFoundError:
            return None

    def file_gone(self) -> VaultDamaged:
        """To be raised for a file that the index refers to and that is not there."""
        return VaultDamaged(f"a file of {self.blobs.path} is gone; restore it from a backup")

    def check(self, newest: int, expected: VaultState | None) -> None:
        """Check the index as a whole against what is known besides.

        Args:
            newest: Largest generation of a file, listed *before*: another process may be adding.
            expected: What was noted.

        Raises:
            VaultError: See :meth:`client.vault.vault.Vault.open`.

        """
        with self.reading() as state:
            if expected is not None:
                self.commitment.check_successor(state, expected)
            if newest > state.generation + 1:
                raise VaultRolledBack(
                    f"the index is at change {state.generation}, and there are files of change {newest}: an older copy "
                    "was put in its place; restore the newest, or move the later files away"
                )

    def tidy(self) -> None:
        """Wipe and sweep what a process that died left behind, unless another one is writing."""
        try:
            with self.guard, writing(self.lock, busy_seconds=0):
                self.index.scrub(always=False)
                with self.reading():
                    kept = {row.blob for row in self.index.rows(RecordRow)}
                    kept |= {row.blob for row in self.index.rows(DerivedRow)}
                self.blobs.sweep(kept)
        except VaultBusy:
            return  # the next one to open it for writing will

    def close(self) -> None:
        """Close the index; again is no error."""
        with self.guard:
            if self.is_open:
                self.is_open = False
                self.index.close()
