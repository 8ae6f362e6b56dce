from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import keyring
import msgspec
import pytest
from keyring.backend import KeyringBackend
from keyring.backends.fail import Keyring as NoKeyring
from keyring.errors import KeyringLocked

from client.vault.errors import MasterKeyUnavailable, VaultDamaged, WrongMasterKey
from client.vault.index import Index
from client.vault.master_key import (
    SERVICE,
    FileSlot,
    KeyFile,
    KeyringSlot,
    OsKeyring,
    Passphrase,
    PassphraseSlot,
    create_key_file,
    create_keyring_key,
)
from client.vault.vault import Vault
from common.crypto.primitives import Secret
from tests.client.vaults import key_file, record

if TYPE_CHECKING:
    from pathlib import Path


class Memory(KeyringBackend):
    """A keyring for tests; which module it claims to come from decides whether it counts as safe."""

    priority = 1  # type: ignore[assignment] # the base computes it

    def __init__(self, *, locked: bool = False) -> None:
        super().__init__()
        self.kept: dict[tuple[str, str], str] = {}
        self.locked = locked

    def get_password(self, service: str, username: str) -> str | None:
        if self.locked:
            raise KeyringLocked("the content would stand here")
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.kept[service, username] = password


class Safe(Memory):
    __module__ = "keyring.backends.SecretService"


class Chain(Memory):
    __module__ = "keyring.backends.chainer"

    def __init__(self, *backends: KeyringBackend) -> None:
        super().__init__()
        self.backends = backends


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch):  # noqa: ANN201 - a function of this module
    def install(backend: KeyringBackend) -> KeyringBackend:
        monkeypatch.setattr(keyring, "get_keyring", lambda: backend)
        return backend

    return install


def quick(text: str) -> Passphrase:
    passphrase = Passphrase.of(text)
    return Passphrase(passphrase.secret, memory_kib=1 << 13, passes=1)


def test_a_passphrase_opens_and_another_does_not(tmp_path: Path) -> None:
    Vault.create(tmp_path / "vault", quick("correct horse battery")).close()
    Vault.open(tmp_path / "vault", quick("correct horse battery")).close()
    for wrong in ("correct horse batterz", "correct horse battery ", "Correct horse battery"):
        with pytest.raises(WrongMasterKey, match="does not open") as caught:
            Vault.open(tmp_path / "vault", quick(wrong))
        assert wrong not in str(caught.value)


def test_another_unicode_form_is_the_same_passphrase(tmp_path: Path) -> None:
    Vault.create(tmp_path / "vault", quick("caf\u00e9 caf\u00e9 caf\u00e9")).close()
    Vault.open(tmp_path / "vault", quick("cafe\u0301 cafe\u0301 cafe\u0301")).close()


def test_the_slots_own_parameters_count_and_not_the_defaults(tmp_path: Path) -> None:
    Vault.create(tmp_path / "vault", quick("correct horse battery")).close()
    Vault.open(tmp_path / "vault", Passphrase.of("correct horse battery")).close()


def test_new_slots_are_dear_and_never_the_same() -> None:
    one, two = (Passphrase.of("correct horse battery").new_slot() for _ in range(2))
    assert isinstance(one, PassphraseSlot)
    assert isinstance(two, PassphraseSlot)
    assert one.salt != two.salt
    # at least RFC 9106's second recommendation: 64 MiB, three passes, four lanes
    assert (one.memory_kib >= 1 << 16, one.passes >= 3, one.lanes) == (True, True, 4)


@pytest.mark.parametrize("weak", ["", "short", "eleven char"])
def test_a_short_passphrase_locks_nothing(weak: str, tmp_path: Path) -> None:
    with pytest.raises(MasterKeyUnavailable, match="at least 12"):
        Vault.create(tmp_path / "vault", quick(weak))


@pytest.mark.parametrize(
    "changes",
    [
        {"memory_kib": 1 << 30},
        {"memory_kib": 1},
        {"passes": 0},
        {"passes": 1000},
        {"lanes": 64},
        {"salt": "AA=="},
        {"type": "other"},
        {"more": 1},
    ],
)
def test_altered_parameters_are_refused_before_they_cost_anything(changes: dict[str, object], tmp_path: Path) -> None:
    Vault.create(tmp_path / "vault", quick("correct horse battery")).close()
    index = Index(tmp_path / "vault" / "index.sqlite3", busy_seconds=1)
    with index.transaction():
        header = index.header()
        slot = msgspec.json.decode(header.slot) | changes
        index.set_header(header._replace(slot=msgspec.json.encode(slot)))
    index.close()
    with pytest.raises(VaultDamaged, match="lock was altered"):
        Vault.open(tmp_path / "vault", quick("correct horse battery"))


