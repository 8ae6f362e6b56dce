"""Sealed files, one for each picture or derived item, each written once under a name that was never used before.

A file's name is the number of the change that will refer to it, and a random part. It is written and forced to disk
before the index refers to it, and taken away after the index has stopped to: whatever moment the power fails at, the
files that are missing are referred to by nothing, and the files that nothing refers to are swept away at the next
opening. A file of a later change than the index has seen shows that the index is an older copy.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from client.vault.errors import VaultBusy, VaultUnavailable
from common import durable_files
from common.crypto.primitives import random_name
from common.durable_files import open_new
from common.host.file_lock import locked

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path

GENERATION_BYTES: Final = 8
NAME_BYTES: Final = GENERATION_BYTES + 16


@dataclass(frozen=True, slots=True)
class BlobFolder:
    """A folder of sealed files."""

    path: Path

    def write(self, name: bytes, sealed: bytes) -> None:
        """Force a new file to disk; :meth:`sync` then makes its name last, and those of all others of one change.

        Raises:
            VaultUnavailable: Full disk, rights, or a failing device.

        """
        try:
            descriptor = open_new(self._file(name))
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                view = memoryview(sealed)
                while view:
                    view = view[file.write(view) :]
                os.fsync(descriptor)
        except OSError as error:
            raise VaultUnavailable(f"{self.path}: {error.strerror}; nothing was added") from error

    def sync(self) -> None:
        """Make the names of new files, and the absence of removed ones, last."""
        sync_folder(self.path)

    def read(self, name: bytes) -> bytes:
        """A file's content.

        Raises:
            FileNotFoundError: It is not there; whether that is damage, only the index knows.
            VaultUnavailable: It cannot be read.

        """
        try:
            return self._file(name).read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise VaultUnavailable(f"{self.path}: {error.strerror}") from error

    def size(self, names: Iterable[bytes]) -> int:
        """Bytes in all of these files that are there."""
        total = 0
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += self._file(name).stat().st_size
        return total

    def remove(self, names: Collection[bytes]) -> None:
        """Take files away; one that is gone already is no error.

        Raises:
            VaultUnavailable: The folder cannot be written.

        """
        if not names:
            return
        try:
            for name in names:
                self._file(name).unlink(missing_ok=True)
        except OSError as error:
            raise VaultUnavailable(f"{self.path}: {error.strerror}; sealed files without a key are left") from error
        self.sync()

    def names(self) -> frozenset[bytes]:
        """Names of all files; what was not named by :func:`new_name` is left out."""
        try:
            found = [each.name for each in self.path.iterdir()]
        except OSError as error:
            raise VaultUnavailable(f"{self.path}: {error.strerror}; restore the vault from a backup") from error
        return frozenset(bytes.fromhex(each) for each in found if len(each) == 2 * NAME_BYTES and _is_hex(each))

    def sweep(self, kept: Collection[bytes]) -> int:
        """Take away every file that the index does not refer to; how many."""
        left = self.names().difference(kept)
        self.remove(left)
        return len(left)

    def _file(self, name: bytes) -> Path:
        return self.path / name.hex()


def new_name(generation: int) -> bytes:
    """A name for a file that the change of this number will refer to."""
    return generation.to_bytes(GENERATION_BYTES, "big") + random_name(NAME_BYTES - GENERATION_BYTES)


def generation_of(name: bytes) -> int:
    """The number of the change that a file was written for."""
    return int.from_bytes(name[:GENERATION_BYTES], "big")


def sync_folder(path: Path) -> None:
    """Make the names in a folder last, or raise VaultUnavailable."""
    try:
        durable_files.sync_folder(path)
    except OSError as error:
        raise VaultUnavailable(f"{path}: {error.strerror}") from error


@contextlib.contextmanager
def writing(lock: Path, *, busy_seconds: float) -> Iterator[None]:
    """One writer at a time, across processes and threads; the system frees the lock of a process that dies.

    Raises:
        VaultBusy: Another writer is at work for longer than ``busy_seconds``.
        VaultUnavailable: The file cannot be opened for writing.

    """
    busy = VaultBusy(f"{lock.parent}: another process is writing to it; try again when it is done")
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(lock, wait_s=busy_seconds, busy=busy))
        except OSError as error:
            raise VaultUnavailable(f"{lock.parent}: cannot be written ({error.strerror})") from error
        yield


def _is_hex(text: str) -> bool:
    return not set(text) - set("0123456789abcdef")
