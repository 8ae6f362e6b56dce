"""Pictures from prompts: the same prompts and seeds give the same pictures on the same machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from common.errors import ConfigError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL import Image


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
        ConfigError: No prompts.

    """
    if not plan.prompts:
        raise ConfigError("no prompts to draw; give at least one")
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
