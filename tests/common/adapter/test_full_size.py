from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from common.adapter.lora import inject_lora, unet_family
from common.adapter.spec import Family
from common.adapter.vector import gradient_vector, read_vector, write_vector
from common.config import AdapterConfig

SD15 = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": 8,
    "layers_per_block": 2,
}


def closed_form(rank: int) -> int:
    """Values of A and B on the eight attention projections of SD 1.5's sixteen transformer blocks."""
    widths = [320] * 5 + [640] * 5 + [1280] * 6  # down 2 + up 3 of each width, and one in the middle
    inside = sum(6 * (width + width) for width in widths)  # attn1 q, k, v, out and attn2 q, out
    text = sum(2 * (768 + width) for width in widths)  # attn2 k, v
    return rank * (inside + text)


def test_the_layout_on_sd_1_5_has_the_published_size() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15)
        assert unet_family(unet.config) is Family.SD1
        spec = inject_lora(unet, AdapterConfig(rank=16, alpha=16, train="AB"), base_digest="sha256:" + "0" * 64)
    assert len(spec.tensors) == 2 * 8 * 16
    assert spec.dimension == closed_form(16) == 3_188_736


@pytest.mark.slow
def test_sd_1_5_takes_a_step() -> None:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**SD15).eval().requires_grad_(requires_grad=False)
    x, text = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 768)
    with torch.no_grad():
        plain = unet(x, 500, encoder_hidden_states=text).sample
    spec = inject_lora(unet, AdapterConfig(rank=16, alpha=16, train="AB"), base_digest="sha256:" + "0" * 64)
    assert spec.dimension == closed_form(16)
    fresh = unet(x, 500, encoder_hidden_states=text).sample
    assert torch.equal(fresh, plain)
    torch.autograd.backward(fresh.square().mean())
    gradient = gradient_vector(unet, spec)
    length = float(np.linalg.norm(gradient))
    assert 0 < length < np.inf
    before = read_vector(unet, spec)
    write_vector(unet, spec, before - np.float32(1e-2 / length) * gradient)
    with torch.no_grad():
        after = unet(x, 500, encoder_hidden_states=text).sample
    assert after.square().mean() < plain.square().mean()
