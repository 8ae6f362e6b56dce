from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from common.adapter.lora import inject_lora
from common.adapter.model import BaseModel, Family
from common.adapter.vector import (
    Vector,
    gradient_vector,
    initial_vector,
    read_vector,
    trained_parameters,
    write_vector,
)
from common.config import AdapterConfig
from common.errors import AdapterError, WrongAdapterSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from diffusers import UNet2DConditionModel
    from torch import Tensor

    from common.adapter.spec import AdapterSpec

    Injected = tuple[UNet2DConditionModel, AdapterSpec]

MODES = ("B", "AB", "core")


def inject(base: BaseModel, train: str, rank: int = 2) -> Injected:
    unet = base.load_unet()
    config = AdapterConfig(rank=rank, train=train, targets=("to_q", "to_v", "conv2"))  # type: ignore[arg-type]
    return unet, inject_lora(unet, config, base_digest=base.digest)


def drawn(spec: AdapterSpec, seed: int = 0) -> Vector:
    return np.random.default_rng(seed).normal(scale=0.1, size=spec.dimension).astype(np.float32)


@pytest.fixture(params=MODES)
def train(request: pytest.FixtureRequest) -> str:
    mode: str = request.param
    return mode


@pytest.fixture(scope="module")
def shared(tiny_bases: dict[Family, BaseModel]) -> dict[str, Injected]:
    return {mode: inject(tiny_bases[Family.SDXL], mode) for mode in MODES}


@settings(derandomize=True, max_examples=25, deadline=None)
@given(data=st.data(), mode=st.sampled_from(MODES))
def test_what_is_written_is_read_bit_for_bit(shared: dict[str, Injected], data: st.DataObject, mode: str) -> None:
    unet, spec = shared[mode]
    finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
    vector = data.draw(npst.arrays(np.float32, spec.dimension, elements=finite, fill=finite))
    write_vector(unet, spec, vector)
    got = read_vector(unet, spec)
    assert got.dtype == np.float32
    assert got.tobytes() == vector.tobytes()


def test_a_vector_is_written_in_place(base: BaseModel, train: str) -> None:
    unet, spec = inject(base, train)
    parameters = trained_parameters(unet, spec)
    before = [(id(one), one.data_ptr()) for one in parameters]
    vector = drawn(spec)
    vector.flags.writeable = False
    write_vector(unet, spec, vector)
    assert [(id(one), one.data_ptr()) for one in trained_parameters(unet, spec)] == before
    assert all(one.requires_grad for one in parameters)


def test_what_is_read_is_a_copy(base: BaseModel, train: str) -> None:
    unet, spec = inject(base, train)
    vector = drawn(spec)
    write_vector(unet, spec, vector)
    kept = vector.copy()
    read_vector(unet, spec)[:] = 7
    vector[:] = 9
    np.testing.assert_array_equal(read_vector(unet, spec), kept)


def test_coordinates_follow_the_specification(base: BaseModel, train: str) -> None:
    unet, spec = inject(base, train)
    write_vector(unet, spec, np.arange(spec.dimension, dtype=np.float32))
    start = 0
    for one, parameter in zip(spec.tensors, trained_parameters(unet, spec), strict=True):
        wanted = torch.arange(start, start + one.size, dtype=torch.float32).reshape(one.shape)
        assert torch.equal(parameter.data, wanted)
        start += one.size
    assert start == spec.dimension


def test_two_virtual_institutions_share_one_unet(base: BaseModel, probe: Callable[..., Tensor], train: str) -> None:
    unet, spec = inject(base, train)
    answers = []
    for seed in (1, 2, 1):
        write_vector(unet, spec, drawn(spec, seed))
        answers.append(probe(unet))
    assert torch.equal(answers[0], answers[2])
    assert not torch.allclose(answers[0], answers[1])


def test_zeros_give_back_the_base(base: BaseModel, probe: Callable[..., Tensor], train: str) -> None:
    unet, spec = inject(base, train)
    write_vector(unet, spec, drawn(spec))
    write_vector(unet, spec, np.zeros(spec.dimension, np.float32))
    assert torch.equal(probe(unet), probe(base.load_unet()))


