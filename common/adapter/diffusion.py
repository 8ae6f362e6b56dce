"""The forward diffusion, training targets and loss weights; pure functions of tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from common.errors import ModelError

if TYPE_CHECKING:
    import torch

PredictionType = Literal["epsilon", "v_prediction"]


def _broadcast(level: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return level.reshape(-1, *([1] * (like.dim() - 1)))


def add_noise(latents: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor) -> torch.Tensor:
    """Noisy latents x_t = sqrt(a) x_0 + sqrt(1 - a) noise (Ho et al. 2020, arXiv:2006.11239, eq. 4).

    Shapes: ``latents`` and ``noise`` [n, …]; ``alpha_bar`` float64 [n] in [0, 1], the cumulated product a at each draw.
    """
    level = _broadcast(alpha_bar, latents)
    return level.sqrt().to(latents.dtype) * latents + (1 - level).sqrt().to(latents.dtype) * noise


def denoising_target(
    latents: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor, prediction: PredictionType
) -> torch.Tensor:
    """What the UNet should output: the noise, or v = sqrt(a) noise - sqrt(1 - a) x_0.

    Sources: Ho et al. 2020 (arXiv:2006.11239, eq. 14); Salimans and Ho 2022 (arXiv:2202.00512, section 4).
    """
    if prediction == "epsilon":
        return noise
    level = _broadcast(alpha_bar, latents)
    return level.sqrt().to(latents.dtype) * noise - (1 - level).sqrt().to(latents.dtype) * latents


def loss_weights(alpha_bar: torch.Tensor, prediction: PredictionType, gamma: float | None) -> torch.Tensor:
    """Min-SNR weight of each draw, float32 [n]; ones without ``gamma``.

    min(snr, gamma) / snr for noise prediction, min(snr, gamma) / (snr + 1) for v-prediction, with snr = a / (1 - a)
    (Hang et al. 2023, arXiv:2303.09556, section 3.4 and its appendix on v).

    Raises:
        ModelError: Noise prediction at zero signal-to-noise ratio, where the weight does not exist.

    """
    if gamma is None:
        return alpha_bar.new_ones(alpha_bar.shape).float()
    if prediction == "epsilon" and bool((alpha_bar == 0).any()):
        raise ModelError("min_snr_gamma with noise prediction needs a schedule that keeps some signal at its last step")
    snr = alpha_bar / (1 - alpha_bar)
    divisor = snr if prediction == "epsilon" else snr + 1
    return (snr.clamp(max=gamma) / divisor).float()
