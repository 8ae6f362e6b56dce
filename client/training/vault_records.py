"""A site's vault as the source of what its steward trains on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from client.governance.rollback import PREPARED, VAULT, Use, check_use, noted_in
from client.site.vault_access import count_units, open_vault, today
from client.training.latents import EncodingPlan
from client.training.loaded_base import EncodedRecords
from client.training.vault_latents import encode_vault
from common.audit_log import read_entries
from common.manifest.manifest import canonical_bytes, manifest_digest

if TYPE_CHECKING:
    from client.site.settings import VaultConfig
    from client.site.vault_access import HeldVault
    from client.vault.vault import Vault
    from common.adapter.model import BaseModel
    from common.audit_log import AuditLog
    from common.manifest.manifest import Manifest
    from common.privacy.statements import Unit


@dataclass(frozen=True, kw_only=True)
class VaultRecords:
    """A :class:`client.training.loaded_base.RecordSource` over the vault, which is open only while it is encoded.

    Args:
        config: The vault's.
        population: Under which name its pictures are charged.
        audit: The site's log, which knows the vault's last state and is told of each run that uses it.

    """

    config: VaultConfig | HeldVault
    population: str
    audit: AuditLog

    def check(self, unit: str) -> None:
        """Open the vault and close it: what is wrong with it is better told now than in the first round.

        Raises:
            VaultError: It cannot be opened, is damaged, or is an older copy.
            LedgerError: Its pictures were charged as something else.

        """
        noted = noted_in(read_entries(self.audit.path))
        with open_vault(self.config, expected=noted.vault) as vault:
            check_use(noted, self._use(vault, unit))

    def count_units(self, unit: Unit) -> int:
        """How many a run of this unit would train on.

        Raises:
            VaultError: The vault cannot be opened, is damaged, or is an older copy.

        """
        expected = noted_in(read_entries(self.audit.path)).vault
        return count_units(self.config, unit, day=today(), expected=expected)

    def encoded(self, base: BaseModel, manifest: Manifest, *, device: str) -> EncodedRecords:
        """What has not expired, encoded; that this run uses it is written down first.

        Raises:
            VaultError: The vault cannot be opened, is damaged, or is an older copy.
            LedgerError: Its pictures were charged as something else.
            EmptyFolder: It holds nothing to train on.

        """
        training = manifest.config.training
        plan = EncodingPlan(
            resolution=training.resolution or base.resolution,
            horizontal_flips=training.horizontal_flips,
            device=device,
        )
        run = manifest_digest(canonical_bytes(manifest)).hex()  # as the ledger names it
        unit = "image" if manifest.privacy is None else manifest.privacy.unit
        noted = noted_in(read_entries(self.audit.path))
        with open_vault(self.config, access="write", expected=noted.vault) as vault:
            use = self._use(vault, unit)
            check_use(noted, use)
            vault.note_run(run)
            found = encode_vault(base, vault, plan, today=today())
            self.audit.append(PREPARED, use.details() | {"run": run, VAULT: vault.state().text()})
        return EncodedRecords(shard=found.shard, units=found.subjects if unit == "subject" else found.images)

    def _use(self, vault: Vault, unit: str) -> Use:
        return Use(vault=vault.state().vault.hex(), population=self.population, unit=unit)
