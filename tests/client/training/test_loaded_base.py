"""A steward's room holds what the present manifest says, whatever number its coordinator gave it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
import torch

from client.site.settings import SiteConfig, VaultConfig
from client.training.latents import EncodingPlan
from client.training.loaded_base import EncodedRecords, LoadedBase
from client.training.trainer import Trainer
from common.adapter.model import Family, open_base
from common.errors import NotRepeatable
from simulations.scenario.folder_latents import encode_folder
from simulations.scenario.imagefolder import read_imagefolder
from tests.client.rings import make_ring
from tests.client.sites import Site, write_folder
from tests.tiny_base import write_tiny_base

if TYPE_CHECKING:
    from common.adapter.model import BaseModel
    from common.manifest.manifest import Manifest
    from common.privacy.statements import Unit


@dataclass
class Records:
    """Six pictures, two of each subject."""

    site: Site
    asked: list[str] = field(default_factory=list)

    def count_units(self, unit: Unit) -> int:
        return 3 if unit == "subject" else 6

    def encoded(self, base: BaseModel, manifest: Manifest, *, device: str) -> EncodedRecords:
        del base, device
        assert manifest.privacy is not None
        self.asked.append(manifest.privacy.unit)
        pairs = ((0, 1), (2, 3), (4, 5))
        units = pairs if manifest.privacy.unit == "subject" else tuple((row,) for row in range(6))
        return EncodedRecords(shard=self.site.shard, units=units)


def site_of(base: BaseModel) -> SiteConfig:
    return SiteConfig(
        name="ward",
        collection="ward/subject",
        base=base.directory,
        device="cpu",
        vault=VaultConfig(key_file=Path("vault.key")),
    )


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Site:
    root = tmp_path_factory.mktemp("room")
    base = open_base(write_tiny_base(root / "base", Family.SD1))
    folder = write_folder(root / "pictures")
    plan = EncodingPlan(resolution=base.resolution, horizontal_flips=False)
    return Site(base, folder, encode_folder(base, folder, read_imagefolder(folder), plan))


def test_two_manifests_of_one_number_get_each_their_own_units(ward: Site, tmp_path: Path) -> None:
    records = Records(ward)
    room = LoadedBase(site=site_of(ward.base), records=records)
    images = make_ring(ward, tmp_path).manifest
    assert images.privacy is not None
    subjects = msgspec.structs.replace(images, privacy=msgspec.structs.replace(images.privacy, unit="subject"))
    assert subjects.run == images.run
    assert len(room.prepare(images).units) == 6
    assert len(room.prepare(subjects).units) == 3
    assert len(room.prepare(images).units) == 6
    assert room.prepare(images) is room.prepare(images)
    assert records.asked == ["image", "subject", "image"]


def test_a_room_asks_its_device_before_a_run(ward: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, losses, calls = make_ring(ward, tmp_path).manifest, Trainer.losses, itertools.count()

    def room() -> LoadedBase:
        return LoadedBase(site=site_of(ward.base), records=Records(ward))

    assert room().prepare(manifest).trainer.microbatch == 32
    monkeypatch.setattr(Trainer, "losses", lambda *given: losses(*given) * (1 + 1e-6 * torch.arange(len(given[2]))))
    assert room().prepare(manifest).trainer.microbatch == 1
    monkeypatch.setattr(Trainer, "losses", lambda *given: losses(*given) * (1 + 1e-6 * next(calls)))
    refusing = room()
    with pytest.raises(NotRepeatable):
        refusing.prepare(manifest)
    assert not refusing.loaded
