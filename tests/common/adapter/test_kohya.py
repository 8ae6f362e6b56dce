"""The file for A1111 and ComfyUI, held against diffusers' own reader and writer of that format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.utils import convert_state_dict_to_kohya
from safetensors.torch import load_file, save_file

from common.adapter.export import WEIGHTS_FILE, save_adapter
from common.adapter.kohya import kohya_bytes
from common.adapter.lora import inject_lora
from common.adapter.model import BaseModel, Family
from common.adapter.vector import write_vector
from common.config import AdapterConfig
from common.errors import AdapterError

if TYPE_CHECKING:
    from pathlib import Path

    from common.adapter.spec import AdapterSpec

FILE = "named-for-people.safetensors"
ALPHA = 10.0
"""Not the rank: a reader that ignores it scales by 1 instead of 2.5."""


def exported(base: BaseModel, folder: Path, train: str = "B") -> AdapterSpec:
    unet = base.load_unet()
    targets = ("to_q", "to_k", "to_out.0", "conv1", "proj_in", "downsamplers.0.conv")
    config = AdapterConfig(train=train, rank=4, alpha=ALPHA, targets=targets, seed=3)  # type: ignore[arg-type]
    spec = inject_lora(unet, config, base_digest=base.digest)
    vector = np.random.default_rng(5).normal(scale=0.1, size=spec.dimension).astype(np.float32)
    write_vector(unet, spec, vector)
    save_adapter(folder, unet, spec)
    (folder / FILE).write_bytes(kohya_bytes(folder, spec, title="trial"))
    return spec


def picture(base: BaseModel, folder: Path | None, name: str = FILE) -> np.ndarray[Any, Any]:
    kind = diffusers.StableDiffusionXLPipeline if base.family is Family.SDXL else diffusers.StableDiffusionPipeline
    stock = kind.from_pretrained(base.directory, local_files_only=True)
    stock.set_progress_bar_config(disable=True)
    if folder is not None:
        stock.load_lora_weights(folder, weight_name=name)
    generator = torch.Generator().manual_seed(0)
    drawn = stock("a red apple", num_inference_steps=3, guidance_scale=3.0, generator=generator, output_type="np")
    image: np.ndarray[Any, Any] = drawn.images
    return image


@pytest.mark.parametrize("train", ["B", "AB", "core"])
def test_the_stock_pipeline_draws_the_same_picture_from_either_file(
    base: BaseModel, tmp_path: Path, train: str
) -> None:
    exported(base, tmp_path, train)
    plain, theirs, ours = (picture(base, *how) for how in ((None,), (tmp_path, WEIGHTS_FILE), (tmp_path, FILE)))
    assert np.abs(ours - plain).max() > 0.02
    assert np.abs(ours - theirs).max() < 1e-5


def test_the_scale_is_in_the_file(tiny_bases: dict[Family, BaseModel], tmp_path: Path) -> None:
    # the control of the test above: with another alpha the picture is another
    base = tiny_bases[Family.SD1]
    exported(base, tmp_path)
    right = picture(base, tmp_path)
    tensors = load_file(tmp_path / FILE)
    save_file({k: v * 0.4 if k.endswith(".alpha") else v for k, v in tensors.items()}, tmp_path / FILE)
    assert np.abs(picture(base, tmp_path) - right).max() > 1e-3


def test_names_and_values_are_those_that_diffusers_writes(base: BaseModel, tmp_path: Path) -> None:
    exported(base, tmp_path)
    ours, theirs = load_file(tmp_path / FILE), convert_state_dict_to_kohya(load_file(tmp_path / WEIGHTS_FILE))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        # diffusers writes the rank for alpha, whatever it is
        assert torch.equal(value, torch.tensor(ALPHA) if name.endswith(".alpha") else theirs[name]), name


def test_the_same_adapter_gives_the_same_bytes_and_another_does_not(
    tiny_bases: dict[Family, BaseModel], tmp_path: Path
) -> None:
    spec = exported(tiny_bases[Family.SD1], tmp_path)
    first = (tmp_path / FILE).read_bytes()
    assert all(kohya_bytes(tmp_path, spec, title="trial") == first for _ in range(5))
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    name = next(iter(tensors))
    tensors[name].view(-1)[0] += 1e-3
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    assert kohya_bytes(tmp_path, spec, title="trial") != first


def test_weights_that_are_missing_cut_or_anothers_are_refused(
    tiny_bases: dict[Family, BaseModel], tmp_path: Path
) -> None:
    spec = exported(tiny_bases[Family.SD1], tmp_path)
    path = tmp_path / WEIGHTS_FILE
    whole = path.read_bytes()
    for damaged in (whole[:-5], b"garbage", b""):
        path.write_bytes(damaged)
        with pytest.raises(AdapterError, match="cannot be read as"):
            kohya_bytes(tmp_path, spec, title="trial")
    save_file({"unet.other.lora_A.weight": torch.zeros(4, 4)}, path)
    with pytest.raises(AdapterError, match="cannot be read as"):
        kohya_bytes(tmp_path, spec, title="trial")
    path.unlink()
    with pytest.raises(AdapterError, match="cannot be read as"):
        kohya_bytes(tmp_path, spec, title="trial")
