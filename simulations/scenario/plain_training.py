"""What a run in the clear shows of an institution's pictures: unclipped gradients, local steps, hold-out losses.

Nothing of it is in an institution's package, whose contributions are clipped and noised
(:mod:`client.training.private_update`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from client.training.trainer import Draws
from common.adapter.vector import gradient_vector, trained_parameters

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from client.training.latents import LatentShard
    from client.training.trainer import Trainer

HOLDOUT_SEED: Final = 20_260_101
"""Seed of the hold-out draws: the same (timestep, noise) for every adapter, so that losses can be compared."""


@dataclass(frozen=True)
class GradientSum:
    """Sum over draws of the loss's gradient, float32 [d], and the sum of the losses."""

    vector: NDArray[np.float32]
    loss_sum: float


def holdout_draws(shard: LatentShard, draws_per_picture: int, steps: int) -> Draws:
    """Fixed draws for every picture: timesteps spread evenly over the schedule, the latent at its mean."""
    rng = np.random.default_rng(HOLDOUT_SEED)
    rows = torch.arange(len(shard)).repeat_interleave(draws_per_picture)
    strata = np.tile(np.arange(draws_per_picture), len(shard))
    timesteps = ((strata + rng.random(len(rows))) / draws_per_picture * steps).astype(np.int64)
    shape = (len(rows), *shard.mean.shape[2:])
    return Draws(
        rows=rows,
        views=torch.zeros_like(rows),
        timesteps=torch.from_numpy(timesteps),
        caption_rows=shard.caption_rows[rows],
        latent_noise=torch.zeros(shape),
        noise=torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)),
    )


def gradient_sum(trainer: Trainer, shard: LatentShard, draws: Draws) -> GradientSum:
    """Sum of the draws' gradients at the present adapter."""
    parameters = trained_parameters(trainer.unet, trainer.spec)
    for parameter in parameters:
        parameter.grad = None
    total = 0.0
    for part in draws.split(trainer.microbatch):
        loss = trainer.losses(shard, part).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return GradientSum(gradient_vector(trainer.unet, trainer.spec), total)


def train_locally(trainer: Trainer, shard: LatentShard, batches: Iterable[Draws], learning_rate: float) -> float:
    """Adam steps from the present adapter, one per batch; returns the mean training loss. Moments are not kept."""
    parameters = trained_parameters(trainer.unet, trainer.spec)
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    losses = []
    for draws in batches:
        losses.append(gradient_sum(trainer, shard, draws).loss_sum / len(draws))
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad /= len(draws)
        optimizer.step()
    return float(np.mean(losses))


def holdout_loss(trainer: Trainer, shard: LatentShard, draws_per_picture: int) -> float:
    """Mean unweighted denoising loss over the fixed hold-out draws."""
    draws = holdout_draws(shard, draws_per_picture, trainer.schedule_steps)
    with torch.no_grad():
        parts = [trainer.squared_errors(shard, part).double() for part in draws.split(2 * trainer.microbatch)]
    return float(torch.cat(parts).mean())
