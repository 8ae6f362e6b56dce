"""A site's vault as the source of what its steward trains on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from client.latents import EncodingPlan
from client.site_vault import open_vault, today
from client.training_room import EncodedRecords
from client.vault.shards import encode_vault
from common.manifest import canonical_bytes, manifest_digest

if TYPE_CHECKING:
    from client.site import VaultConfig
    from common.adapter.model import BaseModel
    from common.manifest import Manifest


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
        with open_vault(self.config, access="write") as vault:
            vault.note_run(manifest_digest(canonical_bytes(manifest)).hex())  # as the ledger names it
            found = encode_vault(base, vault, plan, today=today())
        subject = manifest.privacy is not None and manifest.privacy.unit == "subject"
        return EncodedRecords(shard=found.shard, units=found.subjects if subject else found.images)
