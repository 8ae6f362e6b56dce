from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from common.errors import ClippingError
from common.privacy.clipping import clipped_sum, unit_gradients
from common.privacy.unit_gradients import record_units

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

TARGETS = ["to_q", "to_k", "conv", "down", "out"]


class Toy(nn.Module):
    """Convolutions, group norm, self- and cross-attention-like products: [n, 3, 8, 8] and [n, 4, 6] → [n, 3, 8, 8]."""

    def __init__(self, *, checkpointing: bool = False) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.to_q = nn.Linear(8, 8)
        self.to_k = nn.Linear(6, 8, bias=False)
        self.out = nn.Conv2d(8, 3, 1)
        self.up = nn.Upsample(scale_factor=2)

    def attend(self, x: Tensor, text: Tensor) -> Tensor:
        x = torch.nn.functional.silu(self.norm(self.conv(x)))
        x = self.down(x)
        tokens = x.flatten(2).transpose(1, 2)
        keys = self.to_k(text)
        weights = (self.to_q(tokens) @ keys.transpose(1, 2)).softmax(-1)
        return (tokens + weights @ keys).transpose(1, 2).reshape(x.shape)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        hidden = checkpoint(self.attend, x, text, use_reentrant=False) if self.checkpointing else self.attend(x, text)
        y: Tensor = self.out(self.up(hidden))
        return y


