"""Where the key that opens a vault comes from: a passphrase, a key file, or the operating system's keyring.

A vault keeps a *slot*: which kind of master key locks it, and what is public about it. The master key itself wraps one
random vault key and nothing else, so that changing it re-wraps keys and no picture.
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, Protocol, TypeAlias

import msgspec
from msgspec import Meta

from client.vault.errors import MasterKeyUnavailable, WrongMasterKey
from common.crypto.primitives import KEY_BYTES, SALT_BYTES, Secret, random_key, random_name, stretch_passphrase
from common.durable_files import write_new
from common.errors import CryptoError

if TYPE_CHECKING:
    from pathlib import Path

    from keyring.backend import KeyringBackend

MIN_PASSPHRASE: Final = 12
"""Characters; six random words of a list have about 30."""
SERVICE: Final = "darkroom-vault"
SAFE_KEYRINGS: Final = ("SecretService", "kwallet", "libsecret", "macOS", "Windows")
"""Modules of ``keyring.backends`` that encrypt what they keep; its others keep nothing, or keep it in clear."""
_DIGITS: Final = re.compile(f"[0-9a-f]{{{2 * KEY_BYTES}}}")
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class PassphraseSlot(msgspec.Struct, frozen=True, kw_only=True, tag="passphrase", forbid_unknown_fields=True):
    """Argon2id's parameters.

    RFC 9106 offers 2 GiB in one pass, or 64 MiB in three for small machines. The default here is three passes over
    256 MiB: about a second on two cores, four times the memory of the second offer. Bounded, so that whoever alters the
    stored numbers cannot have all memory taken.
    """

    salt: Annotated[bytes, Meta(min_length=SALT_BYTES, max_length=SALT_BYTES)]
    memory_kib: Annotated[int, Meta(ge=1 << 13, le=1 << 22)] = 1 << 18
    passes: Annotated[int, Meta(ge=1, le=16)] = 3
    lanes: Annotated[int, Meta(ge=1, le=16)] = 4


class FileSlot(msgspec.Struct, frozen=True, kw_only=True, tag="file", forbid_unknown_fields=True):
    """Nothing is stored about a key file, not even its place."""


class KeyringSlot(msgspec.Struct, frozen=True, kw_only=True, tag="keyring", forbid_unknown_fields=True):
    """Nor about an entry of the keyring."""


KeySlot: TypeAlias = PassphraseSlot | FileSlot | KeyringSlot


class MasterKey(Protocol):
    """A source of the key."""

    def new_slot(self) -> KeySlot:
        """What a vault is to store when this key locks it.

        Raises:
            MasterKeyUnavailable: The key is too weak to lock anything.

        """
        ...

    def unlock(self, slot: KeySlot) -> Secret:
        """The 32-byte key for this slot.

        Raises:
            WrongMasterKey: The slot is of another kind.
            MasterKeyUnavailable: The key cannot be had, or is not kept safely.

        """
        ...


@dataclass(frozen=True, slots=True)
class Passphrase:
    """Something a person remembers. ``memory_kib`` and ``passes`` are for new slots."""

    secret: Secret
    memory_kib: int = 1 << 18
    passes: int = 3

    @classmethod
    def of(cls, text: str) -> Passphrase:
        """From what a person typed; another Unicode form of it is the same passphrase."""
        return cls(Secret(unicodedata.normalize("NFC", text).encode("utf-8", "surrogateescape")))

    def new_slot(self) -> KeySlot:
        """A fresh salt; see :class:`MasterKey`."""
        if len(self.secret.reveal().decode("utf-8", "replace")) < MIN_PASSPHRASE:
            raise MasterKeyUnavailable(
                f"wanted a passphrase of at least {MIN_PASSPHRASE} characters; take several random words"
            )
        return PassphraseSlot(salt=random_name(SALT_BYTES), memory_kib=self.memory_kib, passes=self.passes)

    def unlock(self, slot: KeySlot) -> Secret:
        """Takes about a second; see :class:`MasterKey`."""
        if not isinstance(slot, PassphraseSlot):
            raise _other_kind(slot, "a passphrase")
        try:
            return stretch_passphrase(
                self.secret, salt=slot.salt, memory_kib=slot.memory_kib, passes=slot.passes, lanes=slot.lanes
            )
        except CryptoError as error:
            raise MasterKeyUnavailable(f"the passphrase cannot be stretched: {error}; free some memory") from error


@dataclass(frozen=True, slots=True)
class KeyFile:
    """32 random bytes as 64 hexadecimal digits in a file that its owner alone can read. Keep it on another disk."""

    path: Path

    def new_slot(self) -> KeySlot:
        """See :class:`MasterKey`."""
        return FileSlot()

    def unlock(self, slot: KeySlot) -> Secret:
        """See :class:`MasterKey`; errors never quote the file's content."""
        if not isinstance(slot, FileSlot):
            raise _other_kind(slot, "a key file")
        try:
            with self.path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                content = file.read(2 * KEY_BYTES + 2)
        except OSError as error:
            raise MasterKeyUnavailable(f"{self.path}: the key cannot be read ({error.strerror})") from error
        if mode & _OTHERS:
            raise MasterKeyUnavailable(f"{self.path}: other users can read this key; run: chmod 600 {self.path}")
        return _from_digits(content.removesuffix(b"\n").decode("ascii", "replace"), str(self.path))


