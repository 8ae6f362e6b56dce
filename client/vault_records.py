"""A site's vault as the source of what its steward trains on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from client.latents import EncodingPlan
from client.training_room import EncodedRecords
from client.vault.master_key import KeyFile, OsKeyring, Passphrase
from client.vault.shards import encode_vault
from client.vault.store import Vault
from common.errors import ConfigError
from common.manifest import canonical_bytes, manifest_digest

if TYPE_CHECKING:
    from datetime import date

    from client.site import VaultConfig
    from client.vault.master_key import MasterKey
    from common.adapter.model import BaseModel
    from common.manifest import Manifest


def today() -> date:
    """The date by which records expire."""
    return datetime.now(UTC).date()


def master_key(config: VaultConfig) -> MasterKey:
    """The source of the vault's key that the site names.

    Raises:
        ConfigError: The passphrase is not where the site says.

    """
    if config.key_file is not None:
        return KeyFile(Path(config.key_file))
    if config.keyring is not None:
        return OsKeyring(config.keyring)
    return Passphrase.of(_passphrase(config))


def _passphrase(config: VaultConfig) -> str:
    if config.passphrase_env is not None:
        text = os.environ.get(config.passphrase_env, "")
        if not text:
            raise ConfigError(f"vault.passphrase_env: the environment has no {config.passphrase_env}")
        return text
    path = Path(config.passphrase_file or "")
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"vault.passphrase_file: {path} cannot be read as text") from error


@dataclass(frozen=True, kw_only=True)
class VaultRecords:
    """A :class:`client.training_room.RecordSource` over the vault; opened for each run, closed when it is encoded."""

    config: VaultConfig

    def encoded(self, base: BaseModel, manifest: Manifest, *, device: str) -> EncodedRecords:
        """What has not expired, encoded; that this run uses it is written down first.

        Raises:
            VaultError: The vault cannot be opened or is damaged.
            EmptyFolder: It holds nothing to train on.

        """
        training = manifest.config.training
        plan = EncodingPlan(
            resolution=training.resolution or base.resolution,
            horizontal_flips=training.horizontal_flips,
            device=device,
        )
        with Vault.open(Path(self.config.directory), master_key(self.config), access="write") as vault:
            vault.note_run(manifest_digest(canonical_bytes(manifest)).hex())  # as the ledger names it
            found = encode_vault(base, vault, plan, today=today())
        subject = manifest.privacy is not None and manifest.privacy.unit == "subject"
        return EncodedRecords(shard=found.shard, units=found.subjects if subject else found.images)
