"""Draw pictures with a base model and a released adapter, through the stock pipeline and its stock LoRA loading."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.adapter.export import WEIGHTS_FILE, check_adapter_weights, read_adapter_spec
from common.adapter.model import open_base
from common.errors import WrongAdapterSpec
from common.generate import SamplePlan, check_plan, generate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from common.adapter.model import BaseModel


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """What to draw, with what, and where to put it."""

    base: str
    adapter: Path
    prompts: tuple[str, ...]
    out: Path
    seed: int
    steps: int
    guidance_scale: float
    resolution: int | None
    download: bool = False


def generate_pictures(request: GenerationRequest) -> Iterator[Path]:
    """Write one PNG per prompt; yields their paths.

    Raises:
        ModelError: The base cannot be used.
        AdapterError: The adapter cannot be used, or is not made for this base.
        ConfigErrors: A resolution, seed or number of steps that cannot be drawn.

    """
    base = open_base(request.base, allow_download=request.download)
    _check_made_for(base, request.adapter)
    pipeline = base.pipeline()
    plan = SamplePlan(
        prompts=request.prompts,
        seed=request.seed,
        steps=request.steps,
        guidance_scale=request.guidance_scale,
        resolution=request.resolution or base.resolution,
    )
    check_plan(pipeline, plan)
    # the file by name: diffusers would else fall back on a pickle, or on a download
    pipeline.load_lora_weights(request.adapter, weight_name=WEIGHTS_FILE, use_safetensors=True, local_files_only=True)
    request.out.mkdir(parents=True, exist_ok=True)
    for index, picture in enumerate(generate(pipeline, plan)):
        words = re.sub(r"[^a-z0-9]+", "-", request.prompts[index].lower()).strip("-")[:40]
        path = request.out / f"{index:02d}-{words or 'empty'}.png"
        picture.save(path)
        yield path


def _check_made_for(base: BaseModel, adapter: Path) -> None:
    """An adapter on another base than its own draws noise without a word of warning."""
    spec = read_adapter_spec(adapter)
    if spec.base_digest != base.digest:
        raise WrongAdapterSpec(
            f"{adapter}: made for the base {spec.base_digest}, got the base {base.digest}; give its own base"
        )
    check_adapter_weights(adapter, spec)