class Core(nn.Module):
    """A trained r×r matrix before a frozen B, as LoRA-XS has it."""

    def __init__(self, frozen: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        r = frozen.weight.shape[1]
        self.frozen = frozen
        self.core = nn.Conv2d(r, r, 1, bias=False) if isinstance(frozen, nn.Conv2d) else nn.Linear(r, r, bias=False)

    @property
    def weight(self) -> Tensor:
        return self.frozen.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.frozen(self.core(x))
        return y


def adapted(
    mode: str = "B",
    *,
    dtype: torch.dtype = torch.float64,
    targets: Sequence[str] = TARGETS,
    checkpointing: bool = False,
    **options: Any,
) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(20)
        model = get_peft_model(
            Toy(checkpointing=checkpointing), LoraConfig(r=2, lora_alpha=6, target_modules=list(targets), **options)
        )
        model.requires_grad_(requires_grad=False)
        for name, module in list(model.named_modules()):
            if not hasattr(module, "lora_B") or not isinstance(module, nn.Module) or "default" not in module.lora_B:
                continue
            del name
            nn.init.normal_(module.lora_B["default"].weight, std=0.3)
            if mode == "core":
                module.lora_B["default"] = Core(module.lora_B["default"]).requires_grad_(requires_grad=False)
                module.lora_B["default"].core.weight.requires_grad_()
            else:
                module.lora_B["default"].weight.requires_grad_()
            if mode == "AB":
                module.lora_A["default"].weight.requires_grad_()
    return model.to(dtype)


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def rows(n: int, *, seed: int = 1, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((n, 3, 8, 8), (n, 4, 6), (n, 3, 8, 8))
    x, text, target = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return x, text, target


def squared_error(model: nn.Module) -> Callable[[tuple[Tensor, ...]], Tensor]:
    def losses(batch: tuple[Tensor, ...]) -> Tensor:
        x, text, target = batch
        return (model(x, text) - target).square().flatten(1).mean(1) * 30

    return losses


def naive(model: nn.Module, data: tuple[Tensor, ...], *, draws: int) -> npt.NDArray[np.float64]:
    """Unit by unit with PEFT's own layers and autograd: [units, d]."""
    gradients = []
    for start in range(0, data[0].shape[0], draws):
        loss = squared_error(model)(tuple(t[start : start + draws] for t in data)).mean()
        parts = torch.autograd.grad(loss, trained(model), allow_unused=True)
        gradients.append(torch.cat([part.flatten() for part in parts if part is not None]).double().numpy())
    return np.stack(gradients)


def clipped(gradients: npt.NDArray[np.float64], clip: float) -> npt.NDArray[np.float64]:
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    return np.asarray((gradients * np.minimum(1, clip / norms)).sum(0))


def split(data: tuple[Tensor, ...], sizes: Sequence[int]) -> list[tuple[Tensor, ...]]:
    return list(zip(*(t.split(list(sizes)) for t in data), strict=True))


def close(got: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64], relative: float) -> bool:
    return bool(np.linalg.norm(got - wanted) <= relative * np.linalg.norm(wanted))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("mode", ["B", "AB", "core"])
def test_agrees_with_a_loop_over_units_to_1e12_for_every_split(mode: str, draws: int, *, checkpointing: bool) -> None:
    model = adapted(mode, checkpointing=checkpointing)
    data = rows(4 * draws)
    gradients = naive(model, data, draws=draws)
    norms = np.linalg.norm(gradients, axis=1)
    clip = float(np.median(norms))
    assert norms.min() < clip < norms.max()
    for sizes in ([4], [1, 3], [2, 2], [3, 1], [1, 1, 2], [1, 1, 1, 1]):
        batches = split(data, [size * draws for size in sizes])
        found = clipped_sum(model, trained(model), batches, squared_error(model), clip=clip, draws=draws)
        assert close(found.vector, clipped(gradients, clip), 1e-12)
        rows_of = [unit_gradients(model, trained(model), one, squared_error(model), draws=draws) for one in batches]
        assert np.allclose(np.linalg.norm(np.concatenate(rows_of), axis=1), norms, rtol=1e-12, atol=0)


@pytest.mark.parametrize("targets", [["to_q"], ["to_k"], ["conv"], ["down"], ["out"]])
@pytest.mark.parametrize("mode", ["B", "AB", "core"])
def test_each_kind_of_layer_alone(mode: str, targets: list[str]) -> None:
    model = adapted(mode, targets=targets)
    data = rows(4)
    gradients = naive(model, data, draws=2)
    found = clipped_sum(model, trained(model), [data], squared_error(model), clip=0.1, draws=2)
    assert close(found.vector, clipped(gradients, 0.1), 1e-12)


def test_channels_last_changes_nothing() -> None:
    model = adapted("AB").to(memory_format=torch.channels_last)
    x, text, target = rows(4)
    data = (x.to(memory_format=torch.channels_last), text, target)
    found = clipped_sum(model, trained(model), [data], squared_error(model), clip=0.1)
    assert close(found.vector, clipped(naive(model, data, draws=1), 0.1), 1e-12)


def test_outputs_and_gradients_of_inputs_are_pefts() -> None:
    for mode in ("B", "AB", "core"):
        model = adapted(mode)
        x, text, _ = rows(3)
        x.requires_grad_()
        before = model(x, text)
        (wanted,) = torch.autograd.grad(before.square().sum(), x)
        with record_units(model, trained(model), draws=1):
            after = model(x, text)
            (got,) = torch.autograd.grad(after.square().sum(), x)
        assert torch.allclose(after, before, rtol=1e-13, atol=1e-13)
        assert torch.allclose(got, wanted, rtol=1e-12, atol=1e-12)


def test_model_is_left_as_it_was_even_after_an_exception() -> None:
    model = adapted("AB")
    attributes = {name: set(module.__dict__) for name, module in model.named_modules()}
    existing = [torch.ones_like(parameter) for parameter in trained(model)]
    for parameter, grad in zip(trained(model), existing, strict=True):
        parameter.grad = grad

    def failing(batch: tuple[Tensor, ...]) -> Tensor:
        squared_error(model)(batch)
        raise RuntimeError("out of memory")

    clipped_sum(model, trained(model), [rows(2)], squared_error(model), clip=1.0)
    with pytest.raises(RuntimeError, match="out of memory"):
        clipped_sum(model, trained(model), [rows(2)], failing, clip=1.0)
    assert {name: set(module.__dict__) for name, module in model.named_modules()} == attributes
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._backward_hooks
    for parameter, grad in zip(trained(model), existing, strict=True):
        assert parameter.grad is grad
        assert bool((grad == 1).all())


def test_second_recording_of_one_model_is_refused_and_does_not_end_the_first() -> None:
    model = adapted()
    with record_units(model, trained(model), draws=1) as recorder:
        with pytest.raises(ClippingError, match="recorded already"), record_units(model, trained(model), draws=1):
            pass
        squared_error(model)(rows(2)).sum().backward()
        assert all(gradient is not None for gradient in recorder.collect())


def test_nothing_private_is_shown() -> None:
    model = adapted()
    found = clipped_sum(model, trained(model), [rows(5)], squared_error(model), clip=0.25)
    assert repr(found) == "ClippedSum(sensitivity=0.25)"
    assert found.coordinates == sum(parameter.numel() for parameter in trained(model))
    with record_units(model, trained(model), draws=1) as recorder:
        model(*rows(5)[:2])
        assert "5 " not in repr(recorder).replace(f"{len(trained(model))} ", "")


def test_empty_sample_is_the_zero_vector() -> None:
    model = adapted()
    found = clipped_sum(model, trained(model), [], squared_error(model), clip=1.0)
    assert found.vector.dtype == np.float64
    assert found.coordinates == sum(parameter.numel() for parameter in trained(model))
    assert not found.vector.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e200])
