"""Train the base's AutoencoderKL: f = 4, four latent channels, no attention; then refine its decoder alone.

Loss: L1 + MSE + 0.5 · L1 of spatial gradients + 1e-5 · KL. At the end the latents' mean and standard deviation,
measured on the training pool, are folded into ``quant_conv`` and ``post_quant_conv``, so that latents have zero mean
and unit variance and the pipeline's ``scaling_factor`` is 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import nn

from simulations.base.progress import Stage, cosine_rate, descend, run_stage, set_rate

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

BATCH: Final = 16
PEAK_RATE: Final = 2e-3
KL_WEIGHT: Final = 1e-5
GRADIENT_WEIGHT: Final = 0.5


def new_autoencoder() -> AutoencoderKL:
    """A fresh autoencoder: 48 x 48 pixels to 12 x 12 x 4 latents."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=48,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def to_tensor(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Uint8 [n, h, w, 3] to float32 [n, 3, h, w] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 + MSE + weighted L1 of horizontal and vertical differences."""
    error = output - target
    across = error[..., :, 1:] - error[..., :, :-1]
    down = error[..., 1:, :] - error[..., :-1, :]
    edges = across.abs().mean() + down.abs().mean()
    return error.abs().mean() + error.pow(2).mean() + GRADIENT_WEIGHT * edges


def _batch(pool: NDArray[np.uint8], index: int) -> torch.Tensor:
    """The batch of one step, a function of the step alone, so that a resumed run continues the same one."""
    rng = np.random.default_rng((7, index))
    pixels = pool[rng.integers(0, len(pool), BATCH)]
    flip = rng.random(BATCH) < 0.5
    pixels[flip] = pixels[flip, :, ::-1]
    return to_tensor(pixels)


def train_autoencoder(pool: NDArray[np.uint8], work: Path, steps: int, decoder_steps: int) -> AutoencoderKL:
    """Train on the pool (uint8 [n, 48, 48, 3]); resumes from ``work``."""
    torch.manual_seed(1)
    vae = new_autoencoder().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=PEAK_RATE, weight_decay=1e-4)

    def step(index: int) -> float:
        set_rate(optimizer, cosine_rate(PEAK_RATE, index, steps))
        pixels = _batch(pool, index)
        posterior = vae.encode(pixels).latent_dist
        torch.manual_seed(index)
        loss = reconstruction_loss(vae.decode(posterior.sample()).sample, pixels) + KL_WEIGHT * posterior.kl().mean()
        return descend(loss, vae, optimizer)

    run_stage(Stage("autoencoder", steps, {"vae": vae}, optimizer, work / "vae.pt"), step)
    _refine_decoder(vae, pool, work, decoder_steps)
    _normalise_latents(vae, pool)
    return vae.eval()


def _refine_decoder(vae: AutoencoderKL, pool: NDArray[np.uint8], work: Path, steps: int) -> None:
    """Train the decoder alone on the posterior's mode: cheaper steps, sharper pictures."""
    decoder = nn.ModuleList([vae.decoder, vae.post_quant_conv])
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=PEAK_RATE / 2, weight_decay=1e-4)

    def step(index: int) -> float:
        set_rate(optimizer, cosine_rate(PEAK_RATE / 2, index, steps))
        pixels = _batch(pool, 1_000_000 + index)
        with torch.no_grad():
            latents = vae.encode(pixels).latent_dist.mode()
        return descend(reconstruction_loss(vae.decode(latents).sample, pixels), decoder, optimizer)

    run_stage(Stage("decoder", steps, {"vae": vae}, optimizer, work / "vae_decoder.pt"), step)


@torch.no_grad()
def encode_mean(vae: AutoencoderKL, pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Latent means float32 [n, 4, 12, 12] of pictures uint8 [n, 48, 48, 3]."""
    return torch.cat([vae.encode(to_tensor(pixels[i : i + 64])).latent_dist.mode() for i in range(0, len(pixels), 64)])


@torch.no_grad()
def _normalise_latents(vae: AutoencoderKL, pool: NDArray[np.uint8]) -> None:
    """Fold z' = (z - mean) / std into the two 1 x 1 convolutions around the latent."""
    latents = encode_mean(vae, pool[::8])
    channels = latents.shape[1]
    mean = latents.mean(dim=(0, 2, 3))
    std = latents.std(dim=(0, 2, 3))
    encode, decode = vae.quant_conv, vae.post_quant_conv
    decode.bias += (decode.weight[:, :, 0, 0] * mean).sum(dim=1)
    decode.weight *= std[None, :, None, None]
    encode.weight[:channels] /= std[:, None, None, None]
    encode.bias[:channels] = (encode.bias[:channels] - mean) / std
    # the second half holds log-variances: var' = var / std^2
    encode.bias[channels:] -= 2 * std.log()


def psnr(vae: AutoencoderKL, pixels: NDArray[np.uint8]) -> float:
    """Mean peak signal-to-noise ratio in dB of reconstructions of uint8 [n, h, w, 3], over pictures."""
    target = (to_tensor(pixels) + 1) / 2
    with torch.no_grad():
        output = (vae.decode(encode_mean(vae, pixels)).sample.clamp(-1, 1) + 1) / 2
    error = (output - target).pow(2).mean(dim=(1, 2, 3)).clamp_min(1e-10)
    return float((-10 * error.log10()).mean())
