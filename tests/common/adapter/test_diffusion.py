from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler

from common.adapter.diffusion import add_noise, denoising_target, loss_weights
from common.errors import ModelError

ALPHA_BAR = torch.tensor([0.999, 0.5, 0.01], dtype=torch.float64)


def draws() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(3, 4, 2, 2, generator=generator), torch.randn(3, 4, 2, 2, generator=generator)


def test_noise_and_velocity_are_those_of_stock_diffusers() -> None:
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    latents, noise = draws()
    timesteps = torch.tensor([0, 400, 999])
    alpha_bar = scheduler.alphas_cumprod.double()[timesteps]
    noisy = add_noise(latents, noise, alpha_bar)
    torch.testing.assert_close(noisy, scheduler.add_noise(latents, noise, timesteps))
    velocity = denoising_target(latents, noise, alpha_bar, "v_prediction")
    torch.testing.assert_close(velocity, scheduler.get_velocity(latents, noise, timesteps))


def test_noise_prediction_aims_at_the_noise() -> None:
    latents, noise = draws()
    assert denoising_target(latents, noise, ALPHA_BAR, "epsilon") is noise


def test_velocity_and_noisy_latents_give_the_latents_back() -> None:
    latents, noise = draws()
    level = ALPHA_BAR.reshape(3, 1, 1, 1)
    noisy = add_noise(latents.double(), noise.double(), ALPHA_BAR)
    velocity = denoising_target(latents.double(), noise.double(), ALPHA_BAR, "v_prediction")
    torch.testing.assert_close(level.sqrt() * noisy - (1 - level).sqrt() * velocity, latents.double())


@pytest.mark.parametrize(("prediction", "add"), [("epsilon", 0.0), ("v_prediction", 1.0)])
def test_min_snr_weights_are_the_papers(prediction: str, add: float) -> None:
    weights = loss_weights(ALPHA_BAR, prediction, 5.0)  # type: ignore[arg-type]
    for weight, level in zip(weights.tolist(), ALPHA_BAR.tolist(), strict=True):
        snr = level / (1 - level)
        assert math.isclose(weight, min(snr, 5.0) / (snr + add), rel_tol=1e-6)


def test_without_gamma_every_draw_weighs_one() -> None:
    assert loss_weights(ALPHA_BAR, "epsilon", None).tolist() == [1.0, 1.0, 1.0]


def test_zero_terminal_snr_has_no_noise_prediction_weight() -> None:
    silent = torch.tensor([0.5, 0.0], dtype=torch.float64)
    with pytest.raises(ModelError, match="min_snr_gamma"):
        loss_weights(silent, "epsilon", 5.0)
    assert loss_weights(silent, "v_prediction", 5.0)[1] == 0
