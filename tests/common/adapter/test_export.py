from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import diffusers
import msgspec
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from common.adapter.export import (
    CORE_FILE,
    SPEC_FILE,
    WEIGHTS_FILE,
    read_adapter_spec,
    read_adapter_vector,
    save_adapter,
)
from common.adapter.lora import inject_lora
from common.adapter.model import BaseModel, Family
from common.adapter.vector import Vector, write_vector
from common.config import AdapterConfig
from common.errors import AdapterError, WrongAdapterSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from diffusers import UNet2DConditionModel

    from common.adapter.spec import AdapterSpec

MODES = ("B", "AB", "core")
TARGETS = ("to_q", "to_k", "to_out.0", "conv1", "proj_in", "downsamplers.0.conv")
BASE_FIELDS = {"rank": 4, "alpha": 10.0, "targets": TARGETS, "seed": 3}


def injected(base: BaseModel, train: str = "B", **changes: Any) -> tuple[UNet2DConditionModel, AdapterSpec]:
    unet = base.load_unet()
    config = AdapterConfig(train=train, **{**BASE_FIELDS, **changes})  # type: ignore[arg-type]
    return unet, inject_lora(unet, config, base_digest=base.digest)


def trained(base: BaseModel, train: str = "B") -> tuple[UNet2DConditionModel, AdapterSpec, Vector]:
    unet, spec = injected(base, train)
    vector = np.random.default_rng(5).normal(scale=0.1, size=spec.dimension).astype(np.float32)
    write_vector(unet, spec, vector)
    return unet, spec, vector


@pytest.fixture
def saved(tiny_bases: dict[Family, BaseModel], tmp_path: Path) -> Callable[..., tuple[Path, AdapterSpec]]:
    """Saves a trained adapter of the SD 1 base, to be damaged."""

    def save(train: str = "B") -> tuple[Path, AdapterSpec]:
        unet, spec, _ = trained(tiny_bases[Family.SD1], train)
        save_adapter(tmp_path / "adapter", unet, spec)
        return tmp_path / "adapter", spec

    return save


def picture(pipeline: Any) -> np.ndarray[Any, Any]:
    generator = torch.Generator().manual_seed(0)
    drawn = pipeline("a red apple", num_inference_steps=3, guidance_scale=3.0, generator=generator, output_type="np")
    image: np.ndarray[Any, Any] = drawn.images
    return image


@pytest.mark.parametrize("train", MODES)
def test_the_stock_pipeline_draws_what_ours_draws(
    base: BaseModel, tmp_path: Path, train: str, caplog: pytest.LogCaptureFixture
) -> None:
    unet, spec, _ = trained(base, train)
    save_adapter(tmp_path, unet, spec)
    kind = diffusers.StableDiffusionXLPipeline if base.family is Family.SDXL else diffusers.StableDiffusionPipeline
    stock = kind.from_pretrained(base.directory, local_files_only=True)
    stock.set_progress_bar_config(disable=True)
    plain = picture(stock)
    monitored = logging.getLogger("diffusers")
    monitored.propagate = True
    try:
        with caplog.at_level(logging.WARNING):
            stock.load_lora_weights(tmp_path)
    finally:
        monitored.propagate = False
    loaded, ours = picture(stock), picture(base.pipeline(unet))
    assert np.abs(ours - plain).max() > 0.02
    assert np.abs(ours - loaded).max() < 1e-4
    assert stock.unet.peft_config["default_0"].lora_alpha == 10.0
    # with one weight file, none of whose keys is left over, the only remark is that text encoders are not adapted
    assert caplog.messages
    assert not [one for one in caplog.messages if "text_encoder" not in one and "CLIPTextModel" not in one]


def test_alpha_travels_in_the_metadata(base: BaseModel, tmp_path: Path) -> None:
    # the control of the test above: without it the stock pipeline would scale by 1 instead of α/r
    unet, spec, _ = trained(base)
    save_adapter(tmp_path, unet, spec)
    path = tmp_path / WEIGHTS_FILE
    save_file(load_file(path), path, metadata={"format": "pt"})
    stock = base.pipeline()
    stock.load_lora_weights(tmp_path)
    assert np.abs(picture(stock) - picture(base.pipeline(unet))).max() > 1e-3


