"""Training data made from a vault: what is encoded stays in memory, and is kept sealed beside its picture.

A record's numbers are its own, bit by bit (:mod:`client.training.latents`), whatever else was in the vault when it was
encoded. Another device may differ in the last bit of a float. :class:`VaultRecords` gives a steward what is in its
site's.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from io import BytesIO
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import torch
from PIL import Image
from safetensors.torch import load, save

from client.governance.rollback import PREPARED, VAULT, Use, check_use, noted_in
from client.intake.pictures import DECODER_ERRORS
from client.site.vault_access import count_units, open_vault
from client.training.latents import (
    CaptionTable,
    EncodingPlan,
    LatentShard,
    encode_caption_table,
    encode_pixels,
    square_pixels,
)
from client.training.loaded_base import EncodedRecords
from client.vault.errors import VaultDamaged
from client.vault.records import today
from common.errors import BadImage, EmptyFolder
from common.host.progress import bar
from common.manifest.manifest import canonical_bytes, manifest_digest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date

    import numpy as np
    from numpy.typing import NDArray

    from client.site.settings import VaultConfig
    from client.site.vault_access import HeldVault
    from client.vault.records import RecordId, Split
    from client.vault.vault import Vault
    from common.adapter.model import BaseModel
    from common.audit_log import AuditLog
    from common.manifest.manifest import Manifest
    from common.privacy.statements import Unit


Parts: TypeAlias = dict[str, torch.Tensor]
_log: Final = logging.getLogger(__name__)
KEPT_TOGETHER: Final = 16
"""Encoded pictures in one write to the vault."""
_MADE_BY: Final = "made_by"
"""The part of what is kept that says how it was made: by another way, it is made anew and replaced.

It is no part of the kind, or what nobody reads any more would stay. The 1 in the kinds is of the time before it.
"""


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
    """Encode what has not expired, in the order in which it was added.

    A vault that is open for writing keeps what is encoded, :data:`KEPT_TOGETHER` pictures at a time: what is
    interrupted goes on where it was.

    Raises:
        EmptyFolder: Nothing of this split, or all expired.
        BadImage: A record's picture cannot be decoded.
        UnknownRecord: A record was erased meanwhile; begin again.
        VaultError: Damaged, busy or full.

    """
    infos = [info for info in vault.infos(split) if info.expires is None or info.expires > today]
    if not infos:
        raise EmptyFolder(f"the vault holds no {split} picture that has not expired; ingest some")
    ids = tuple(info.record_id for info in infos)
    mean, std = _encoded_pictures(base, vault, plan, ids)
    captions, rows = _encoded_captions(base, vault, plan, ids)
    by_subject: dict[int, list[int]] = {}
    for row, info in enumerate(infos):
        by_subject.setdefault(info.subject, []).append(row)
    return VaultShard(
        shard=LatentShard(mean, std, torch.tensor(rows), captions),
        record_ids=ids,
        images=tuple((row,) for row in range(len(ids))),
        subjects=tuple(tuple(rows) for rows in by_subject.values()),
    )


def _encoded_pictures(
    base: BaseModel, vault: Vault, plan: EncodingPlan, ids: Sequence[RecordId]
) -> tuple[torch.Tensor, torch.Tensor]:
    kind, made_by = f"latents/1/{base.digest}/{plan.resolution}/{plan.horizontal_flips}", plan.made_by()
    found = {each: parts for each in ids if (parts := _kept(vault, each, kind, made_by)) is not None}
    missing = [each for each in ids if each not in found]
    pixels = (_pixels(vault, each, plan.resolution) for each in missing)
    with bar("encoding pictures", len(missing)) as advance:
        # with nothing to encode, no autoencoder is loaded either
        made = encode_pixels(base, pixels, plan, source="the vault") if missing else iter(())
        encoded = zip(missing, made, strict=True)
        while batch := {each: {"mean": mean, "std": std} for each, (mean, std) in islice(encoded, KEPT_TOGETHER)}:
            _keep(vault, kind, batch, made_by)
            found |= batch
            advance(len(batch))
    mean = torch.stack([found[each]["mean"] for each in ids])
    return mean, torch.stack([found[each]["std"] for each in ids])


def _pixels(vault: Vault, record_id: RecordId, resolution: int) -> NDArray[np.uint8]:
    """A record's picture, which the intake left as a PNG of RGB pixels alone: its centre square."""
    content = vault.read(record_id).image
    try:
        with Image.open(BytesIO(content), formats=("PNG",)) as image:
            return square_pixels(image.convert("RGB"), resolution)
    except (Image.DecompressionBombError, *DECODER_ERRORS) as error:
        raise BadImage(f"record {record_id}: holds no picture that can be read; erase it") from error


