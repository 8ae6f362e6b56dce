"""One institution's private contribution: sample units in secret, clip each one's gradient, sum, round, add noise.

Nothing else of the data leaves: no loss, no count. Noise is added whether or not anybody was sampled.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from client.policy import check_size
from client.trainer import training_draws
from common.adapter.vector import trained_parameters
from common.privacy.clipping import clipped_sum
from common.privacy.mechanisms import add_noise, quantise
from common.privacy.sampling import draw_images, sample_units

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from client.latents import LatentShard
    from client.trainer import Draws, Trainer
    from common.privacy.clipping import ClippedSum
    from common.privacy.mechanisms import NoisedShare
    from common.privacy.run_plan import PrivatePlan
    from common.randomness import Randomness


@dataclass(frozen=True)
class WeightedDraws:
    """Draws of whole units, a unit's K draws side by side; ``weights``, float32 [n], are 0 for padding, else 1."""

    draws: Draws
    weights: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class PrivateUpdate:
    """Makes private contributions from one institution's pictures at the trainer's present adapter.

    Args:
        trainer: Holds base and adapter.
        shard: Encoded training pictures.
        units: Picture rows of each privacy unit.
        plan: The run's privacy.

    Raises:
        TooManyUnits: More units than the run's settings allow one institution.

    """

    trainer: Trainer
    shard: LatentShard = field(repr=False)
    units: Sequence[Sequence[int]] = field(repr=False)
    plan: PrivatePlan

    def __post_init__(self) -> None:
        check_size(len(self.units), self.plan.config)

    def share(self, randomness: Randomness) -> NoisedShare:
        """A noised share for one attempt, from a fresh secret sample.

        Guarantee: it is made of clipped gradients of whole units and of noise, and is noise alone where the sample is
        empty. With secret ``randomness``, what it tells is what the run's statements say.
        """
        chosen = sample_units(
            len(self.units), rate=self.plan.config.sampling_rate, cap=self.plan.cap, randomness=randomness
        )
        rows = self.picture_rows(chosen, randomness)
        # timesteps and diffusion noise are part of the query and hide nothing; a fast generator may draw them
        rng = np.random.default_rng(int.from_bytes(randomness.take(32), "little"))
        noise_plan = self.plan.noise(self.trainer.spec.dimension)
        return add_noise(quantise(self.clipped(rows, rng), noise_plan), randomness)

    def picture_rows(self, chosen: NDArray[np.int64], randomness: Randomness) -> NDArray[np.int64]:
        """Pictures of the chosen units' K draws, [units·K], unit by unit."""
        draws = self.plan.config.draws
        parts = [draw_images(self.units[unit], draws=draws, randomness=randomness) for unit in chosen]
        return np.concatenate([np.zeros(0, dtype=np.int64), *parts])

    def clipped(self, rows: NDArray[np.int64], rng: np.random.Generator) -> ClippedSum:
        """Sum of the clipped gradients of units given by their pictures' rows, [units·K]; secret."""
        trainer = self.trainer
        return clipped_sum(
            trainer.unet,
            trained_parameters(trainer.unet, trainer.spec),
            self._batches(rows, rng),
            lambda batch: trainer.losses(self.shard, batch.draws) * batch.weights.to(trainer.device),
            clip=self.plan.config.clip,
            draws=self.plan.config.draws,
        )

    def _batches(self, rows: NDArray[np.int64], rng: np.random.Generator) -> Iterator[WeightedDraws]:
        """Micro-batches of one size: the last is filled up with draws of weight 0, whose gradient is zero.

        So neither shapes nor, within a micro-batch, time tell the size of the sample; the number of them still does.
        """
        if not rows.size:
            return
        draws = self.plan.config.draws
        size = max(1, self.trainer.microbatch // draws) * draws
        padding = -len(rows) % size
        weights = torch.ones(len(rows) + padding)
        weights[len(rows) :] = 0
        filled = np.concatenate([rows, np.full(padding, rows[0])])
        made = training_draws(self.shard, filled, self.trainer.config, self.trainer.schedule_steps, rng)
        for part, weight in zip(made.split(size), torch.split(weights, size), strict=True):
            yield WeightedDraws(part, weight)
