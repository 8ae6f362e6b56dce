"""A vault's master key can be changed by a command, and whatever happens some settings open the vault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from client.cli import app
from client.operations import key_rotation
from client.operations.new_site import make_site
from client.site.settings import read_site
from client.site.vault_access import open_vault
from client.steward.process import socket_place
from client.steward.socket import held
from client.vault.errors import MasterKeyUnavailable, VaultBusy, WrongMasterKey
from client.vault.vault import Vault
from common.audit_log import verify_log
from common.crypto.identity_file import read_identity_file
from common.errors import VaultError


@pytest.fixture
def site(tmp_path: Path) -> Path:
    make_site(tmp_path / "site", "st-vincent")
    return tmp_path / "site" / "site.toml"


def rotate(site: Path, *words: str) -> Any:
    return CliRunner().invoke(app, ["rotate-key", "--config", str(site), *words])


def opens(site: Path) -> bool:
    try:
        open_vault(read_site(site).vault).close()
    except VaultError:
        return False
    return True


def test_the_new_key_opens_and_the_old_does_not(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = read_site(site)
    assert rotate(site, "--key-file", "vault-2.key").exit_code == 0
    new = read_site(site)
    assert Path(new.vault.key_file or "").name == "vault-2.key"
    assert opens(site)
    with pytest.raises(WrongMasterKey):
        open_vault(old.vault)
    monkeypatch.setenv("VAULT_WORDS", "seven random words on paper")
    assert rotate(site, "--passphrase-env", "VAULT_WORDS").exit_code == 0
    assert opens(site)
    assert 'passphrase_env = "VAULT_WORDS"' in site.read_text()
    assert "# Exactly one source" in site.read_text(), "comments stay"


def test_two_signed_entries_tell_of_it(site: Path) -> None:
    rotate(site, "--key-file", "vault-2.key")
    log = site.parent / "audit.log"
    verify_log(log, read_identity_file(site.parent / "identity.key").public)
    assert [word in log.read_text() for word in ('"rotating"', '"rotated"')] == [True, True]


@pytest.mark.parametrize("words", [(), ("--key-file", "a", "--keyring", "b"), ("--passphrase-env", "no way")])
def test_one_good_source_is_wanted(site: Path, words: tuple[str, ...]) -> None:
    before = site.read_text()
    assert rotate(site, *words).exit_code != 0
    assert site.read_text() == before
    assert opens(site)


def test_a_key_that_exists_or_is_missing_changes_nothing(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (site.parent / "there.key").write_text("0" * 64)
    monkeypatch.delenv("VAULT_WORDS", raising=False)
    for words in (("--key-file", "there.key"), ("--key-file", "vault.key"), ("--passphrase-env", "VAULT_WORDS")):
        assert rotate(site, *words).exit_code != 0
        assert opens(site)
        assert not site.with_suffix(".new.toml").exists()
    assert (site.parent / "there.key").read_text() == "0" * 64


def test_settings_without_a_single_line_are_not_touched(site: Path) -> None:
    site.write_text(site.read_text() + '\n# a comment\n[extra]\nkey_file = "x"\n')
    assert rotate(site, "--key-file", "vault-2.key").exit_code != 0
    assert not (site.parent / "vault-2.key").exists()


def test_a_running_steward_is_not_disturbed(site: Path) -> None:
    with held(socket_place(read_site(site).service)):
        assert rotate(site, "--key-file", "vault-2.key").exit_code != 0
    assert opens(site)
    assert not (site.parent / "vault-2.key").exists()


@pytest.mark.parametrize("done", ["before", "after"])
def test_a_crash_leaves_settings_that_open_the_vault(site: Path, monkeypatch: pytest.MonkeyPatch, done: str) -> None:
    real = Vault.rotate

    def crash(vault: Vault, key: Any) -> None:
        if done == "after":
            real(vault, key)
        raise KeyboardInterrupt

    monkeypatch.setattr(Vault, "rotate", crash)
    with pytest.raises(KeyboardInterrupt):
        key_rotation.rotate_key(site, 'key_file = "vault-2.key"')
    assert opens(site) is (done == "before")
    assert opens(site.with_suffix(".new.toml")) is (done == "after")


def test_a_reader_does_not_leave_settings_that_do_not_open(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader keeps the old lock's traces in use: the vault is locked anew all the same."""
    real = Vault.rotate

    def busy(vault: Vault, key: Any) -> None:
        real(vault, key)
        raise VaultBusy("a reader")

    monkeypatch.setattr(Vault, "rotate", busy)
    key_rotation.rotate_key(site, 'key_file = "vault-2.key"')
    assert opens(site)


def test_a_writer_that_was_first_is_told(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object) -> None:
        raise VaultBusy("a writer")

    monkeypatch.setattr(Vault, "rotate", busy)
    with pytest.raises(VaultBusy):
        key_rotation.rotate_key(site, 'key_file = "vault-2.key"')
    assert opens(site)


def test_a_key_file_that_exists_is_told_as_such(site: Path) -> None:
    (site.parent / "there.key").write_text("0" * 64)
    with pytest.raises(MasterKeyUnavailable, match="exists"):
        key_rotation.rotate_key(site, 'key_file = "there.key"')