def test_the_gradient_predicts_what_a_step_changes(base: BaseModel, probe: Callable[..., Tensor], train: str) -> None:
    unet, spec = inject(base, train)
    unet.double()
    start = drawn(spec, 1)

    def loss(at: Vector) -> Tensor:
        write_vector(unet, spec, at)
        return probe(unet).square().mean()

    torch.autograd.backward(loss(start))
    gradient = gradient_vector(unet, spec)
    length = float(np.linalg.norm(gradient))
    step, steepest = np.float32(2**-8), gradient / np.float32(length)
    predicted = float(gradient.astype(np.float64) @ steepest.astype(np.float64))
    with torch.no_grad():
        measured = (loss(start + step * steepest) - loss(start - step * steepest)).item() / (2 * float(step))
    assert length > 1e-3
    assert measured == pytest.approx(predicted, rel=1e-3)


def test_no_gradient_reads_as_zeros(base: BaseModel, train: str) -> None:
    unet, spec = inject(base, train)
    gradient = gradient_vector(unet, spec)
    assert gradient.dtype == np.float32
    np.testing.assert_array_equal(gradient, np.zeros(spec.dimension))


def test_a_gradient_that_is_not_finite_is_shown_as_it_is(base: BaseModel) -> None:
    unet, spec = inject(base, "B")
    parameters = trained_parameters(unet, spec)
    parameters[0].grad = torch.full_like(parameters[0], float("nan"))
    assert np.isnan(gradient_vector(unet, spec)).sum() == spec.tensors[0].size


@pytest.mark.parametrize("change", [-1, 1])
def test_another_length_is_refused_and_nothing_written(shared: dict[str, Injected], change: int) -> None:
    unet, spec = shared["B"]
    write_vector(unet, spec, initial_vector(spec))
    wrong = np.ones(spec.dimension + change, np.float32)
    with pytest.raises(WrongAdapterSpec, match=f"wanted an adapter vector of {spec.dimension} values"):
        write_vector(unet, spec, wrong)
    np.testing.assert_array_equal(read_vector(unet, spec), initial_vector(spec))


def test_another_shape_is_refused(shared: dict[str, Injected]) -> None:
    unet, spec = shared["B"]
    with pytest.raises(WrongAdapterSpec, match="got shape"):
        write_vector(unet, spec, np.ones((1, spec.dimension), np.float32))


def test_another_type_is_refused(shared: dict[str, Injected]) -> None:
    unet, spec = shared["B"]
    with pytest.raises(AdapterError, match="got float64"):
        write_vector(unet, spec, np.ones(spec.dimension))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_and_nothing_written(shared: dict[str, Injected], value: float) -> None:
    unet, spec = shared["AB"]
    write_vector(unet, spec, initial_vector(spec))
    vector = np.ones(spec.dimension, np.float32)
    vector[3] = value
    with pytest.raises(AdapterError, match=f"1 of {spec.dimension} values that are not finite"):
        write_vector(unet, spec, vector)
    np.testing.assert_array_equal(read_vector(unet, spec), initial_vector(spec))


@pytest.mark.parametrize("operation", [read_vector, gradient_vector, trained_parameters])
def test_a_unet_without_adapter_is_refused(
    tiny_bases: dict[Family, BaseModel], shared: dict[str, Injected], operation: Callable[..., object]
) -> None:
    with pytest.raises(WrongAdapterSpec, match="inject the adapter of this specification first"):
        operation(tiny_bases[Family.SDXL].load_unet(), shared["B"][1])


@pytest.mark.parametrize(("has", "wanted"), [("B", "core"), ("core", "B"), ("core", "AB"), ("AB", "core")])
def test_a_unet_with_an_adapter_of_another_mode_is_refused(shared: dict[str, Injected], has: str, wanted: str) -> None:
    with pytest.raises(WrongAdapterSpec, match=r"has no|does not train"):
        read_vector(shared[has][0], shared[wanted][1])


def test_a_unet_with_an_adapter_of_another_rank_is_refused(
    tiny_bases: dict[Family, BaseModel], shared: dict[str, Injected]
) -> None:
    unet, _ = inject(tiny_bases[Family.SDXL], "B", rank=3)
    with pytest.raises(WrongAdapterSpec, match="the specification says shape"):
        read_vector(unet, shared["B"][1])


def test_a_specification_knows_whether_its_vector_starts_at_zero(shared: dict[str, Injected], train: str) -> None:
    """The server starts from zeros on that word, without loading PyTorch."""
    spec = shared[train][1]
    assert spec.starts_at_zero == (not initial_vector(spec).any())
    assert spec.starts_at_zero == (train != "AB")
