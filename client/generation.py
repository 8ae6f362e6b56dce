"""Draw pictures with a base model and a released adapter, through the stock pipeline and its stock LoRA loading."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.adapter.export import read_adapter_spec
from common.adapter.model import open_base
from common.errors import WrongAdapterSpec
from common.generate import SamplePlan, generate

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


def generate_pictures(request: GenerationRequest) -> Iterator[Path]:
    """Write one PNG per prompt; yields their paths.

    Raises:
        ModelError: The base cannot be used.
        AdapterError: The adapter cannot be used, or is not made for this base.

    """
    base = open_base(request.base)
    pipeline = base.pipeline()
    _check_made_for(base, request.adapter)
    pipeline.load_lora_weights(request.adapter)
    plan = SamplePlan(
        prompts=request.prompts,
        seed=request.seed,
        steps=request.steps,
        guidance_scale=request.guidance_scale,
        resolution=request.resolution or base.resolution,
    )
    request.out.mkdir(parents=True, exist_ok=True)
    for index, picture in enumerate(generate(pipeline, plan)):
        words = re.sub(r"[^a-z0-9]+", "-", request.prompts[index].lower()).strip("-")[:40]
        path = request.out / f"{index:02d}-{words or 'empty'}.png"
        picture.save(path)
        yield path


def _check_made_for(base: BaseModel, adapter: Path) -> None:
    """An adapter on another base than its own draws noise without a word of warning."""
    made_for = read_adapter_spec(adapter).base_digest
    if made_for != base.digest:
        raise WrongAdapterSpec(
            f"{adapter}: made for the base {made_for}, got the base {base.digest}; give its own base"
        )