def _encoded_captions(
    base: BaseModel, vault: Vault, plan: EncodingPlan, ids: Sequence[RecordId]
) -> tuple[CaptionTable, list[int]]:
    """The table, and each record's row of it.

    Guarantee: a record's row does not depend on who else has its caption, nor on who had it first: whoever's copy is
    taken, or none, it was made alone and in the present way.
    """
    captions = vault.captions(ids)
    first = dict(reversed(list(zip(captions, ids, strict=True))))
    distinct = sorted(set(captions) - {""})
    of_base = f"1/{base.digest}"
    table = _caption_table(
        base,
        vault,
        plan,
        [
            _Kept("", ids[0], f"no caption/{of_base}"),
            *(_Kept(caption, first[caption], f"caption/{of_base}") for caption in distinct),
        ],
    )
    place = {"": 0} | {caption: row for row, caption in enumerate(distinct, start=1)}
    return table, [place[caption] for caption in captions]


class _Kept(NamedTuple):
    """A caption whose encoding is kept with the first record that has it; the empty one with the first of all."""

    caption: str
    record_id: RecordId
    kind: str


def _caption_table(base: BaseModel, vault: Vault, plan: EncodingPlan, wanted: list[_Kept]) -> CaptionTable:
    made_by = plan.made_by()
    found = {each: parts for each in wanted if (parts := _kept(vault, each.record_id, each.kind, made_by)) is not None}
    missing = [each for each in wanted if each not in found]
    if missing:
        table = encode_caption_table(base, [each.caption for each in missing if each.caption], plan)
        new = {each: _row(table, row) for row, each in enumerate((wanted[0], *(m for m in missing if m.caption)))}
        for kind in sorted({each.kind for each in new}):
            _keep(vault, kind, {each.record_id: parts for each, parts in new.items() if each.kind == kind}, made_by)
        found |= new
    rows = [found[each] for each in wanted]
    pooled = [row["pooled"] for row in rows if "pooled" in row]
    return CaptionTable(torch.stack([row["text"] for row in rows]), torch.stack(pooled) if pooled else None)


def _row(table: CaptionTable, row: int) -> Parts:
    text = {"text": table.embeddings[row]}
    return text if table.pooled is None else text | {"pooled": table.pooled[row]}


def _keep(vault: Vault, kind: str, items: Mapping[RecordId, Parts], made_by: str) -> None:
    if vault.access == "write":
        mark = {_MADE_BY: _mark(made_by)}
        vault.put_derived(
            kind,
            {
                each: save({name: part.contiguous() for name, part in (parts | mark).items()})
                for each, parts in items.items()
            },
        )


def _mark(made_by: str) -> torch.Tensor:
    return torch.tensor(list(bytes.fromhex(made_by)), dtype=torch.uint8)


def _kept(vault: Vault, record_id: RecordId, kind: str, made_by: str) -> Parts | None:
    """What is kept, if it is whole and made in this way; else it is made anew, of what the vault vouches for."""
    try:
        data = vault.derived(record_id, kind)
    except VaultDamaged as error:
        _log.warning("record %s: what was encoded is made anew (%s)", record_id, error)
        return None
    if data is None:
        return None
    parts: Parts = load(data)  # what the vault opens was written here
    mark = parts.pop(_MADE_BY, None)
    return parts if mark is not None and torch.equal(mark, _mark(made_by)) else None


@dataclass(frozen=True, kw_only=True)
class VaultRecords:
    """A :class:`client.training.loaded_base.RecordSource` over the vault, which is open only while it is encoded.

    Args:
        config: The vault's.
        collection: Under which name its pictures are charged.
        audit: The site's log, which knows the vault's last state and is told of each run that uses it.

    """

    config: VaultConfig | HeldVault
    collection: str
    audit: AuditLog

    def check(self, unit: str) -> None:
        """Open the vault and close it: what is wrong with it is better told now than in the first round.

        Raises:
            VaultError: It cannot be opened, is damaged, or is an older copy.
            LedgerError: Its pictures were charged as something else.

        """
        noted = noted_in(self.audit.path)
        with open_vault(self.config, expected=noted.vault) as vault:
            check_use(noted, self._use(vault, unit))

    def count_units(self, unit: Unit) -> int:
        """How many a run of this unit would train on.

        Raises:
            VaultError: The vault cannot be opened, is damaged, or is an older copy.

        """
        return count_units(self.config, unit, day=today(), expected=noted_in(self.audit.path).vault)

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
        noted = noted_in(self.audit.path)
        with open_vault(self.config, access="write", expected=noted.vault) as vault:
            use = self._use(vault, unit)
            check_use(noted, use)
            vault.note_run(run)
            found = encode_vault(base, vault, plan, today=today())
            self.audit.append(PREPARED, use.details() | {"run": run, VAULT: vault.state().text()})
        return EncodedRecords(shard=found.shard, units=found.subjects if unit == "subject" else found.images)

    def _use(self, vault: Vault, unit: str) -> Use:
        return Use(vault=vault.state().vault.hex(), collection=self.collection, unit=unit)
