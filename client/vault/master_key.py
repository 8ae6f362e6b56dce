"""INTERFACE ONLY SO FAR: where the key that opens a vault comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from common.crypto import Secret


class MasterKey(Protocol):
    """A source of the key; a vault asks it to lock (new slot) and to unlock (existing slot)."""


class Passphrase:
    """Argon2id over a passphrase of at least 12 characters."""

    def __init__(self, passphrase: Secret) -> None:
        raise NotImplementedError


class KeyFile:
    """32 random bytes as 64 hexadecimal digits in a file of mode 0600."""

    def __init__(self, path: Path) -> None:
        raise NotImplementedError


class OsKeyring:
    """32 random bytes kept by the operating system's keyring (extra ``vault``)."""

    def __init__(self, name: str) -> None:
        raise NotImplementedError


def create_key_file(path: Path) -> KeyFile:
    """A fresh key in a new file."""
    raise NotImplementedError


def create_keyring_key(name: str) -> OsKeyring:
    """A fresh key in the system's keyring."""
    raise NotImplementedError
