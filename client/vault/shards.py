"""INTERFACE ONLY SO FAR: training data made from a vault."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import date

    from client.latents import EncodingPlan, LatentShard
    from client.vault.records import RecordId, Split
    from client.vault.store import Vault
    from common.adapter.model import BaseModel


@dataclass(frozen=True, kw_only=True, slots=True)
class VaultShard:
    """Encoded pictures of a vault, in memory only."""

    shard: LatentShard
    record_ids: tuple[RecordId, ...] = field(repr=False)
    """Row by row."""
    images: tuple[tuple[int, ...], ...] = field(repr=False)
    """Privacy units of one picture each, as tuples of rows."""
    subjects: tuple[tuple[int, ...], ...] = field(repr=False)
    """Privacy units of all pictures of one subject each."""


def encode_vault(
    base: BaseModel, vault: Vault, plan: EncodingPlan, *, today: date, split: Split = "train"
) -> VaultShard:
    """Encode what has not expired; a vault open for writing keeps the encoded items, sealed.

    ``plan.cache`` must be None: nothing is written outside the vault. Raises EmptyFolder, VaultError, DataError.
    """
    raise NotImplementedError