def test_memory_that_is_not_to_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object, **__: object) -> object:
        raise MemoryError

    monkeypatch.setattr("common.crypto.primitives.Argon2id", no_memory)
    with pytest.raises(MasterKeyUnavailable, match="free some memory"):
        quick("correct horse battery").unlock(PassphraseSlot(salt=bytes(16)))


def test_each_kind_of_key_names_the_other(tmp_path: Path) -> None:
    keys = (quick("correct horse battery"), key_file(tmp_path), OsKeyring("site"))
    slots = (PassphraseSlot(salt=bytes(16)), FileSlot(), KeyringSlot())
    for at, key in enumerate(keys):
        for other, slot in enumerate(slots):
            if at != other:
                with pytest.raises(WrongMasterKey, match="is locked by"):
                    key.unlock(slot)


def test_a_key_file_is_random_private_and_never_overwritten(tmp_path: Path) -> None:
    key = create_key_file(tmp_path / "new" / "key")
    assert (key.path.stat().st_mode & 0o777, len(key.path.read_bytes())) == (0o600, 65)
    assert key.unlock(FileSlot()) != create_key_file(tmp_path / "other").unlock(FileSlot())
    with pytest.raises(MasterKeyUnavailable, match="not overwritten"):
        create_key_file(key.path)
    (tmp_path / "file").write_text("")
    with pytest.raises(MasterKeyUnavailable, match="cannot be written"):
        create_key_file(tmp_path / "file" / "key")


@pytest.mark.parametrize(
    "content", [b"", b"12" * 31, b"12" * 33, b"zz" * 32, b"AB" * 32, b"\xff" * 64, b"12" * 32 + b" "]
)
def test_a_file_that_is_no_key_is_refused_without_a_quotation(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(MasterKeyUnavailable, match="64 hexadecimal digits") as caught:
        KeyFile(path).unlock(FileSlot())
    assert not content or content.decode("ascii", "replace") not in str(caught.value)


def test_a_key_file_that_others_can_read_or_that_is_gone_is_refused(tmp_path: Path) -> None:
    key = create_key_file(tmp_path / "key")
    key.path.chmod(0o640)
    with pytest.raises(MasterKeyUnavailable, match="chmod 600"):
        key.unlock(FileSlot())
    key.path.unlink()
    with pytest.raises(MasterKeyUnavailable, match="cannot be read"):
        key.unlock(FileSlot())


def test_the_systems_keyring_opens_a_vault(tmp_path: Path, use) -> None:  # noqa: ANN001 - the fixture above
    backend = use(Safe())
    key = create_keyring_key("site")
    assert len(backend.kept[SERVICE, "site"]) == 64
    with Vault.create(tmp_path / "vault", key) as vault:
        vault.add([record(0)])
    Vault.open(tmp_path / "vault", OsKeyring("site")).close()
    with pytest.raises(MasterKeyUnavailable, match="not overwritten"):
        create_keyring_key("site")
    with pytest.raises(MasterKeyUnavailable, match="holds no key"):
        Vault.open(tmp_path / "vault", OsKeyring("elsewhere"))
    backend.kept[SERVICE, "site"] = "no key"
    with pytest.raises(MasterKeyUnavailable, match="64 hexadecimal"):
        Vault.open(tmp_path / "vault", key)


def test_a_keyring_that_keeps_nothing_or_keeps_it_in_clear_is_refused(use) -> None:  # noqa: ANN001 - the fixture above
    for unsafe in (NoKeyring(), Memory(), Chain(), Chain(Memory(), NoKeyring())):
        use(unsafe)
        with pytest.raises(MasterKeyUnavailable, match="not known to encrypt"):
            create_keyring_key("site")
    safe = Safe()
    use(Chain(Memory(), safe))
    create_keyring_key("site")
    assert (SERVICE, "site") in safe.kept


def test_a_locked_keyring_says_so_and_not_what_it_holds(use) -> None:  # noqa: ANN001 - the fixture above
    use(Safe(locked=True))
    with pytest.raises(MasterKeyUnavailable, match="KeyringLocked; unlock it") as caught:
        create_keyring_key("site")
    assert "content" not in str(caught.value)


def test_names_that_a_keyring_may_misread_are_refused() -> None:
    for name in ("", "a b", "../x", "x" * 65, "a\n"):
        with pytest.raises(MasterKeyUnavailable, match="wanted a name"):
            OsKeyring(name)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(MasterKeyUnavailable, match=r"darkroom\[vault\]"):
        create_keyring_key("site")


def test_passphrases_do_not_print() -> None:
    assert "horse" not in repr(Passphrase.of("correct horse battery"))
    assert isinstance(Passphrase.of("x").secret, Secret)
    assert os.sep not in repr(Passphrase.of("x"))
