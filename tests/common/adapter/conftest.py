from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import torch

from common.adapter.model import BaseModel, Family, open_base
from common.adapter.text import TextConditioning, added_conditions, encode_captions
from tests.tiny_base import write_tiny_base

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from diffusers import UNet2DConditionModel
    from torch import Tensor

torch.set_num_threads(1)

CAPTIONS = ("a red apple", "two dogs in the snow")


@dataclass(frozen=True)
class Probe:
    """A fixed batch of two that a UNet of the family is evaluated on."""

    base: BaseModel
    latents: Tensor
    timesteps: Tensor
    text: TextConditioning

    def __call__(self, unet: UNet2DConditionModel) -> Tensor:
        added = added_conditions(self.base.family, self.text.pooled, resolution=self.base.resolution, batch=2)
        if added is not None:
            added = {name: value.to(unet.dtype) for name, value in added.items()}
        answer: Tensor = unet(
            self.latents.to(unet.dtype),
            self.timesteps,
            encoder_hidden_states=self.text.embeddings.to(unet.dtype),
            added_cond_kwargs=added,
        ).sample
        return answer


@pytest.fixture(scope="session")
def tiny_bases(tmp_path_factory: pytest.TempPathFactory) -> dict[Family, BaseModel]:
    """One opened tiny base of each family; read-only."""
    root = tmp_path_factory.mktemp("bases")
    return {family: open_base(write_tiny_base(root / family, family)) for family in Family}


@pytest.fixture(scope="session")
def probes(tiny_bases: dict[Family, BaseModel]) -> dict[Family, Probe]:
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    made = {}
    for family, base in tiny_bases.items():
        text = encode_captions(base.load_tokenizers(), base.load_text_encoders(), family, CAPTIONS)
        made[family] = Probe(base, noise, torch.tensor([3, 871]), text)
    return made


@pytest.fixture(params=list(Family))
def base(request: pytest.FixtureRequest, tiny_bases: dict[Family, BaseModel]) -> BaseModel:
    """Each family's tiny base in turn; read-only."""
    opened: BaseModel = tiny_bases[request.param]
    return opened


@pytest.fixture
def probe(base: BaseModel, probes: dict[Family, Probe]) -> Probe:
    return probes[base.family]


@pytest.fixture
def copied(tiny_bases: dict[Family, BaseModel], tmp_path: Path) -> Callable[..., Path]:
    """Makes a private copy of a tiny base's directory, to be damaged."""

    def copy(family: Family = Family.SD1) -> Path:
        return shutil.copytree(tiny_bases[family].directory, tmp_path / "copy")

    return copy
