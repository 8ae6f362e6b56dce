from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from common.adapter.lora import CoredFactor, inject_lora, principal_factors, trained_layer
from common.adapter.model import BaseModel, Family, open_base
from common.adapter.spec import AdapterSpec, TensorSpec
from common.adapter.vector import initial_vector, read_vector, write_vector
from common.config import ATTENTION_TARGETS, AdapterConfig
from common.errors import AdapterError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from diffusers import UNet2DConditionModel
    from torch import Tensor

LINEAR_AND_CONV = ("to_q", "to_v", "to_out.0", "conv1", "proj_in", "downsamplers.0.conv", "time_emb_proj")
MODES = ("B", "AB", "core")
RANK, ALPHA = 4, 6.0


def configured(train: str, **changes: Any) -> AdapterConfig:
    fields = {"rank": RANK, "alpha": ALPHA, "targets": LINEAR_AND_CONV, "seed": 3, **changes}
    return AdapterConfig(train=train, **fields)  # type: ignore[arg-type]


def injected(base: BaseModel, train: str, **changes: Any) -> tuple[UNet2DConditionModel, AdapterSpec]:
    unet = base.load_unet()
    return unet, inject_lora(unet, configured(train, **changes), base_digest=base.digest)


def randomised(unet: UNet2DConditionModel, spec: AdapterSpec, *, scale: float = 0.1) -> None:
    values = np.random.default_rng(5).normal(scale=scale, size=spec.dimension)
    write_vector(unet, spec, values.astype(np.float32))


@pytest.mark.parametrize("train", MODES)
def test_the_fresh_adapter_changes_nothing(base: BaseModel, probe: Callable[..., Tensor], train: str) -> None:
    plain = probe(base.load_unet())
    assert torch.equal(probe(injected(base, train)[0]), plain)


@pytest.mark.parametrize("train", MODES)
def test_exactly_the_tensors_of_the_specification_require_gradients(base: BaseModel, train: str) -> None:
    unet, spec = injected(base, train)
    trained = {id(one) for one in unet.parameters() if one.requires_grad}
    layers = [trained_layer(unet, *one.name.rpartition(".")[::2]) for one in spec.tensors]
    assert trained == {id(layer.weight) for layer in layers}
    assert all(layer.bias is None for layer in layers)
    assert {type(layer) for layer in layers} == {nn.Linear, nn.Conv2d}
    assert [tuple(layer.weight.shape) for layer in layers] == [one.shape for one in spec.tensors]


@pytest.mark.parametrize("train", MODES)
def test_the_dimension_is_the_closed_form(base: BaseModel, train: str) -> None:
    _, spec = injected(base, train)
    sizes = []
    for name, module in base.load_unet().named_modules():
        if name.endswith(tuple(f".{target}" for target in LINEAR_AND_CONV)):
            outputs, inputs = module.weight.flatten(1).shape
            sizes.append({"B": outputs * RANK, "AB": (outputs + inputs) * RANK, "core": RANK**2}[train])
    assert spec.dimension == sum(sizes)
    assert [one.name for one in spec.tensors] == sorted(one.name for one in spec.tensors)


@pytest.mark.parametrize("train", MODES)
def test_the_adapter_adds_scaled_products_to_the_weights(
    base: BaseModel, probe: Callable[..., Tensor], train: str
) -> None:
    unet, spec = injected(base, train)
    randomised(unet, spec)
    merged = base.load_unet()
    for name in {one.name.rpartition(".")[0] for one in spec.tensors}:
        adapted = unet.get_submodule(name)
        a = adapted.lora_A["default"].weight.flatten(1)
        last = adapted.lora_B["default"]
        b = last.frozen.weight.flatten(1) @ last.core.weight.flatten(1) if train == "core" else last.weight.flatten(1)
        weight = merged.get_submodule(name).weight
        weight.data += (ALPHA / RANK * b @ a).reshape(weight.shape)
    plain, got, wanted = probe(base.load_unet()), probe(unet), probe(merged)
    assert (wanted - plain).abs().max() > 1e-2
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_frozen_rows_are_orthonormal(base: BaseModel) -> None:
    unet, spec = injected(base, "B")
    for one in spec.tensors:
        a = unet.get_submodule(one.name.rpartition(".")[0]).lora_A["default"].weight.flatten(1)
        torch.testing.assert_close(a @ a.T, torch.eye(RANK), rtol=0, atol=1e-6)