@dataclass(frozen=True, slots=True)
class OsKeyring:
    """32 random bytes under ``name`` in the operating system's keyring (extra ``vault``)."""

    name: str

    def __post_init__(self) -> None:
        """Refuse names that some keyring would read differently, by MasterKeyUnavailable."""
        if not _NAME.fullmatch(self.name):
            raise MasterKeyUnavailable(f"wanted a name of letters, digits and . _ -, got {self.name!r}")

    def new_slot(self) -> KeySlot:
        """See :class:`MasterKey`."""
        return KeyringSlot()

    def unlock(self, slot: KeySlot) -> Secret:
        """See :class:`MasterKey`."""
        if not isinstance(slot, KeyringSlot):
            raise _other_kind(slot, "the system's keyring")
        digits = _ask_keyring(self.name, None)
        if digits is None:
            raise MasterKeyUnavailable(f"the system's keyring holds no key {self.name!r} for {SERVICE}")
        return _from_digits(digits, f"the keyring's entry {self.name!r}")


def create_key_file(path: Path) -> KeyFile:
    """A fresh key in a new file; its folder is made if it is missing.

    Raises:
        MasterKeyUnavailable: There is a file already, or it cannot be written.

    """
    if path.exists():
        raise MasterKeyUnavailable(f"{path}: exists; it is not overwritten, because a vault may need it")
    try:
        write_new(path, random_key().reveal().hex().encode() + b"\n")
    except OSError as error:
        raise MasterKeyUnavailable(f"{path}: the key cannot be written ({error.strerror})") from error
    return KeyFile(path)


def create_keyring_key(name: str) -> OsKeyring:
    """A fresh key in the system's keyring.

    Raises:
        MasterKeyUnavailable: There is such an entry already, or no keyring that encrypts.

    """
    key = OsKeyring(name)
    if _ask_keyring(name, None) is not None:
        raise MasterKeyUnavailable(f"the keyring's entry {name!r} exists; it is not overwritten, a vault may need it")
    _ask_keyring(name, random_key())
    return key


def _ask_keyring(name: str, new: Secret | None) -> str | None:
    """Read the entry, or write it if there is a new key."""
    backend = _safe_backend()
    from keyring.errors import KeyringError  # noqa: PLC0415 - an extra, found by _safe_backend

    try:
        if new is None:
            return backend.get_password(SERVICE, name)
        backend.set_password(SERVICE, name, new.reveal().hex())
    except KeyringError as error:
        raise MasterKeyUnavailable(f"the system's keyring refused: {type(error).__name__}; unlock it") from error
    return None


def _safe_backend() -> KeyringBackend:
    try:
        import keyring  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MasterKeyUnavailable("the system's keyring needs: pip install 'darkroom[vault]'") from error
    backend = keyring.get_keyring()
    # "chainer" asks several in turn, safe and unsafe alike: it is not taken, but its safest member is
    for candidate in getattr(backend, "backends", (backend,)):
        if type(candidate).__module__ in {f"keyring.backends.{name}" for name in SAFE_KEYRINGS}:
            return candidate
    raise MasterKeyUnavailable(
        f"the system's keyring is {type(backend).__module__}, which is not known to encrypt what it keeps; "
        "use a passphrase or a key file"
    )


def _from_digits(digits: str, source: str) -> Secret:
    if not _DIGITS.fullmatch(digits):
        raise MasterKeyUnavailable(f"{source}: wanted {2 * KEY_BYTES} hexadecimal digits")
    return Secret(bytes.fromhex(digits))


def _other_kind(slot: KeySlot, given: str) -> WrongMasterKey:
    wanted = {PassphraseSlot: "a passphrase", FileSlot: "a key file", KeyringSlot: "the system's keyring"}[type(slot)]
    return WrongMasterKey(f"this vault is locked by {wanted}, and was given {given}")
