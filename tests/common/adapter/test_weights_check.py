"""The file that everybody loads: a foreign factor, tensor or figure in it is another adapter under an honest digest."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from common.adapter.export import (
    CORE_FILE,
    SPEC_FILE,
    WEIGHTS_FILE,
    read_adapter_spec,
    read_adapter_vector,
    save_adapter,
)
from common.adapter.kohya import kohya_bytes
from common.adapter.lora import inject_lora
from common.adapter.model import BaseModel, Family
from common.adapter.spec import encode_spec
from common.adapter.vector import write_vector
from common.adapter.weights_check import check_adapter_weights, compare_with_base
from common.config import AdapterConfig
from common.errors import AdapterError, WrongAdapterSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from common.adapter.spec import AdapterSpec

Kind = Literal["B", "AB", "core"]
KINDS: tuple[Kind, ...] = ("B", "AB", "core")
TARGETS = ("to_q", "to_out.0", "conv1", "proj_in")


def saved(base: BaseModel, folder: Path, train: Kind, **changes: Any) -> AdapterSpec:
    unet = base.load_unet()
    config = AdapterConfig(**{"rank": 4, "alpha": 10.0, "targets": TARGETS, "seed": 3, "train": train, **changes})
    spec = inject_lora(unet, config, base_digest=base.digest)
    write_vector(unet, spec, np.random.default_rng(5).normal(scale=0.1, size=spec.dimension).astype(np.float32))
    save_adapter(folder, unet, spec)
    return spec


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, str]], object]) -> None:
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    tensors: dict[str, Any] = load_file(path)
    change(tensors, metadata)
    save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize("train", KINDS)
def test_every_family_and_kind_is_in_order_as_it_was_saved(base: BaseModel, tmp_path: Path, train: Kind) -> None:
    spec = saved(base, tmp_path, train)
    check_adapter_weights(tmp_path, spec)
    compare_with_base(tmp_path, spec, base)


def first(tensors: dict[str, Any], factor: str) -> str:
    return min(key for key in tensors if factor in key)


def other_alpha(_: dict[str, Any], metadata: dict[str, str]) -> None:
    config = json.loads(metadata["lora_adapter_metadata"])
    config["unet.lora_alpha"] *= 100
    metadata["lora_adapter_metadata"] = json.dumps(config, sort_keys=True)


CHANGES = {
    "none of them": lambda tensors, _: tensors.update({"text_encoder.x.lora_A.weight": np.ones((4, 4), np.float32)}),
    "missing": lambda tensors, _: tensors.pop(first(tensors, "lora_B")),
    "lora_adapter_metadata": other_alpha,
    "metadata more": lambda _, metadata: metadata.update({"more": "words"}),
    "metadata darkroom_adapter_spec": lambda _, metadata: metadata.update({"darkroom_adapter_spec": "sha256:00"}),
    "has the shape": lambda tensors, _: tensors.update({first(tensors, "lora_B"): np.ones((8, 5), np.float32)}),
    "type F16, wanted F32": lambda tensors, _: tensors.update(
        {first(tensors, "lora_A"): tensors[first(tensors, "lora_A")].astype(np.float16)}
    ),
    "not finite": lambda tensors, _: tensors[first(tensors, "lora_A")].__setitem__(0, np.inf),
}


@pytest.mark.parametrize("train", KINDS)
@pytest.mark.parametrize("said", CHANGES)
def test_whatever_else_a_loader_would_apply_is_refused(
    tiny_bases: dict[Family, BaseModel], tmp_path: Path, said: str, train: Kind
) -> None:
    spec = saved(tiny_bases[Family.SD1], tmp_path, train)
    rewritten(tmp_path / WEIGHTS_FILE, CHANGES[said])
    with pytest.raises(AdapterError, match=said):
        check_adapter_weights(tmp_path, spec)


@pytest.mark.parametrize("train", KINDS)
def test_a_file_converted_to_bfloat16_is_refused_for_that_and_not_as_damaged(
    tiny_bases: dict[Family, BaseModel], tmp_path: Path, train: Kind
) -> None:
    spec = saved(tiny_bases[Family.SD1], tmp_path, train)
    path = tmp_path / WEIGHTS_FILE
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key).bfloat16() for key in file.keys()}  # noqa: SIM118
    save_torch(tensors, path, metadata=metadata)
    for look in (lambda: check_adapter_weights(tmp_path, spec), lambda: kohya_bytes(tmp_path, spec, title="x")):
        with pytest.raises(AdapterError, match="type BF16, wanted F32: the file was converted") as caught:
            look()
        assert "copy it again" not in str(caught.value)


@pytest.mark.parametrize("name", ["ε = 0.01", "to_q ", "to_q\x1b[8m", "to\u202e_q", "<b>", ""])
def test_a_targets_name_is_no_place_for_words(tiny_bases: dict[Family, BaseModel], tmp_path: Path, name: str) -> None:
    spec = saved(tiny_bases[Family.SD1], tmp_path, "AB")
    config = msgspec.structs.replace(spec.config, targets=(*spec.config.targets, name))
    with pytest.raises(AdapterError, match="is no module's name") as caught:
        check_adapter_weights(tmp_path, msgspec.structs.replace(spec, config=config))
    assert str(caught.value).isprintable()


def turned(factor: str) -> Callable[[dict[str, Any], dict[str, str]], object]:
    """One factor of one module has another sign: as likely a value as the right one."""
    return lambda tensors, _: tensors.update({first(tensors, factor): -tensors[first(tensors, factor)]})


@pytest.mark.parametrize(("train", "factor"), [("B", "lora_A"), ("core", "lora_A"), ("core", "lora_B")])
def test_a_frozen_factor_that_was_put_in_is_found_with_the_base(
    tiny_bases: dict[Family, BaseModel], tmp_path: Path, train: Kind, factor: str
) -> None:
    base = tiny_bases[Family.SD1]
    spec = saved(base, tmp_path, train)
    before = read_adapter_vector(tmp_path, spec)
    rewritten(tmp_path / WEIGHTS_FILE, turned(factor))
    assert np.array_equal(read_adapter_vector(tmp_path, spec), before)  # the digest does not tell
    with pytest.raises(AdapterError, match=rf"{factor}.weight is not what base"):
        compare_with_base(tmp_path, spec, base)


def test_the_seeds_own_factor_needs_no_base(tiny_bases: dict[Family, BaseModel], tmp_path: Path) -> None:
    spec = saved(tiny_bases[Family.SD1], tmp_path, "B")
    rewritten(tmp_path / WEIGHTS_FILE, turned("lora_A"))
    with pytest.raises(AdapterError, match="not the one of the public seed"):
        check_adapter_weights(tmp_path, spec)


def test_rounding_is_no_fault_and_more_than_that_is(tiny_bases: dict[Family, BaseModel], tmp_path: Path) -> None:
    base = tiny_bases[Family.SD1]
    spec = saved(base, tmp_path, "core")
    key = ".lora_B"
    rewritten(tmp_path / WEIGHTS_FILE, lambda tensors, _: tensors[first(tensors, key)].__imul__(1 + 2e-6))
    compare_with_base(tmp_path, spec, base)
    rewritten(tmp_path / WEIGHTS_FILE, lambda tensors, _: tensors[first(tensors, key)].__imul__(1 + 1e-4))
    with pytest.raises(AdapterError, match="somebody put in another"):
        compare_with_base(tmp_path, spec, base)


def test_an_adapter_whose_cores_are_zero_has_no_product(tiny_bases: dict[Family, BaseModel], tmp_path: Path) -> None:
    base = tiny_bases[Family.SD1]
    spec = saved(base, tmp_path, "core")
    rewritten(tmp_path / CORE_FILE, lambda tensors, _: [value.fill(0) for value in tensors.values()])
    with pytest.raises(AdapterError, match="somebody put in another"):
        compare_with_base(tmp_path, spec, base)
    rewritten(
        tmp_path / WEIGHTS_FILE, lambda tensors, _: [value.fill(0) for key, value in tensors.items() if "lora_B" in key]
    )
    compare_with_base(tmp_path, spec, base)


def test_a_file_of_cores_holds_nothing_else(tiny_bases: dict[Family, BaseModel], tmp_path: Path) -> None:
    spec = saved(tiny_bases[Family.SD1], tmp_path, "core")
    whole = (tmp_path / CORE_FILE).read_bytes()
    rewritten(tmp_path / CORE_FILE, lambda tensors, _: tensors.update(more=np.ones(1, np.float32)))
    with pytest.raises(AdapterError, match="more is none of them"):
        check_adapter_weights(tmp_path, spec)
    (tmp_path / CORE_FILE).write_bytes(whole)
    rewritten(tmp_path / CORE_FILE, lambda _, metadata: metadata.update(more="words"))
    with pytest.raises(AdapterError, match="metadata more"):
        check_adapter_weights(tmp_path, spec)


@pytest.mark.parametrize("leave", [lambda name: "lora_B" in name, lambda _: False])
def test_a_specification_cannot_leave_out_what_is_trained(
    tiny_bases: dict[Family, BaseModel], tmp_path: Path, leave: Callable[[str], bool]
) -> None:
    spec = saved(tiny_bases[Family.SD1], tmp_path, "AB")
    less = msgspec.structs.replace(spec, tensors=tuple(one for one in spec.tensors if leave(one.name)))
    (tmp_path / SPEC_FILE).write_bytes(encode_spec(less))
    rewritten(tmp_path / WEIGHTS_FILE, lambda _, metadata: metadata.update(darkroom_adapter_spec=less.digest))
    with pytest.raises(AdapterError, match="lora_A and lora_B of each module once"):
        check_adapter_weights(tmp_path, read_adapter_spec(tmp_path))


def test_another_base_and_targets_that_it_lacks_are_refused(
    tiny_bases: dict[Family, BaseModel], tmp_path: Path
) -> None:
    spec = saved(tiny_bases[Family.SD1], tmp_path, "B")
    with pytest.raises(WrongAdapterSpec, match="this base gives adapter"):
        compare_with_base(tmp_path, spec, tiny_bases[Family.SD2])
    config = msgspec.structs.replace(spec.config, targets=("nothing",))
    odd = msgspec.structs.replace(spec, config=config)
    (tmp_path / SPEC_FILE).write_bytes(encode_spec(odd))
    rewritten(tmp_path / WEIGHTS_FILE, lambda _, metadata: metadata.update(darkroom_adapter_spec=odd.digest))
    with pytest.raises(WrongAdapterSpec, match="does not fit its base"):
        compare_with_base(tmp_path, odd, tiny_bases[Family.SD1])


@pytest.mark.parametrize("train", ["B", "core"])
def test_files_that_are_cut_mixed_up_or_missing_are_refused(
    tiny_bases: dict[Family, BaseModel], tmp_path: Path, train: Kind
) -> None:
    spec = saved(tiny_bases[Family.SD1], tmp_path / "one", train)
    saved(tiny_bases[Family.SD1], tmp_path / "other", train, seed=9)
    path = tmp_path / "one" / WEIGHTS_FILE
    bad = {
        "cannot be read": path.read_bytes()[:-3],
        "belongs to another adapter": (tmp_path / "other" / WEIGHTS_FILE).read_bytes(),
    }
    for message, content in bad.items():
        path.write_bytes(content)
        with pytest.raises(AdapterError, match=message):
            check_adapter_weights(tmp_path / "one", spec)
    path.unlink()
    with pytest.raises(AdapterError, match=WEIGHTS_FILE):
        check_adapter_weights(tmp_path / "one", spec)