def test_the_core_sits_between_principal_factors_of_the_base_weight(base: BaseModel) -> None:
    unet, spec = injected(base, "core")
    for one in spec.tensors:
        adapted = unet.get_submodule(one.name.rpartition(".")[0])
        left, right = principal_factors(adapted.base_layer.weight, RANK)
        assert torch.equal(adapted.lora_A["default"].weight.flatten(1), right)
        assert torch.equal(adapted.lora_B["default"].frozen.weight.flatten(1), left)
        assert one.shape[:2] == (RANK, RANK)


@pytest.mark.parametrize("train", MODES)
def test_peft_can_merge_the_adapter(base: BaseModel, probe: Callable[..., Tensor], train: str) -> None:
    unet, spec = injected(base, train)
    randomised(unet, spec)
    wanted = probe(unet)
    unet.fuse_lora(safe_fusing=True)
    assert all(module.merged for module in unet.modules() if hasattr(module, "merged_adapters"))
    torch.testing.assert_close(probe(unet), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("train", MODES)
def test_every_trained_tensor_gets_a_gradient_from_the_start(
    base: BaseModel, probe: Callable[..., Tensor], train: str
) -> None:
    unet, spec = injected(base, train)
    unet.enable_gradient_checkpointing()
    unet.train()
    torch.autograd.backward(probe(unet).square().mean())
    for one in spec.tensors:
        gradient = trained_layer(unet, *one.name.rpartition(".")[::2]).weight.grad
        assert gradient is not None
        moves = not (train == "AB" and one.name.endswith(".lora_A"))  # B is zero, so nothing reaches A yet
        assert bool(gradient.abs().max() > 0) == moves, one.name
    assert all(one.grad is None for one in unet.parameters() if not one.requires_grad)


@pytest.mark.parametrize("train", MODES)
def test_two_injections_agree_whatever_the_global_generator(base: BaseModel, train: str) -> None:
    torch.manual_seed(1)
    first, spec = injected(base, train)
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    second, again = injected(base, train)
    assert torch.equal(before, torch.random.get_rng_state())
    assert spec == again
    assert spec.digest == again.digest
    ours, theirs = first.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


_IN_ANOTHER_PROCESS = """
import hashlib, sys
import torch
torch.set_num_threads(1)
from common.adapter.lora import inject_lora
from common.adapter.model import open_base
from common.config import AdapterConfig
base = open_base(sys.argv[1])
for train in ("B", "AB", "core"):
    unet = base.load_unet()
    config = AdapterConfig(rank=4, alpha=6, targets=tuple(sys.argv[2:]), seed=3, train=train)
    spec = inject_lora(unet, config, base_digest=base.digest)
    values = b"".join(value.numpy().tobytes() for _, value in sorted(unet.state_dict().items()))
    print(spec.digest, hashlib.sha256(values).hexdigest())
"""


def hashed(unet: UNet2DConditionModel) -> str:
    return hashlib.sha256(b"".join(one.numpy().tobytes() for _, one in sorted(unet.state_dict().items()))).hexdigest()


def test_another_process_computes_the_same(tiny_bases: dict[Family, BaseModel]) -> None:
    base = tiny_bases[Family.SD2]
    command = [sys.executable, "-c", _IN_ANOTHER_PROCESS, str(base.directory), *LINEAR_AND_CONV]
    theirs = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    ours = [injected(base, train) for train in MODES]
    assert theirs == [value for unet, spec in ours for value in (spec.digest, hashed(unet))]


@pytest.mark.parametrize("train", MODES)
def test_the_initial_vector_needs_no_unet(base: BaseModel, train: str) -> None:
    unet, spec = injected(base, train)
    np.testing.assert_array_equal(initial_vector(spec), read_vector(unet, spec))


def test_the_specification_names_its_base_and_family(base: BaseModel) -> None:
    _, spec = injected(base, "B")
    assert (spec.base_digest, spec.family) == (base.digest, base.family)
    assert msgspec.json.decode(msgspec.json.encode(spec), type=AdapterSpec) == spec


def test_every_field_counts_in_the_digest(tiny_bases: dict[Family, BaseModel]) -> None:
    _, spec = injected(tiny_bases[Family.SD1], "B")
    others = [
        msgspec.structs.replace(spec, base_digest="sha256:" + "0" * 64),
        msgspec.structs.replace(spec, family=Family.SD2),
        msgspec.structs.replace(spec, tensors=spec.tensors[1:]),
        msgspec.structs.replace(spec, tensors=(TensorSpec("x.lora_B", (1, 1)), *spec.tensors[1:])),
    ]
    changes: list[dict[str, Any]] = [{"rank": 5}, {"alpha": 7.0}, {"seed": 4}, {"train": "AB"}, {"targets": ("to_q",)}]
    others += [
        msgspec.structs.replace(spec, config=msgspec.structs.replace(spec.config, **change)) for change in changes
    ]
    assert len({spec.digest, *(one.digest for one in others)}) == 1 + len(others)
    assert spec.digest.startswith("sha256:")


def test_a_whole_number_for_alpha_is_the_same_specification(tiny_bases: dict[Family, BaseModel]) -> None:
    _, whole = injected(tiny_bases[Family.SD1], "B", alpha=6)
    _, real = injected(tiny_bases[Family.SD1], "B", alpha=6.0)
    assert whole.digest == real.digest


def test_the_default_targets_are_attention_only(base: BaseModel) -> None:
    _, spec = injected(base, "B", targets=ATTENTION_TARGETS)
    assert spec.tensors
    assert all(".attn1." in one.name or ".attn2." in one.name for one in spec.tensors)


def test_an_unknown_target_is_refused_with_those_that_exist(tiny_bases: dict[Family, BaseModel]) -> None:
    unet = tiny_bases[Family.SD1].load_unet()
    with pytest.raises(ConfigError, match=r"no module is named 'to_query'.*conv1.*net\.2.*to_out\.0.*to_q"):
        inject_lora(unet, configured("B", targets=("to_q", "to_query")), base_digest="")
    assert not any("lora" in name for name, _ in unet.named_modules())


def test_a_target_of_another_kind_is_refused(tiny_bases: dict[Family, BaseModel]) -> None:
    unet = tiny_bases[Family.SD1].load_unet()
    for target, kind in (("norm1", "GroupNorm"), ("attn1", "Attention"), ("to_out", "ModuleList")):
        with pytest.raises(ConfigError, match=rf"is a (\w*){kind[-4:]}; wanted suffixes of Linear or Conv2d"):
            inject_lora(unet, configured("B", targets=(target,)), base_digest="")


def test_a_rank_above_the_inputs_is_refused_where_rows_must_be_orthonormal(
    tiny_bases: dict[Family, BaseModel],
) -> None:
    base = tiny_bases[Family.SD1]
    with pytest.raises(ConfigError, match=r"adapter\.rank: 33 is above the 32 .*to_q"):
        injected(base, "B", rank=33, targets=("to_q",))
    with pytest.raises(ConfigError, match=r"adapter\.rank: 17 is above the 16"):
        injected(base, "core", rank=17, targets=("resnets.0.conv1",))
    injected(base, "AB", rank=33, targets=("to_q",))
    injected(base, "B", rank=33, targets=("conv1",))


def test_a_second_adapter_is_refused(tiny_bases: dict[Family, BaseModel]) -> None:
    unet, _ = injected(tiny_bases[Family.SD1], "B")
    with pytest.raises(AdapterError, match="has an adapter already"):
        inject_lora(unet, configured("B"), base_digest="")


def test_the_cored_factor_s_weight_is_what_it_computes() -> None:
    for frozen, x in ((nn.Linear(3, 5, bias=False), torch.randn(2, 3)), (nn.Conv2d(3, 5, 1), torch.randn(2, 3, 4, 4))):
        frozen.bias = None
        cored = CoredFactor(frozen)
        nn.init.normal_(cored.core.weight)
        call = nn.functional.linear if isinstance(frozen, nn.Linear) else nn.functional.conv2d
        torch.testing.assert_close(cored(x), call(x, cored.weight))


def test_a_reopened_base_gives_the_same_specification(tiny_bases: dict[Family, BaseModel]) -> None:
    base = tiny_bases[Family.SDXL]
    assert injected(open_base(base.directory), "core")[1] == injected(base, "core")[1]
