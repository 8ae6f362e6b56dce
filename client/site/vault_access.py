"""A site's own vault, opened as its settings say; needs no torch, so that commands start at once."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from client.governance.rollback import noted_in
from client.vault.master_key import KeyFile, OsKeyring, Passphrase
from client.vault.vault import Vault
from common.errors import ConfigError

if TYPE_CHECKING:
    from datetime import date

    from client.site.settings import VaultConfig
    from client.vault.access import Access
    from client.vault.master_key import MasterKey
    from client.vault.records import VaultState
    from common.audit_log import AuditLog
    from common.privacy.statements import Unit


def master_key(config: VaultConfig) -> MasterKey:
    """The source of the vault's key that the site names.

    Raises:
        ConfigError: The passphrase is not where the site says.

    """
    if config.key_file is not None:
        return KeyFile(config.key_file)
    if config.keyring is not None:
        return OsKeyring(config.keyring)
    return Passphrase.of(_passphrase(config))


@dataclass(frozen=True, slots=True)
class HeldVault:
    """A vault whose passphrase this process keeps, for a process that opens it again and again."""

    directory: Path
    key: MasterKey = field(repr=False)


def hold_vault(config: VaultConfig) -> VaultConfig | HeldVault:
    """A vault to be opened later: a passphrase in the environment is taken out of it; other sources stay as they are.

    Raises:
        ConfigError: The passphrase is not where the site says.

    """
    if config.passphrase_env is None:
        return config
    held = HeldVault(config.directory, master_key(config))
    forget_passphrase(config)
    return held


def open_vault(
    config: VaultConfig | HeldVault, *, access: Access = "read", expected: VaultState | None = None
) -> Vault:
    """The site's vault; ``expected`` is what the audit log says of it (:mod:`client.governance.rollback`).

    Raises:
        ConfigError: The passphrase is not where the site says.
        VaultError: See :meth:`client.vault.vault.Vault.open`.

    """
    key = config.key if isinstance(config, HeldVault) else master_key(config)
    return Vault.open(config.directory, key, access=access, expected=expected)


def open_noted(config: VaultConfig | HeldVault, audit: AuditLog, *, access: Access = "read") -> Vault:
    """The site's vault in the last state that its log tells of; raises as :func:`open_vault`."""
    return open_vault(config, access=access, expected=noted_in(audit.path).vault)


def forget_passphrase(config: VaultConfig) -> None:
    """Take the passphrase out of the environment, so that no process that is started from here on inherits it."""
    if config.passphrase_env is not None:
        os.environ.pop(config.passphrase_env, None)


@dataclass(frozen=True, kw_only=True)
class VaultCounts:
    """What a vault holds; for the institution's own people alone."""

    pictures: int
    held_out: int
    subjects: int
    expired: int
    """That may no longer be used, and are erased at the steward's next look."""


def count_vault(config: VaultConfig, *, day: date, expected: VaultState | None) -> VaultCounts:
    """Open the vault and count.

    Raises:
        ConfigError: The passphrase is not where the site says.
        VaultError: It cannot be opened.

    """
    with open_vault(config, expected=expected) as vault:
        infos = vault.infos()
        return VaultCounts(
            pictures=len(infos),
            held_out=sum(info.split == "holdout" for info in infos),
            subjects=len({info.subject for info in infos}),
            expired=sum(info.expires is not None and info.expires <= day for info in infos),
        )


def count_units(config: VaultConfig | HeldVault, unit: Unit, *, day: date, expected: VaultState | None) -> int:
    """How many privacy units a run would train on: what is held out or has expired does not count.

    Raises:
        ConfigError: The passphrase is not where the site says.
        VaultError: It cannot be opened.

    """
    with open_vault(config, expected=expected) as vault:
        usable = [info for info in vault.infos("train") if info.expires is None or info.expires > day]
    return len({info.subject for info in usable}) if unit == "subject" else len(usable)


def _passphrase(config: VaultConfig) -> str:
    if config.passphrase_env is not None:
        text = os.environ.get(config.passphrase_env, "")
        if not text:
            raise ConfigError(f"vault.passphrase_env: the environment has no {config.passphrase_env}")
        return text
    path = config.passphrase_file or Path()
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"vault.passphrase_file: {path} cannot be read as text") from error
