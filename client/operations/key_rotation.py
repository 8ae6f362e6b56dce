"""Lock a site's vault with another master key, and say so in its settings.

The settings that name the new key are written beside the old ones before the vault is locked anew, and take their
place afterwards: whatever a crash leaves, one of the two files names a key that opens the vault. The old key is not
deleted, since backups of the vault are opened by it: whoever wants them unreadable destroys it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from client.governance.rollback import VAULT
from client.site.settings import read_site
from client.site.vault_access import master_key, open_noted, open_vault
from client.steward.process import writing
from client.vault.errors import VaultBusy
from client.vault.master_key import create_key_file, create_keyring_key
from common.durable_files import write_atomically
from common.errors import ConfigError, DarkroomError, VaultError

if TYPE_CHECKING:
    from pathlib import Path

    from client.site.settings import SiteConfig, VaultConfig

_SOURCE: Final = re.compile(r"^\s*(key_file|passphrase_file|passphrase_env|keyring)\s*=.*$", re.MULTILINE)


def rotate_key(site_file: Path, line: str) -> None:
    """Make the key that the line names if it is a file or a keyring's, and lock the vault with it.

    Args:
        site_file: The site's settings.
        line: The new source, as it is to stand in them: ``key_file = "vault-2.key"``.

    Raises:
        ConfigError: The settings have no single line to replace, or the source is no other than before.
        StewardRunning: A steward, or another command that writes, is at work.
        VaultError: The present key does not open the vault, or the new one cannot be had.

    """
    site = read_site(site_file)
    beside = site_file.with_suffix(".new.toml")
    with writing(site) as audit, open_noted(site.vault, audit, access="write") as vault:
        try:
            new = _settings(site, site_file, beside, line)
            _make_key(new.vault)
            audit.append("rotating", {})
            vault.rotate(master_key(new.vault))
        except DarkroomError as error:
            if not (isinstance(error, VaultBusy) and _opens(beside)):
                beside.unlink(missing_ok=True)
                raise
        beside.replace(site_file)
        audit.append("rotated", {VAULT: vault.state().text()})


def _settings(site: SiteConfig, site_file: Path, beside: Path, line: str) -> SiteConfig:
    """The new settings, written beside the old."""
    text = site_file.read_text(encoding="utf-8")
    if len(_SOURCE.findall(text)) != 1:
        raise ConfigError(f"{site_file}: wanted the source of the vault's key on one line of its own")
    write_atomically(beside, _SOURCE.sub(lambda _: line, text).encode())
    new = read_site(beside)
    if new.vault == site.vault or msgspec.structs.replace(new, vault=site.vault) != site:
        raise ConfigError(f"{line}: is where the vault's key comes from already; give another")
    return new


def _make_key(source: VaultConfig) -> None:
    """A passphrase is a person's own."""
    if source.key_file is not None:
        create_key_file(source.key_file)
    elif source.keyring is not None:
        create_keyring_key(source.keyring)


def _opens(settings: Path) -> bool:
    """Whether the vault is locked as they say: then only the old lock's traces wait for a reader to end."""
    try:
        open_vault(read_site(settings).vault).close()
    except VaultError:
        return False
    return True
