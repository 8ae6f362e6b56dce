"""The denoising loss of the LoRA adapter on an institution's latents, one number a draw, to be differentiated.

One trainer holds one frozen base; institutions that share a process share the trainer, because all that differs between
them is the shard and the adapter vector that a call is given.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch

from common.adapter.diffusion import add_noise, denoising_target, loss_weights
from common.adapter.lora import inject_lora
from common.adapter.text import added_conditions
from common.adapter.vector import read_vector, write_vector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from diffusers import UNet2DConditionModel
    from numpy.typing import NDArray

    from client.training.latents import LatentShard
    from common.adapter.model import BaseModel
    from common.adapter.spec import AdapterSpec
    from common.config import RunConfig, TrainingConfig


@dataclass(frozen=True)
class Draws:
    """What one optimisation step sees of a shard: n draws of (picture, view, timestep, noise, caption or none).

    Shapes: int64 [n] for ``rows``, ``views``, ``timesteps`` and ``caption_rows``; ``latent_noise`` and ``noise``
    float32 [n, channels, height, width].
    """

    rows: torch.Tensor
    views: torch.Tensor
    timesteps: torch.Tensor
    caption_rows: torch.Tensor
    latent_noise: torch.Tensor
    noise: torch.Tensor

    def __len__(self) -> int:
        """Number of draws."""
        return len(self.rows)

    def split(self, size: int) -> Iterator[Draws]:
        """Consecutive parts of at most ``size`` draws."""
        for start in range(0, len(self), size):
            yield self.at(slice(start, start + size))

    def at(self, chosen: slice | torch.Tensor) -> Draws:
        """Some of them, by place."""
        return Draws(*(getattr(self, each.name)[chosen] for each in fields(self)))


def training_draws(
    shard: LatentShard, rows: NDArray[np.int64], config: TrainingConfig, steps: int, rng: np.random.Generator
) -> Draws:
    """Random draws for the given picture rows; ``steps`` is the length of the noise schedule.

    Everybody's draws come from one stream, so one unit more shifts which numbers the others get. That gives nothing
    away: the numbers are independent of each other and of the data, and those of one unit independent of all others'.
    Two runs, with and without a unit, may therefore be coupled so that the others' numbers are equal; for each choice
    of them the sums differ by the unit's clipped gradient alone, and a mixture over choices is no easier to tell apart
    than its worst one (the hockey-stick divergence is jointly convex). What the coupling needs is that equal numbers
    give equal gradients at another place of a micro-batch: see :func:`common.privacy.clipping.clipped_sum`.
    """
    count, shape = len(rows), shard.mean.shape[2:]
    chosen = torch.from_numpy(rows)
    captions = shard.caption_rows[chosen].clone()
    captions[torch.from_numpy(rng.random(count) < config.loss.caption_dropout)] = 0
    return Draws(
        rows=chosen,
        views=torch.from_numpy(rng.integers(0, shard.mean.shape[1], count)),
        timesteps=torch.from_numpy(rng.integers(0, steps, count)),
        caption_rows=captions,
        latent_noise=_normal(rng, (count, *shape)),
        noise=_normal(rng, (count, *shape)),
    )


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


class Trainer:
    """A frozen base UNet with its adapter, ready to differentiate the denoising loss.

    Args:
        base: The opened base model; only its noise schedule is read here.
        unet: The base's UNet with the adapter injected.
        spec: The adapter's layout.
        config: Loss, precision and checkpointing.
        device: Where the UNet computes.
        microbatch: Draws per forward and backward; larger batches are split and summed.

    """

    def __init__(
        self,
        *,
        base: BaseModel,
        unet: UNet2DConditionModel,
        spec: AdapterSpec,
        config: TrainingConfig,
        device: str = "cpu",
        microbatch: int = 32,
    ) -> None:
        self.base = base
        self.spec = spec
        self.config = config
        self.device = torch.device(device)
        self.unet = unet.to(self.device)
        self.alpha_bar = base.load_scheduler().alphas_cumprod.double()
        self._microbatch = microbatch
        self._resolution = config.resolution or base.resolution
        if config.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
            unet.train()  # diffusers checkpoints only in training mode; Stable Diffusion's UNet has no dropout
        self._autocast = (
            _computes_bfloat16(self.device) if config.precision == "auto" else config.precision != "float32"
        )

    @property
    def schedule_steps(self) -> int:
        """Length of the noise schedule."""
        return len(self.alpha_bar)

    @property
    def microbatch(self) -> int:
        """Draws per forward and backward."""
        return self._microbatch

    def take_one_at_a_time(self) -> None:
        """One draw, or one unit's draws, per forward and backward: where rows depend on their neighbours."""
        self._microbatch = 1

    def set_adapter(self, vector: NDArray[np.float32]) -> None:
        """Load adapter parameters, float32 [d], into the UNet."""
        write_vector(self.unet, self.spec, vector)

    def adapter(self) -> NDArray[np.float32]:
        """The adapter's parameters, float32 [d]."""
        return read_vector(self.unet, self.spec)

    def losses(self, shard: LatentShard, draws: Draws) -> torch.Tensor:
        """Weighted training loss of each draw, float32 [n]; differentiable in the adapter's parameters."""
        alpha_bar = self.alpha_bar[draws.timesteps].to(self.device)
        weights = loss_weights(alpha_bar, self.base.prediction_type, self.config.loss.min_snr_gamma)
        return self.squared_errors(shard, draws) * weights

    def squared_errors(self, shard: LatentShard, draws: Draws) -> torch.Tensor:
        """Mean squared error of the UNet's output at each draw, float32 [n]."""
        latents = self._latents(shard, draws)
        alpha_bar = self.alpha_bar[draws.timesteps].to(self.device)
        noise = draws.noise.to(self.device)
        noisy = add_noise(latents, noise, alpha_bar)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._autocast):
            output = self.unet(noisy, draws.timesteps.to(self.device), **self._conditions(shard, draws)).sample
        target = denoising_target(latents, noise, alpha_bar, self.base.prediction_type)
        errors: torch.Tensor = (output.float() - target).pow(2).mean(dim=(1, 2, 3))
        return errors

    def _latents(self, shard: LatentShard, draws: Draws) -> torch.Tensor:
        mean = shard.mean[draws.rows, draws.views].float()
        std = shard.std[draws.rows, draws.views].float()
        return (mean + std * draws.latent_noise).to(self.device)

    def _conditions(self, shard: LatentShard, draws: Draws) -> dict[str, object]:
        table = shard.captions
        conditions: dict[str, object] = {
            "encoder_hidden_states": table.embeddings[draws.caption_rows].to(self.device),
        }
        if table.pooled is not None:
            pooled = table.pooled[draws.caption_rows].to(self.device)
            conditions["added_cond_kwargs"] = added_conditions(
                self.base.family, pooled, resolution=self._resolution, batch=len(draws)
            )
        return conditions


def _computes_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster there; on a CPU without its instructions it is many times slower."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def build_trainer(base: BaseModel, config: RunConfig, *, device: str = "cpu") -> Trainer:
    """Load the base's UNet, freeze it, inject the run's adapter and set it to its initial value."""
    unet = base.load_unet()
    unet.to(device)  # before the injection: factors are made where the layers are
    spec = inject_lora(unet, config.adapter, base_digest=base.digest)
    return Trainer(base=base, unet=unet, spec=spec, config=config.training, device=device)
