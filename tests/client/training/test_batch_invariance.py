"""One unit's gradient has the same bits whoever is computed with it; a device that cannot do that is found out."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from client.training.batch_invariance import settle_microbatch
from client.training.trainer import training_draws
from common.adapter.vector import trained_parameters
from common.errors import NotRepeatable
from common.privacy.clipping import clipped_sum, unit_gradients
from tests.client.sites import run_config

if TYPE_CHECKING:
    from collections.abc import Callable

    from client.training.trainer import Draws, Trainer
    from tests.client.sites import Site


def trainer_of(site: Site, train: str = "core", **training: Any) -> Trainer:
    config = run_config(adapter={"rank": 2, "alpha": 2.0, "train": train}, training={"batch_size": 4, **training})
    trainer = site.trainer(config)
    noise = np.random.default_rng(4).normal(size=trainer.spec.dimension)
    trainer.set_adapter((trainer.adapter() + 0.3 * noise).astype(np.float32))
    return trainer


def tampered(monkeypatch: pytest.MonkeyPatch, trainer: Trainer, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """The trainer's device from now on makes something else of the losses."""
    losses = trainer.losses
    monkeypatch.setattr(trainer, "losses", lambda shard, draws: change(losses(shard, draws)))


@pytest.mark.parametrize(("train", "draws"), [("core", 1), ("core", 40), ("B", 2), ("AB", 3)])
def test_this_processor_takes_whole_micro_batches_and_the_adapter_stays(site: Site, train: str, draws: int) -> None:
    trainer = trainer_of(site, train)
    before = trainer.adapter()
    settle_microbatch(trainer, site.shard, draws=draws)
    assert trainer.microbatch == 32
    assert np.array_equal(trainer.adapter(), before)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda losses: losses + 1e-4 * losses.nanmean(), id="rows mix"),
        pytest.param(lambda losses: losses * (1 + 1e-6 * torch.arange(len(losses))), id="places differ"),
    ],
)
def test_where_neighbours_or_places_matter_one_unit_is_taken_at_a_time(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, change: Callable[..., torch.Tensor]
) -> None:
    trainer = trainer_of(site)
    tampered(monkeypatch, trainer, change)
    settle_microbatch(trainer, site.shard, draws=1)
    assert trainer.microbatch == 1
    assert "one unit at a time" in caplog.text


def test_a_device_that_never_repeats_itself_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, calls = trainer_of(site), itertools.count()
    tampered(monkeypatch, trainer, lambda losses: losses * (1 + 1e-6 * next(calls)))
    with pytest.raises(NotRepeatable, match='set device = "cpu"'):
        settle_microbatch(trainer, site.shard, draws=2)


def gradients(trainer: Trainer, site: Site, draws: Draws, weights: torch.Tensor) -> torch.Tensor:
    def losses(batch: Draws) -> torch.Tensor:
        return trainer.losses(site.shard, batch) * weights

    return unit_gradients(trainer.unet, trained_parameters(trainer.unet, trainer.spec), draws, losses)


@pytest.mark.parametrize(
    ("train", "training"),
    [
        ("core", {}),
        ("AB", {}),
        ("core", {"precision": "bfloat16"}),
        ("B", {"precision": "bfloat16", "gradient_checkpointing": True}),
        ("AB", {"gradient_checkpointing": True}),
    ],
)
def test_a_unit_that_is_not_finite_and_its_padding_leave_the_others_bits_alone(
    site: Site, train: str, training: dict[str, Any]
) -> None:
    trainer = trainer_of(site, train, **training)
    draws = training_draws(
        site.shard, np.array([0, 1, 2, 3, 0, 0]), trainer.config, trainer.schedule_steps, np.random.default_rng(2)
    )
    weights = torch.tensor([1.0, 1, 1, 1, 0, 0])
    wanted = gradients(trainer, site, draws, weights)
    for value in (torch.inf, torch.nan, 3e38):
        draws.latent_noise[[0, 4, 5]] = value
        found = gradients(trainer, site, draws, weights)
        assert not found[0].isfinite().all()
        assert torch.equal(found[1:4], wanted[1:4])


def test_a_unit_that_is_not_finite_counts_as_nothing_with_its_padding(site: Site) -> None:
    trainer = trainer_of(site)
    rows = np.array([0, 1, 2, 0])
    draws = training_draws(site.shard, rows, trainer.config, trainer.schedule_steps, np.random.default_rng(2))
    parameters = trained_parameters(trainer.unet, trainer.spec)

    def total(weights: list[float]) -> np.ndarray:  # type: ignore[type-arg]
        found = clipped_sum(
            trainer.unet,
            parameters,
            [draws],
            lambda batch: trainer.losses(site.shard, batch) * torch.tensor(weights),
            clip=1e-3,
        )
        return found.vector

    wanted = total([0, 1, 1, 0])
    draws.latent_noise[[0, 3]] = torch.inf
    assert np.array_equal(total([1, 1, 1, 0]), wanted)
    assert np.any(wanted)
