"""A small institution for tests: an image folder, a tiny base and the encoded pictures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from PIL import Image

from client.training.latents import EncodingPlan
from client.training.trainer import Trainer, build_trainer
from common.adapter.model import open_base
from common.config import PLAIN_WORDS, RunConfig
from simulations.scenario.folder_latents import encode_folder
from simulations.scenario.imagefolder import read_imagefolder
from tests.tiny_base import write_tiny_base

if TYPE_CHECKING:
    from pathlib import Path

    from client.training.latents import LatentShard
    from common.adapter.model import BaseModel, Family


def run_config(**changes: Any) -> RunConfig:
    table = {
        "name": "test",
        "rounds": 2,
        "privacy": "none",
        "acknowledge": PLAIN_WORDS,
        "base": {"path": "unused"},
        "adapter": {"rank": 2, "alpha": 2.0, "train": "AB"},
        "training": {"batch_size": 4},
        **changes,
    }
    return msgspec.convert(table, RunConfig)


def write_folder(folder: Path, count: int = 6) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(3)
    rows = []
    for index in range(count):
        name = f"{index:02d}.png"
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / name)
        rows.append(json.dumps({"file_name": name, "text": f"picture {index % 3}"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


def encoded_site(root: Path, family: Family) -> Site:
    """A tiny base of one family, and an encoded folder of six pictures with mirrored views."""
    base = open_base(write_tiny_base(root / "base", family))
    folder = write_folder(root / "pictures")
    plan = EncodingPlan(resolution=base.resolution, horizontal_flips=True)
    return Site(base, folder, encode_folder(base, folder, read_imagefolder(folder), plan))


@dataclass(frozen=True)
class Site:
    base: BaseModel
    folder: Path
    shard: LatentShard

    def trainer(self, config: RunConfig | None = None) -> Trainer:
        return build_trainer(self.base, config or run_config())
