"""Pictures from prompts: the same prompts and seeds give the same pictures on the same machine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from common.errors import ConfigErrors

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL import Image

_SEEDS: Final = 2**63
"""One more than the largest seed of torch's generators."""


@dataclass(frozen=True, kw_only=True)
class SamplePlan:
    """What to draw: one picture per prompt, from noise seeded by ``seed`` plus the prompt's place in the list."""

    prompts: tuple[str, ...]
    seed: int
    steps: int
    guidance_scale: float
    resolution: int


def generate(pipeline: DiffusionPipeline, plan: SamplePlan) -> tuple[Image.Image, ...]:
    """One RGB picture of ``resolution`` pixels a side for each prompt.

    Raises:
        ConfigError: No prompts, or a resolution, seed, guidance or number of steps that the pipeline cannot do.

    """
    check_plan(pipeline, plan)
    pipeline.set_progress_bar_config(disable=True)
    pictures: list[Image.Image] = pipeline(
        list(plan.prompts),
        num_inference_steps=plan.steps,
        guidance_scale=plan.guidance_scale,
        height=plan.resolution,
        width=plan.resolution,
        generator=[torch.Generator().manual_seed(plan.seed + index) for index in range(len(plan.prompts))],
    ).images
    return tuple(picture.convert("RGB") for picture in pictures)


def check_plan(pipeline: DiffusionPipeline, plan: SamplePlan) -> None:
    """Refuse what the pipeline would stumble over, all of it at once.

    Raises:
        ConfigErrors: No prompts, or a resolution, seed, guidance or number of steps that the pipeline cannot do.

    """
    side = max(8, int(pipeline.vae_scale_factor))
    longest = int(pipeline.scheduler.config.num_train_timesteps)
    faults = []
    if not plan.prompts:
        faults.append("prompts: wanted at least one, got none")
    if plan.resolution % side:
        faults.append(f"resolution: wanted a multiple of {side}, got {plan.resolution}")
    if plan.steps > longest:
        faults.append(f"steps: wanted at most {longest}, the length of the base's noise schedule; got {plan.steps}")
    if plan.seed + len(plan.prompts) > _SEEDS:
        faults.append(f"seed: wanted less than 2**63 - {len(plan.prompts)}, got {plan.seed}")
    if not math.isfinite(plan.guidance_scale):
        faults.append(f"guidance scale: wanted a finite number, got {plan.guidance_scale}")
    if faults:
        raise ConfigErrors("sample pictures", tuple(faults))
