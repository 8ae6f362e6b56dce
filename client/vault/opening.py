"""Making a vault, opening one, and locking one anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from client.vault.access import Interior, newest_generation
from client.vault.blobs import BlobFolder, sync_folder
from client.vault.commitment import Commitment, first_state, lock_digest
from client.vault.errors import VaultDamaged, VaultMissing, VaultUnavailable
from client.vault.index import Header, Index
from client.vault.master_key import KeySlot
from client.vault.sealing import VaultKeys, lock_vault_key, unlock_vault_key
from common.crypto.primitives import random_key, random_name
from common.errors import VaultError

if TYPE_CHECKING:
    from pathlib import Path

    from client.vault.access import Access
    from client.vault.master_key import MasterKey
    from client.vault.records import VaultState
    from common.crypto.primitives import Secret

INDEX: Final = "index.sqlite3"
BLOBS: Final = "blobs"
LOCK: Final = "lock"
_PARTIAL: Final = "index.partial"
_VAULT_BYTES: Final = 16


def create(directory: Path, key: MasterKey, *, busy_seconds: float) -> Interior:
    """Make an empty vault, open for writing; what an interrupted creation left is taken over.

    Raises:
        VaultError: The directory holds something else.
        MasterKeyUnavailable: The key cannot be had, or is too weak.
        VaultUnavailable: The directory cannot be written.

    """
    _claim(directory)
    vault, vault_key = random_name(_VAULT_BYTES), random_key()
    slot, wrapped = locked(key, vault, vault_key)
    keys = VaultKeys(vault, vault_key)
    header = Header(vault, slot, wrapped, first_state(keys, slot, wrapped))
    Index.create(directory / INDEX, header, busy_seconds=busy_seconds)
    sync_folder(directory)
    index = Index(directory / INDEX, busy_seconds=busy_seconds)
    return _interior(directory, index, keys, header, access="write", busy_seconds=busy_seconds)


def open_checked(
    directory: Path, key: MasterKey, *, access: Access, expected: VaultState | None, busy_seconds: float
) -> Interior:
    """Open a vault and check it; see :meth:`client.vault.vault.Vault.open`."""
    blobs = BlobFolder(directory / BLOBS)
    if not (directory / INDEX).is_file():
        raise VaultMissing(f"{directory}: no vault; create one, or mend the path")
    newest = newest_generation(blobs.names())
    index = Index(directory / INDEX, busy_seconds=busy_seconds)
    try:
        with index.snapshot():
            header = index.header()
        keys = unlocked(key, header)
        interior = _interior(directory, index, keys, header, access=access, busy_seconds=busy_seconds)
        interior.check(newest, expected)
        if access == "write":
            interior.tidy()
    except BaseException:
        index.close()
        raise
    return interior


def locked(key: MasterKey, vault: bytes, vault_key: Secret) -> tuple[bytes, bytes]:
    """A slot for this master key, and the vault key wrapped by it."""
    slot = key.new_slot()
    encoded = msgspec.json.encode(slot)
    return encoded, lock_vault_key(key.unlock(slot), vault_key, vault=vault, slot=encoded)


def unlocked(key: MasterKey, header: Header) -> VaultKeys:
    """The keys of the vault with this header.

    Raises:
        WrongMasterKey: Another key, or another kind of key.
        MasterKeyUnavailable: The key cannot be had.
        VaultDamaged: The slot is not one.

    """
    try:
        slot = msgspec.json.decode(header.slot, type=KeySlot)
    except msgspec.DecodeError as error:
        raise VaultDamaged(f"the vault's lock was altered ({error}); restore the index from a backup") from error
    vault_key = unlock_vault_key(key.unlock(slot), header.wrapped, vault=header.vault, slot=header.slot)
    return VaultKeys(header.vault, vault_key)


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
