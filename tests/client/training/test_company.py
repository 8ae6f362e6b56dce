"""What one picture more changes: its own clipped gradient and nothing else, at adapters made to amplify a last bit."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from client.training.latents import EncodingPlan, LatentShard
from client.training.private_update import WeightedDraws
from client.training.trainer import Draws, Trainer, build_trainer, training_draws
from client.training.vault_latents import encode_vault
from client.vault.records import NewRecord
from client.vault.vault import Vault
from common.adapter.model import open_base
from common.adapter.vector import trained_parameters
from common.privacy.clipping import clipped_sum
from simulations.scenario.folder_latents import encode_folder
from simulations.scenario.imagefolder import read_imagefolder
from tests.client.sites import run_config
from tests.client.vaults import key_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from common.adapter.model import BaseModel
    from simulations.scenario.imagefolder import Picture

BUNDLED = Path(__file__).parents[3] / "simulations" / "base" / "model"
"""Of an encoder large enough that its kernels differ with the batch's size."""
MICROBATCH = 2
CLIP = 1e-4


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return open_base(str(BUNDLED))


@pytest.fixture(scope="module")
def folder(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """33 smooth pictures with grain, each with a caption of its own but the last, which shares the first one's."""
    folder = tmp_path_factory.mktemp("company")
    rng, rows = np.random.default_rng(3), []
    for index in range(33):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((base.resolution, base.resolution), Image.Resampling.BICUBIC), np.int64)
        pixels = (smooth + rng.integers(-20, 20, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02d}.png")
        rows.append(json.dumps({"file_name": f"{index:02d}.png", "text": f"picture {index % 32} of the ward"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)  # workers of a crowded machine wait for each other: few tests with two
    yield request.param
    torch.set_num_threads(before)


def encoded(base: BaseModel, folder: Path, pictures: Sequence[Picture]) -> LatentShard:
    return encode_folder(base, folder, pictures, EncodingPlan(resolution=base.resolution, horizontal_flips=False))


def assert_rows_equal(one: LatentShard, rows: Sequence[int], other: LatentShard) -> None:
    assert torch.equal(one.mean[list(rows)], other.mean)
    assert torch.equal(one.std[list(rows)], other.std)
    texts = one.captions.embeddings[one.caption_rows[list(rows)]]
    assert torch.equal(texts, other.captions.embeddings[other.caption_rows])


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
def test_without_the_first_picture_all_others_are_encoded_to_the_same_bits(
    base: BaseModel, folder: Path, threads: int
) -> None:
    pictures = read_imagefolder(folder)
    together = encoded(base, folder, pictures)
    for count in (2, 17, 33)[: 4 - threads]:
        assert_rows_equal(together, range(1, count), encoded(base, folder, pictures[1:count]))


def filled(folder: Path, pictures: Sequence[Picture], directory: Path) -> Vault:
    directory.mkdir()
    vault = Vault.create(directory / "vault", key_file(directory))
    vault.add(
        [
            NewRecord(
                image=(folder / picture.file_name).read_bytes(),
                caption=picture.caption,
                subject_id=picture.file_name,
                label="",
                source_name=picture.file_name,
                exact_hash=hashlib.sha256(picture.file_name.encode()).digest(),
                perceptual_hash=row,
                expires=None,
            )
            for row, picture in enumerate(pictures)
        ]
    )
    return vault


def test_in_a_vault_too_whoever_comes_goes_or_shares_a_caption(base: BaseModel, folder: Path, tmp_path: Path) -> None:
    pictures = read_imagefolder(folder)[:17] + read_imagefolder(folder)[32:]
    plan = EncodingPlan(resolution=base.resolution, horizontal_flips=False)
    today = date(2030, 1, 1)
    with (
        filled(folder, pictures, tmp_path / "all") as everybody,
        filled(folder, pictures[1:], tmp_path / "rest") as rest,
    ):
        together = encode_vault(base, everybody, plan, today=today).shard
        assert_rows_equal(together, range(18), encoded(base, folder, pictures))
        assert_rows_equal(together, range(1, 18), encode_vault(base, rest, plan, today=today).shard)
        everybody.erase_subject("00.png")  # takes the encoding of the caption with it that the last picture has too
        assert_rows_equal(together, range(1, 18), encode_vault(base, everybody, plan, today=today).shard)


def clipped(trainer: Trainer, shard: LatentShard, draws: Draws, rows: Sequence[int]) -> np.ndarray:  # type: ignore[type-arg]
    """The sum over these rows of the draws, in micro-batches that are filled up as the steward's."""
    filling = -len(rows) % MICROBATCH
    places = [*rows, *([rows[0]] * filling)]
    chosen = Draws(*(getattr(draws, name)[places] for name in Draws.__dataclass_fields__))
    weights = torch.tensor([1.0] * len(rows) + [0.0] * filling)
    batches = [
        WeightedDraws(part, weight)
        for part, weight in zip(chosen.split(MICROBATCH), weights.split(MICROBATCH), strict=True)
    ]
    return clipped_sum(
        trainer.unet,
        trained_parameters(trainer.unet, trainer.spec),
        batches,
        lambda batch: trainer.losses(shard, batch.draws) * batch.weights,
        clip=CLIP,
    ).vector


def test_one_unit_moves_the_sum_by_at_most_the_clip_at_any_adapter(base: BaseModel, folder: Path) -> None:
    pictures = read_imagefolder(folder)[:17]
    shards = encoded(base, folder, pictures), encoded(base, folder, pictures[1:])
    # row 16, the last, is alone in a batch of sixteen and one; row 0, the unit, is a neighbour of all
    rows = np.array([0, 16, 9])
    adapter = {"rank": 4, "alpha": 4.0, "train": "core", "targets": ("to_q", "to_k")}
    trainer = build_trainer(base, run_config(adapter=adapter))
    for seed in range(8):
        rng = np.random.default_rng(seed)
        scale = 10 * 35 ** rng.random()
        trainer.set_adapter((scale * rng.standard_normal(trainer.spec.dimension)).astype(np.float32))
        draws = training_draws(shards[0], rows, trainer.config, trainer.schedule_steps, rng)
        captions = torch.where(draws.caption_rows > 0, shards[1].caption_rows[draws.rows - 1], 0)
        others = replace(draws, rows=draws.rows - 1, caption_rows=captions)  # its numbers are coupled
        with_unit = clipped(trainer, shards[0], draws, range(3))
        without = clipped(trainer, shards[1], others, range(1, 3))
        assert np.linalg.norm(with_unit - without) <= CLIP * (1 + 2**-20)
        assert np.linalg.norm(with_unit) > CLIP  # else nothing was clipped