def test_unit_that_is_not_finite_counts_as_zero_and_spoils_no_other(bad: float) -> None:
    model = adapted("AB")
    data = rows(9)
    wanted = clipped(naive(model, tuple(t[[0, 1, 2, 6, 7, 8]] for t in data), draws=3), 0.1)
    data[0][4, 1, 2, 3] = bad
    data[2][4] *= bad  # the target too, so that the loss is not finite
    found = clipped_sum(model, trained(model), [data], squared_error(model), clip=0.1, draws=3)
    assert np.isfinite(found.vector).all()
    assert close(found.vector, wanted, 1e-12)


def test_draws_are_averaged_before_the_clip() -> None:
    """Clipping each draw lets K copies of one long gradient move the sum by K·C; published code does that."""
    model = adapted()
    one = rows(1)
    copies = tuple(t.repeat_interleave(5, 0) for t in one)
    clip = float(unit_gradients(model, trained(model), one, squared_error(model))[0].norm()) / 3
    found = clipped_sum(model, trained(model), [copies], squared_error(model), clip=clip, draws=5)
    assert np.linalg.norm(found.vector) == pytest.approx(clip, rel=1e-12)


finite = st.floats(-1e6, 1e6, width=32)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    scale=st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e3, 1e8, 1e18, 1e30, 3e38]),
    pattern=st.lists(finite, min_size=6, max_size=6),
    draws=st.sampled_from([1, 2, 4]),
    clip=st.sampled_from([1e-6, 0.1, 10.0]),
    position=st.integers(0, 2),
)
def test_one_unit_moves_the_sum_by_at_most_the_clip(
    scale: float, pattern: list[float], draws: int, clip: float, position: int
) -> None:
    model = adapted("AB", dtype=torch.float32)
    others = rows(2 * draws, dtype=torch.float32)
    hostile = tuple(t.clone() for t in rows(draws, seed=9, dtype=torch.float32))
    hostile[0].flatten()[:6] = torch.tensor(pattern)
    hostile[0].mul_(scale)
    hostile[2].mul_(-scale)
    with_it = tuple(
        torch.cat([o[: position * draws], h, o[position * draws :]]) for o, h in zip(others, hostile, strict=True)
    )

    def total(data: tuple[Tensor, ...]) -> npt.NDArray[np.float64]:
        batches = split(data, [draws] * (data[0].shape[0] // draws))
        return clipped_sum(model, trained(model), batches, squared_error(model), clip=clip, draws=draws).vector

    moved = np.linalg.norm(total(with_it) - total(others))
    assert moved <= clip * (1 + 1e-12)


@pytest.mark.parametrize("mode", ["B", "AB"])
def test_bfloat16_autocast_accumulates_in_float32(mode: str) -> None:
    model = adapted(mode, dtype=torch.float32)
    data = rows(6, dtype=torch.float32)
    exact = naive(model, data, draws=2)

    def losses(batch: tuple[Tensor, ...]) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return squared_error(model)(batch)

    norms = np.linalg.norm(unit_gradients(model, trained(model), data, losses, draws=2), axis=1)
    assert np.allclose(norms, np.linalg.norm(exact, axis=1), rtol=0.05)
    clip = float(norms.min()) / 2
    one = tuple(t[:2] for t in data)
    found = clipped_sum(model, trained(model), [one], losses, clip=clip, draws=2)
    assert np.linalg.norm(found.vector) == pytest.approx(clip, rel=1e-6)
    whole = clipped_sum(model, trained(model), [data], losses, clip=clip, draws=2)
    assert close(whole.vector, clipped(exact, clip), 0.05)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_norms_of_many_small_parts_are_summed_in_float64(kind: torch.dtype) -> None:
    """A norm that came out too small would let a unit exceed C."""
    from common.privacy.clipping import _norms  # noqa: PLC0415 - a fault that only shows at sizes no test model has

    large, small = torch.ones(1, 1, dtype=kind), torch.full((1, 1_000_003), 2.0**-12, dtype=kind)
    assert float(_norms([large, small])[0]) == pytest.approx(np.sqrt(1 + 1_000_003 * 2.0**-24), rel=1e-12)


def refused(model: nn.Module, parameters: list[nn.Parameter] | None = None, **options: Any) -> None:
    clipped_sum(model, parameters or trained(model), [rows(4)], squared_error(model), **{"clip": 1.0, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "plain LoRA"),
        ({"lora_dropout": 0.1}, "plain LoRA"),
        ({"lora_bias": True}, "plain LoRA"),
    ],
)
def test_other_kinds_of_lora_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ClippingError, match=message):
        refused(adapted(targets=["to_q"], **options))


