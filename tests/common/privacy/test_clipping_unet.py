"""Clipped sums of diffusers' UNets with the adapters that are really injected, against autograd and against Opacus."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from opacus.grad_sample import GradSampleModule

from common.adapter.lora import inject_lora
from common.adapter.spec import AdapterSpec, Family
from common.adapter.vector import trained_parameters
from common.config import AdapterConfig
from common.privacy.clipping import clipped_sum, unit_gradients
from tests.tiny_base import _unet

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    from torch import Tensor, nn

MODES = ["B", "AB", "core"]
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "conv1", "conv_shortcut", "downsamplers.0.conv")


def adapted(
    family: Family,
    mode: str,
    *,
    dtype: torch.dtype = torch.float64,
    targets: tuple[str, ...] = TARGETS,
    size: float = 0.3,
) -> tuple[Any, AdapterSpec, list[nn.Parameter]]:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        unet = _unet(family).to(dtype)
        spec = inject_lora(
            unet,
            AdapterConfig(train=mode, rank=2, alpha=4.0, targets=targets),  # type: ignore[arg-type]
            base_digest="sha256:" + "0" * 64,
        )
        parameters = list(trained_parameters(unet, spec))
        with torch.no_grad():
            for parameter in parameters:
                parameter.normal_(std=size)
    return unet, spec, parameters


def rows(unet: Any, n: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(6)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    times = torch.randint(1000, (n,), generator=generator)
    pooled = normal(n, 24)
    return normal(n, 4, 8, 8), times, normal(n, 5, unet.config.cross_attention_dim), pooled, normal(n, 4, 8, 8)


def losses_of(unet: Any) -> Callable[[tuple[Tensor, ...]], Tensor]:
    def losses(batch: tuple[Tensor, ...]) -> Tensor:
        x, times, text, pooled, target = batch
        sizes = torch.full((x.shape[0], 6), 32.0, dtype=x.dtype)
        added = {"text_embeds": pooled, "time_ids": sizes} if "text_time" in str(unet.config) else None
        predicted: Tensor = unet(x, times, text, added_cond_kwargs=added, return_dict=False)[0]
        return (predicted - target).square().flatten(1).mean(1)

    return losses


def naive(unet: Any, parameters: list[nn.Parameter], data: tuple[Tensor, ...], draws: int) -> npt.NDArray[np.float64]:
    found = []
    for start in range(0, data[0].shape[0], draws):
        loss = losses_of(unet)(tuple(t[start : start + draws] for t in data)).mean()
        parts = torch.autograd.grad(loss, parameters)
        found.append(torch.cat([part.flatten() for part in parts]).double().numpy())
    return np.stack(found)


def clipped(gradients: npt.NDArray[np.float64], clip: float) -> npt.NDArray[np.float64]:
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    return np.asarray((gradients * np.minimum(1, clip / norms)).sum(0))


def error(got: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64]) -> float:
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_agrees_with_a_loop_over_units_to_1e12(mode: str, draws: int, *, checkpointing: bool) -> None:
    unet, spec, parameters = adapted(Family.SD1, mode)
    data = rows(unet, 3 * draws)
    gradients = naive(unet, parameters, data, draws)
    norms = np.linalg.norm(gradients, axis=1)
    if checkpointing:
        unet.train().enable_gradient_checkpointing()
    for sizes in ([3], [1, 2], [2, 1], [1, 1, 1]):
        parts = [torch.split(t, [size * draws for size in sizes]) for t in data]
        batches = list(zip(*parts, strict=True))
        clip = float(np.median(norms))
        found = clipped_sum(unet, parameters, batches, losses_of(unet), clip=clip, draws=draws)
        assert found.coordinates == spec.dimension
        assert error(found.vector, clipped(gradients, clip)) < 1e-12
    rows_of = [unit_gradients(unet, parameters, one, losses_of(unet), draws=draws) for one in batches]
    assert np.allclose(np.linalg.norm(np.concatenate(rows_of), axis=1), norms, rtol=1e-12, atol=0)


@pytest.mark.parametrize("family", [Family.SD2, Family.SDXL])
@pytest.mark.parametrize("mode", MODES)
def test_other_families(family: Family, mode: str) -> None:
    unet, _, parameters = adapted(family, mode)
    data = rows(unet, 4)
    gradients = naive(unet, parameters, data, 2)
    found = clipped_sum(unet, parameters, [data], losses_of(unet), clip=0.01, draws=2)
    assert error(found.vector, clipped(gradients, 0.01)) < 1e-12


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("mode", ["B", "AB"])
def test_agrees_with_opacus_hooks_in_float32(mode: str, draws: int) -> None:
    targets = ("to_q", "to_k", "to_v", "to_out.0", "conv1")
    # factors of ordinary size: with large ones float32 itself is no better than 1e-5 here
    unet, _, parameters = adapted(Family.SD1, mode, dtype=torch.float32, targets=targets, size=0.1)
    data = rows(unet, 3 * draws, torch.float32)
    norms = np.linalg.norm(unit_gradients(unet, parameters, data, losses_of(unet), draws=draws).double(), axis=1)
    clip = float(np.median(norms))
    found = clipped_sum(unet, parameters, [data], losses_of(unet), clip=clip, draws=draws)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = GradSampleModule(unet, loss_reduction="sum")
    losses_of(unet)(data).sum().backward()  # type: ignore[no-untyped-call]
    held: list[Any] = list(parameters)
    samples = torch.cat([one.grad_sample.flatten(1) for one in held], dim=1)
    theirs = samples.reshape(3, draws, -1).mean(1).double().numpy()
    wrapped.remove_hooks()
    assert np.allclose(norms, np.linalg.norm(theirs, axis=1), rtol=1e-5)
    assert error(found.vector, clipped(theirs, clip)) < 1e-5


def test_rows_do_not_influence_each_other() -> None:
    """The assumption under the guarantee: no row's gradient depends on another row."""
    unet, _, parameters = adapted(Family.SD1, "B")
    data = rows(unet, 2)
    changed = tuple(t.clone() for t in data)
    changed[0][1] *= 50
    alone, beside = (unit_gradients(unet, parameters, batch, losses_of(unet))[0].norm() for batch in (data, changed))
    assert float(alone) == pytest.approx(float(beside), rel=1e-13)


def test_subnormals_are_flushed_where_gradients_are_computed() -> None:
    unet, _, parameters = adapted(Family.SD1, "B", dtype=torch.float32)
    data, left = rows(unet, 2, torch.float32), list[bool]()

    def losses(batch: tuple[Tensor, ...]) -> Tensor:
        left.append(bool((torch.full((1,), 1e-39) * 0.5).view(torch.int32)))
        return losses_of(unet)(batch)

    clipped_sum(unet, parameters, [data], losses, clip=1.0)
    unit_gradients(unet, parameters, data, losses)
    assert left == [False, False]


@pytest.mark.parametrize("mode", MODES)
def test_unit_gradients_are_those_that_are_clipped(mode: str) -> None:
    unet, _, parameters = adapted(Family.SD1, mode)
    data = rows(unet, 4)
    found = unit_gradients(unet, parameters, data, losses_of(unet), draws=2).numpy()
    assert np.allclose(found, naive(unet, parameters, data, 2), rtol=1e-9, atol=1e-12)