@pytest.mark.parametrize("train", MODES)
def test_the_vector_is_read_back_bit_for_bit(base: BaseModel, tmp_path: Path, train: str) -> None:
    unet, spec, vector = trained(base, train)
    save_adapter(tmp_path, unet, spec)
    assert read_adapter_spec(tmp_path) == spec
    assert read_adapter_vector(tmp_path, spec).tobytes() == vector.tobytes()


@pytest.mark.parametrize("train", MODES)
def test_the_files_are_those_that_are_promised(saved: Callable[..., tuple[Path, AdapterSpec]], train: str) -> None:
    directory, spec = saved(train)
    cores = {CORE_FILE} if train == "core" else set()
    assert {path.name for path in directory.iterdir()} == {WEIGHTS_FILE, SPEC_FILE, *cores}
    with safe_open(directory / WEIGHTS_FILE, framework="pt") as file:
        keys, shapes = set(file.keys()), {name: file.get_tensor(name).shape for name in file.keys()}  # noqa: SIM118 - no mapping
    modules = {one.name.rpartition(".")[0] for one in spec.tensors}
    assert keys == {f"unet.{name}.{factor}.weight" for name in modules for factor in ("lora_A", "lora_B")}
    assert all(shapes[f"unet.{name}.lora_A.weight"][0] == spec.config.rank for name in modules)


def test_an_earlier_export_is_replaced(tiny_bases: dict[Family, BaseModel], tmp_path: Path) -> None:
    for train in ("core", "B", "core", "AB"):
        unet, spec, vector = trained(tiny_bases[Family.SD1], train)
        save_adapter(tmp_path, unet, spec)
        assert (tmp_path / CORE_FILE).exists() == (train == "core")
        np.testing.assert_array_equal(read_adapter_vector(tmp_path, spec), vector)


def test_a_failed_write_leaves_the_earlier_export(
    saved: Callable[..., tuple[Path, AdapterSpec]], monkeypatch: pytest.MonkeyPatch, tiny_bases: dict[Family, BaseModel]
) -> None:
    directory, spec = saved()
    before = read_adapter_vector(directory, spec)
    unet, _ = injected(tiny_bases[Family.SD1])

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_adapter(directory, unet, spec)
    np.testing.assert_array_equal(read_adapter_vector(directory, spec), before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 3}, "rank: wanted 3, got 4"),
        ({"alpha": 4.0}, r"alpha: wanted 4\.0, got 10\.0"),
        ({"seed": 9}, "seed: wanted 9, got 3"),
        ({"train": "AB"}, "train: wanted 'AB', got 'B'"),
        ({"targets": ("to_q",)}, r"targets: wanted \('to_q',\), got"),
        ({"rank": 3, "seed": 9}, "rank: wanted 3, got 4; seed: wanted 9, got 3"),
    ],
)
def test_another_specification_is_refused_with_the_fields_that_differ(
    saved: Callable[..., tuple[Path, AdapterSpec]],
    tiny_bases: dict[Family, BaseModel],
    changes: dict[str, Any],
    message: str,
) -> None:
    directory, _ = saved()
    _, other = injected(tiny_bases[Family.SD1], **changes)
    with pytest.raises(WrongAdapterSpec, match=message):
        read_adapter_vector(directory, other)


def test_another_base_is_refused(saved: Callable[..., tuple[Path, AdapterSpec]]) -> None:
    directory, spec = saved()
    other = msgspec.structs.replace(spec, base_digest="sha256:" + "0" * 64)
    with pytest.raises(WrongAdapterSpec, match=f"base_digest: wanted {other.base_digest}, got {spec.base_digest}"):
        read_adapter_vector(directory, other)
    with pytest.raises(WrongAdapterSpec, match="tensors: wanted 1 of other names"):
        read_adapter_vector(directory, msgspec.structs.replace(spec, tensors=spec.tensors[:1]))