def test_whatever_would_be_trained_unclipped_is_refused() -> None:
    model = adapted()
    loose = next(p for name, p in model.named_parameters() if name.endswith("norm.weight"))
    loose.requires_grad_()
    for parameters in (trained(model), [p for p in trained(model) if p is not loose]):
        with pytest.raises(ClippingError, match="without being clipped"):
            refused(model, parameters)
    loose.requires_grad_(requires_grad=False)
    with pytest.raises(ClippingError, match="exactly once"):
        refused(model, [*trained(model), trained(model)[0]])
    with pytest.raises(ClippingError, match="without being clipped"):
        refused(model, trained(model)[1:])


def test_splitting_a_unit_is_refused_without_saying_how_many_rows_there_were() -> None:
    with pytest.raises(ClippingError, match="whole units of 3 draws") as caught:
        refused(adapted(), draws=3)
    assert "4" not in str(caught.value).replace("float64", "")


def test_layers_that_see_rows_of_another_number_are_refused() -> None:
    model = adapted()

    def folding(batch: tuple[Tensor, ...]) -> Tensor:
        return squared_error(model)(batch)[:2]

    with pytest.raises(ClippingError, match="cannot be told apart"):
        clipped_sum(model, trained(model), [rows(4)], folding, clip=1.0)


def test_batch_normalisation_is_refused() -> None:
    model = adapted()
    model.extra = nn.BatchNorm2d(3)
    with pytest.raises(ClippingError, match="mixes units"):
        refused(model)


@pytest.mark.parametrize("clip", [0.0, -1.0, np.inf, np.nan])
def test_nonsense_clips_are_refused(clip: float) -> None:
    with pytest.raises(ClippingError, match="clip norm"):
        refused(adapted(), clip=clip)


def test_a_model_without_adapter_is_refused() -> None:
    with pytest.raises(ClippingError, match="found none"):
        refused(Toy(), [nn.Parameter(torch.zeros(1))])
