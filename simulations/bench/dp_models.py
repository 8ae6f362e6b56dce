"""UNets on which the private step is measured.

Weights do not matter to time or memory, so all but the shipped base's are random.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from diffusers import UNet2DConditionModel

from common.adapter.lora import inject_lora
from common.adapter.vector import trained_parameters
from common.config import AdapterConfig
from common.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

BUNDLED: Final = Path(__file__).parents[1] / "base" / "model" / "unet"
_CROSS: Final = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
_CROSS_UP: Final = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
_SD15: Final[dict[str, Any]] = {
    "down_block_types": _CROSS,
    "up_block_types": _CROSS_UP,
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
ARCHITECTURES: Final[dict[str, dict[str, Any]]] = {
    "tiny": {
        "block_out_channels": (16, 32),
        "norm_num_groups": 8,
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 4,
        "cross_attention_dim": 32,
    },
    "mid": {**_SD15, "block_out_channels": (128, 256, 512, 512)},
    "sd15": {**_SD15, "block_out_channels": (320, 640, 1280, 1280)},
}
CHOICES: Final = ("base", *ARCHITECTURES)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured: a UNet, an adapter on it, and a batch."""

    model: str
    batch: int = 8
    side: int = 32
    draws: int = 1
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    checkpointing: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class Rows:
    """Rows of a batch: latents, timesteps, text embeddings and what to predict."""

    x: Tensor
    t: Tensor
    text: Tensor
    target: Tensor


@dataclass(frozen=True)
class Subject:
    """A UNet with an adapter and rows for it."""

    unet: nn.Module
    parameters: tuple[nn.Parameter, ...]
    rows: Rows

    def losses(self, rows: Rows, unet: nn.Module | None = None) -> Tensor:
        """One loss per row, [rows]; ``unet`` may be a wrapper of this one."""
        predicted: Tensor = (unet or self.unet)(rows.x, rows.t, rows.text, return_dict=False)[0]
        return (predicted - rows.target).square().flatten(1).mean(1)


def build(setting: Setting) -> Subject:
    """Make the UNet and draw the rows.

    Raises:
        ConfigError: no such model, or the shipped base has not been built.

    """
    torch.manual_seed(0)
    # to its device before the adapter is injected: some versions of PEFT leave new factors behind otherwise
    unet = _unet(setting.model).to(setting.device)
    spec = inject_lora(unet, setting.adapter, base_digest="sha256:" + "0" * 64)
    with torch.no_grad():
        for parameter in trained_parameters(unet, spec):
            parameter.normal_(std=0.01)  # at the start B is zero, and some gradients with it
    if setting.checkpointing:
        unet.enable_gradient_checkpointing()
    rows, side, config = setting.batch * setting.draws, setting.side, unet.config
    x, target = (torch.randn(rows, config.in_channels, side, side, device=setting.device) for _ in range(2))
    text = torch.randn(rows, 77, config.cross_attention_dim, device=setting.device)
    times = torch.randint(1000, (rows,), device=setting.device)
    return Subject(unet.train(), trained_parameters(unet, spec), Rows(x, times, text, target))


def _unet(model: str) -> UNet2DConditionModel:
    if model == "base":
        if not BUNDLED.is_dir():
            raise ConfigError(f"the shipped base is not at {BUNDLED}: build it first, or measure another model")
        return UNet2DConditionModel.from_pretrained(BUNDLED)
    if model not in ARCHITECTURES:
        raise ConfigError(f"wanted one of {', '.join(CHOICES)}, got {model!r}")
    return UNet2DConditionModel(**ARCHITECTURES[model])
