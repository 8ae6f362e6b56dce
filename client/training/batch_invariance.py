"""Whether this device computes a unit's gradient alike among any neighbours: asked of the device itself, before a run.

Batch invariance is what the sum's sensitivity rests on (:func:`common.privacy.clipping.clipped_sum`), and no library
promises it. Nothing private is read: pictures, captions and adapter are random numbers in the run's shapes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from client.training.latents import CaptionTable, LatentShard
from client.training.trainer import Draws
from common.adapter.vector import trained_parameters
from common.errors import ClippingError, NotRepeatable
from common.privacy.clipping import unit_gradients

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from client.training.trainer import Trainer

_log: Final = logging.getLogger(__name__)
_SEED: Final = 20_260_102
_POWERS: Final = (2.0, 1.0, 0.0, -1.0)
"""Largest powers of ten in an adapter's values: the wildest that leaves gradients finite makes any last bit tell."""


def settle_microbatch(trainer: Trainer, like: LatentShard, *, draws: int) -> None:
    """See that a unit's gradient has the same bits at any place, among any neighbours, in any micro-batch.

    Three micro-batches of random pictures are compared: each unit changes its place and its neighbours, of which some
    become huge, infinite, or padding of weight 0. If a bit moves, the trainer takes one unit at a time from then on.
    The trainer's adapter is left as it was.

    Args:
        trainer: Of the run, on its device.
        like: Gives shapes alone.
        draws: K ≥ 1 draws of each unit.

    Raises:
        NotRepeatable: Even a unit alone has two gradients.
        ClippingError: No gradient is finite.

    """
    adapter = trainer.adapter()
    public = _PublicUnits.of(like, trainer, units=max(1, trainer.microbatch // draws), draws=draws)
    try:
        if public.is_invariant():
            return
        _log.warning(
            "this device computes a picture's gradient differently among other pictures, which no clipping bounds: "
            "from now on one unit at a time, which is slower"
        )
        trainer.take_one_at_a_time()
        if not public.repeats_alone():
            raise NotRepeatable(
                f"{trainer.device} computes one and the same gradient in two ways, so no bound holds for a picture's "
                'part in the sum; set device = "cpu", or update the driver and torch'
            )
    finally:
        trainer.set_adapter(adapter)


@dataclass(frozen=True, kw_only=True)
class _PublicUnits:
    """``units`` ordinary units of random numbers, then as many huge or infinite ones; picture i is unit i."""

    trainer: Trainer
    shard: LatentShard
    timesteps: torch.Tensor
    noise: torch.Tensor
    units: int
    draws: int

    @classmethod
    def of(cls, like: LatentShard, trainer: Trainer, *, units: int, draws: int) -> _PublicUnits:
        random = torch.Generator().manual_seed(_SEED)
        both = 2 * units

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=random)

        latents = normal(both, 1, *like.mean.shape[2:])
        latents[units:], latents[units + 1 :: 4] = 60_000.0, torch.inf  # near and beyond the largest float16
        texts, pooled = like.captions.embeddings, like.captions.pooled
        captions = CaptionTable(
            normal(both, *texts.shape[1:]), None if pooled is None else normal(both, *pooled.shape[1:])
        )
        shard = LatentShard(latents.half(), torch.ones_like(latents).half(), torch.arange(both), captions)
        timesteps = torch.randint(0, trainer.schedule_steps, (both, draws), generator=random)
        noise = normal(both, draws, *like.mean.shape[2:])
        return cls(trainer=trainer, shard=shard, timesteps=timesteps, noise=noise, units=units, draws=draws)

    def is_invariant(self) -> bool:
        """Whether each ordinary unit has one gradient in three micro-batches.

        Raises:
            ClippingError: No gradient is finite at any of the adapters.

        """
        count = self.units
        order, everyone = np.arange(count), np.ones(count)
        wanted = self._amplified(order, everyone)
        crowded, weights = np.where(order % 2 == 0, order[::-1], count + order), np.ones(count)
        filling = slice(count - count // 4, None)  # as the last micro-batch is filled up
        crowded[filling], weights[filling] = crowded[0], 0
        return self._agree(wanted, np.roll(order, count // 2), everyone) and self._agree(wanted, crowded, weights)

    def _amplified(self, units: NDArray[np.int64], weights: NDArray[np.float64]) -> NDArray[np.float32]:
        """Gradients of one micro-batch at a wild adapter, which the trainer keeps."""
        size = self.trainer.spec.dimension
        for power in _POWERS:
            rng = np.random.default_rng(_SEED)
            values = rng.standard_normal(size) * 10.0 ** rng.uniform(power - 3, power, size)
            self.trainer.set_adapter(values.astype(np.float32))
            if np.isfinite(found := self._gradients(units, weights)).all():
                return found
        raise ClippingError(f"{self.trainer.base.directory}: no adapter gives finite gradients; is the base intact?")

    def repeats_alone(self) -> bool:
        """Whether a unit has one gradient before and after another one."""
        first, other, one = np.array([0]), np.array([self.units]), np.ones(1)
        wanted = self._gradients(first, one)
        self._gradients(other, one)
        return self._agree(wanted, first, one)

    def _agree(self, wanted: NDArray[np.float32], units: NDArray[np.int64], weights: NDArray[np.float64]) -> bool:
        """Whether ordinary units have the wanted gradients in this micro-batch too."""
        found = self._gradients(units, weights)
        return all(
            np.array_equal(found[place], wanted[unit], equal_nan=True)
            for place, unit in enumerate(units)
            if unit < self.units and weights[place]
        )

    def _gradients(self, units: NDArray[np.int64], weights: NDArray[np.float64]) -> NDArray[np.float32]:
        """Of one micro-batch, [units, d]."""
        trainer = self.trainer
        rows = torch.from_numpy(units).repeat_interleave(self.draws)
        noise = self.noise[units].flatten(0, 1)
        batch = Draws(
            rows=rows,
            views=torch.zeros_like(rows),
            timesteps=self.timesteps[units].flatten(),
            caption_rows=rows,
            latent_noise=torch.zeros_like(noise),
            noise=noise,
        )
        each = torch.from_numpy(weights).float().repeat_interleave(self.draws).to(trainer.device)
        found: NDArray[np.float32] = unit_gradients(
            trainer.unet,
            trained_parameters(trainer.unet, trainer.spec),
            batch,
            lambda drawn: trainer.losses(self.shard, drawn) * each,
            draws=self.draws,
        ).numpy()
        return found