def test_a_unet_without_the_adapter_is_not_saved(tiny_bases: dict[Family, BaseModel], tmp_path: Path) -> None:
    base = tiny_bases[Family.SD1]
    _, spec = injected(base)
    with pytest.raises(WrongAdapterSpec):
        save_adapter(tmp_path / "adapter", base.load_unet(), spec)
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(("train", "name"), [("B", WEIGHTS_FILE), ("core", CORE_FILE), ("B", SPEC_FILE)])
@pytest.mark.parametrize("damage", ["missing", "empty", "short", "cut", "garbage", "directory"])
def test_a_damaged_file_is_named(
    saved: Callable[..., tuple[Path, AdapterSpec]], train: str, name: str, damage: str
) -> None:
    directory, spec = saved(train)
    path = directory / name
    data = path.read_bytes()
    path.unlink()
    if damage == "directory":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes({"empty": b"", "short": data[:5], "cut": data[:-3], "garbage": b"\xff" * 999}[damage])
    with pytest.raises(AdapterError, match=name):
        read_adapter_vector(directory, spec)


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


@pytest.mark.parametrize(("train", "name"), [("AB", WEIGHTS_FILE), ("core", CORE_FILE)])
def test_tensors_that_do_not_fit_are_refused(
    saved: Callable[..., tuple[Path, AdapterSpec]], train: str, name: str
) -> None:
    directory, spec = saved(train)
    path = directory / name
    metadata, tensors = _metadata(path), load_file(path)
    first = next(key for key in tensors if ".to_q." in key)
    bad = {
        "tensors are missing": {key: value for key, value in tensors.items() if key != first},
        "has the shape": {**tensors, first: tensors[first][:-1].contiguous()},
        "type F16, wanted F32: the file was converted": {**tensors, first: tensors[first].half()},
        "type BF16, wanted F32: the file was converted": {**tensors, first: tensors[first].bfloat16()},
        "not finite": {**tensors, first: torch.full_like(tensors[first], float("nan"))},
    }
    for message, content in bad.items():
        save_file(content, path, metadata=metadata)
        with pytest.raises(AdapterError, match=message):
            read_adapter_vector(directory, spec)


@pytest.mark.parametrize("train", ["B", "core"])
def test_files_of_two_adapters_are_not_mixed(
    saved: Callable[..., tuple[Path, AdapterSpec]], tiny_bases: dict[Family, BaseModel], tmp_path: Path, train: str
) -> None:
    directory, spec = saved(train)
    unet, other = injected(tiny_bases[Family.SD1], train, seed=9)
    save_adapter(tmp_path / "other", unet, other)
    for name in {WEIGHTS_FILE, CORE_FILE} & {path.name for path in directory.iterdir()}:
        (tmp_path / "other" / name).replace(directory / name)
    with pytest.raises(AdapterError, match="saved under another specification"):
        read_adapter_vector(directory, spec)


def test_a_specification_with_unknown_fields_is_refused(saved: Callable[..., tuple[Path, AdapterSpec]]) -> None:
    directory, spec = saved()
    path = directory / SPEC_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "surprise": 1}))
    with pytest.raises(AdapterError, match="surprise"):
        read_adapter_vector(directory, spec)


@pytest.mark.parametrize("train", ["AB", "core"])
def test_the_same_adapter_gives_the_same_files(tiny_bases: dict[Family, BaseModel], tmp_path: Path, train: str) -> None:
    unet, spec, _ = trained(tiny_bases[Family.SD1], train)
    for attempt in ("one", "two", "three", "four"):  # safetensors' own order of metadata is random
        save_adapter(tmp_path / attempt, unet, spec)
        for path in (tmp_path / attempt).iterdir():
            assert path.read_bytes() == (tmp_path / "one" / path.name).read_bytes()
