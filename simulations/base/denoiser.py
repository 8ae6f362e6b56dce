"""Train the base's UNet and text encoder together on captioned icons.

v-prediction on a scaled-linear schedule with zero terminal SNR (Lin et al. 2024, arXiv:2305.08891), one draw in ten
with the empty caption for classifier-free guidance, AdamW with a cosine rate, and an exponential moving average of the
weights, which is what ships.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import nn

from simulations.base.autoencoder import encode_mean
from simulations.base.concepts import ICON_CAPTIONS, captions_for
from simulations.base.progress import Stage, cosine_rate, descend, run_stage, set_rate
from simulations.base.text import MAX_TOKENS, new_text_encoder

if TYPE_CHECKING:
    from pathlib import Path

    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTokenizer

    from simulations.base.pictures import Icon

BATCH: Final = 32
PEAK_RATE: Final = 1e-3
TEXT_RATE: Final = 0.3
"""The text encoder's share of the learning rate: at the full rate it saturates and tells only the first noun apart."""
EMPTY_CAPTIONS: Final = 0.1
EMA_DECAY: Final = 0.999
VIEWS: Final = 2
"""Cached views of each picture: as drawn, and mirrored."""


@dataclass(frozen=True)
class Lesson:
    """Latents float32 [n, 4, 12, 12]; for each, the tokens of its two captions: int64 [n, 2, 32]."""

    latents: torch.Tensor
    tokens: torch.Tensor


def new_unet() -> UNet2DConditionModel:
    """Three levels of 64, 96 and 128 channels; cross-attention of four heads on the two lower ones."""
    return UNet2DConditionModel(
        sample_size=12,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 96, 128),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=32,
    )


def new_scheduler() -> DDIMScheduler:
    """The schedule of the base, for training and sampling."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def build_lesson(icons: list[Icon], vae: AutoencoderKL, tokenizer: CLIPTokenizer) -> Lesson:
    """Encode every view of every icon and tokenise every wording of its caption."""
    views = np.stack([view for icon in icons for view in (icon.pixels, icon.pixels[:, ::-1])])
    rows = [tokenise(tokenizer, captions_for(ICON_CAPTIONS[icon.name], icon.style)) for icon in icons]
    return Lesson(encode_mean(vae, views), torch.stack(rows).repeat_interleave(VIEWS, dim=0))


def tokenise(tokenizer: CLIPTokenizer, captions: tuple[str, ...]) -> torch.Tensor:
    """Token ids int64 [captions, 32]."""
    tokens: torch.Tensor = tokenizer(
        list(captions), padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
    ).input_ids
    return tokens


def velocity_target(latents: torch.Tensor, noise: torch.Tensor, alpha_bar: torch.Tensor) -> torch.Tensor:
    """V = sqrt(a) noise - sqrt(1 - a) latents (Salimans and Ho 2022, arXiv:2202.00512, section 4)."""
    return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * latents


@torch.no_grad()
def update_average(average: nn.Module, current: nn.Module, step: int) -> None:
    """Exponential moving average with the usual warm-up, so that early weights do not linger."""
    decay = min(EMA_DECAY, (1 + step) / (10 + step))
    for kept, new in zip(average.parameters(), current.parameters(), strict=True):
        kept.lerp_(new, 1 - decay)


def train_denoiser(
    lesson: Lesson, tokenizer: CLIPTokenizer, work: Path, steps: int
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Train; resumes from ``work``. Returns the averaged UNet and text encoder."""
    torch.manual_seed(2)
    model = nn.ModuleDict({"unet": new_unet(), "text": new_text_encoder(tokenizer)})
    average = copy.deepcopy(model).requires_grad_(requires_grad=False)
    groups = [{"params": list(model["unet"].parameters())}, {"params": list(model["text"].parameters())}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, weight_decay=1e-2)
    alpha_bar = new_scheduler().alphas_cumprod
    empty = tokenise(tokenizer, ("",))[0]

    def step(index: int) -> float:
        rate = cosine_rate(PEAK_RATE, index, steps)
        set_rate(optimizer, rate, TEXT_RATE * rate)
        loss = descend(_denoising_loss(model, _draw(lesson, index, empty), alpha_bar), model, optimizer)
        update_average(average, model, index)
        return loss

    modules: dict[str, nn.Module] = {"model": model, "average": average}
    run_stage(Stage("denoiser", steps, modules, optimizer, work / "denoiser.pt"), step)
    return average["unet"].eval(), average["text"].eval()


@dataclass(frozen=True)
class _Draw:
    latents: torch.Tensor
    tokens: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor


def _draw(lesson: Lesson, index: int, empty: torch.Tensor) -> _Draw:
    """The batch of one step, a function of the step alone, so that a resumed run continues the same one."""
    generator = torch.Generator().manual_seed(1_000_003 * 5 + index)
    rows = torch.randint(len(lesson.latents), (BATCH,), generator=generator)
    wording = torch.randint(lesson.tokens.shape[1], (BATCH,), generator=generator)
    tokens = lesson.tokens[rows, wording]
    tokens[torch.rand(BATCH, generator=generator) < EMPTY_CAPTIONS] = empty
    latents = lesson.latents[rows]
    noise = torch.randn(latents.shape, generator=generator)
    return _Draw(latents, tokens, noise, torch.randint(1000, (BATCH,), generator=generator))


def _denoising_loss(model: nn.ModuleDict, draw: _Draw, alpha_bar: torch.Tensor) -> torch.Tensor:
    level = alpha_bar[draw.timesteps][:, None, None, None]
    noisy = level.sqrt() * draw.latents + (1 - level).sqrt() * draw.noise
    text = model["text"](draw.tokens).last_hidden_state
    output = model["unet"](noisy, draw.timesteps, encoder_hidden_states=text).sample
    return nn.functional.mse_loss(output, velocity_target(draw.latents, draw.noise, level))
