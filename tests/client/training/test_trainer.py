from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from client.training.trainer import Draws, Trainer, training_draws
from common.adapter.vector import trained_parameters
from simulations.scenario.plain_steward import gradient_sum
from tests.client.sites import run_config

if TYPE_CHECKING:
    from tests.client.sites import Site


def some_draws(site: Site, trainer: Trainer, count: int = 5) -> Draws:
    rows = np.arange(count) % len(site.shard)
    return training_draws(site.shard, rows, trainer.config, trainer.schedule_steps, np.random.default_rng(9))


def moved(trainer: Trainer, scale: float = 0.05) -> Trainer:
    """Away from the initial adapter, where half of the gradients are zero."""
    noise = np.random.default_rng(4).normal(size=trainer.spec.dimension)
    trainer.set_adapter((trainer.adapter() + scale * noise).astype(np.float32))
    return trainer


def one_by_one(site: Site, trainer: Trainer, draws: Draws) -> np.ndarray:  # type: ignore[type-arg]
    """Oracle: each draw's loss written out in float64, differentiated by itself, and summed."""
    unet = copy.deepcopy(trainer.unet).double()
    parameters = trained_parameters(unet, trainer.spec)
    alphas = site.base.load_scheduler().alphas_cumprod.double()
    table = site.shard.captions
    total = np.zeros(trainer.spec.dimension)
    for i in range(len(draws)):
        row, view, step = int(draws.rows[i]), int(draws.views[i]), int(draws.timesteps[i])
        mean, std = site.shard.mean[row, view].double(), site.shard.std[row, view].double()
        clean = mean + std * draws.latent_noise[i].double()
        noise = draws.noise[i].double()
        signal, rest = alphas[step].sqrt(), (1 - alphas[step]).sqrt()
        caption = int(draws.caption_rows[i])
        more = {}
        if table.pooled is not None:
            size = float(site.base.resolution)
            times = torch.tensor([[size, size, 0.0, 0.0, size, size]], dtype=torch.float64)
            more["added_cond_kwargs"] = {"text_embeds": table.pooled[caption][None].double(), "time_ids": times}
        text = table.embeddings[caption][None].double()
        output = unet((signal * clean + rest * noise)[None], step, encoder_hidden_states=text, **more).sample[0]
        target = noise if site.base.prediction_type == "epsilon" else signal * noise - rest * clean
        loss = (output - target).pow(2).mean()
        gradients = torch.autograd.grad(loss, parameters)
        total += np.concatenate([gradient.reshape(-1).numpy() for gradient in gradients])
    return total


def test_the_gradient_is_the_sum_of_the_draws_own(site: Site) -> None:
    trainer = moved(site.trainer())
    draws = some_draws(site, trainer)
    expected = one_by_one(site, trainer, draws)
    found = gradient_sum(trainer, site.shard, draws).vector
    assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize("train", ["B", "core"])
def test_other_adapter_kinds_too(site: Site, train: str) -> None:
    trainer = moved(site.trainer(run_config(adapter={"rank": 2, "alpha": 3.0, "train": train})))
    draws = some_draws(site, trainer, 3)
    expected = one_by_one(site, trainer, draws)
    found = gradient_sum(trainer, site.shard, draws).vector
    assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)


def test_microbatches_do_not_change_the_sum(site: Site) -> None:
    trainer = moved(site.trainer())
    draws = some_draws(site, trainer)
    whole = gradient_sum(trainer, site.shard, draws)
    smaller = Trainer(base=site.base, unet=trainer.unet, spec=trainer.spec, config=trainer.config, microbatch=2)
    split = gradient_sum(smaller, site.shard, draws)
    np.testing.assert_allclose(split.vector, whole.vector, rtol=1e-3, atol=1e-5)
    assert split.loss_sum == pytest.approx(whole.loss_sum, rel=1e-5)


def test_gradient_checkpointing_gives_the_same_gradient(site: Site) -> None:
    trainer = moved(site.trainer())
    draws = some_draws(site, trainer)
    plain = gradient_sum(trainer, site.shard, draws).vector
    config = run_config(training={"batch_size": 4, "gradient_checkpointing": True})
    checkpointed = gradient_sum(moved(site.trainer(config)), site.shard, draws).vector
    np.testing.assert_allclose(checkpointed, plain, rtol=1e-3, atol=1e-5)


def test_a_second_gradient_does_not_add_to_the_first(site: Site) -> None:
    trainer = moved(site.trainer())
    draws = some_draws(site, trainer)
    first = gradient_sum(trainer, site.shard, draws).vector
    assert np.array_equal(gradient_sum(trainer, site.shard, draws).vector, first)


def test_caption_dropout_shows_the_empty_caption(site: Site) -> None:
    rows = np.arange(600) % len(site.shard)
    for share, expected in [(0.0, 0.0), (1.0, 1.0), (0.3, 0.3)]:
        config = run_config(training={"loss": {"caption_dropout": share}}).training
        draws = training_draws(site.shard, rows, config, 10, np.random.default_rng(1))
        assert float((draws.caption_rows == 0).float().mean()) == pytest.approx(expected, abs=0.06)


def test_bfloat16_is_only_used_where_asked_or_computed_in_hardware(site: Site) -> None:
    full = moved(site.trainer())
    half = moved(site.trainer(run_config(training={"precision": "bfloat16"})))
    draws = some_draws(site, full)
    exact = gradient_sum(full, site.shard, draws).vector
    rough = gradient_sum(half, site.shard, draws).vector
    assert not np.array_equal(rough, exact)
    assert np.dot(rough, exact) > 0.99 * np.linalg.norm(rough) * np.linalg.norm(exact)
