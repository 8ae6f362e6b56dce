"""LoRA layers as autograd functions whose backward pass yields one gradient per privacy unit.

Shapes: u units of K draws each are u·K rows, a unit's draws next to each other; n rows of r-dimensional features after
flattening all but the last axis. With W frozen and scaling s = α/r::

    h = x·Aᵀ      k = h·Mᵀ (k = h without a core M)      y = x·Wᵀ + bias + s·k·Bᵀ

Each trained factor P comes with a companion: a leaf of shape [u, *P.shape] that takes no part in the forward pass and
receives in the backward pass, for each unit, the gradient that P itself would have got from that unit's rows alone. P
gets none. Everything else is as cheap as it can be: W and its LoRA share their output, and nothing of x is kept unless
A is trained, so that this costs less time and memory than the layer it stands in for.

Low-precision inputs: products that make a gradient of a factor are taken and summed in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd import Function
from torch.nn import functional
from torch.nn.grad import conv2d_input

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """What a layer's passes need besides the tensors that autograd must see."""

    base: nn.Linear | nn.Conv2d
    a: nn.Linear | nn.Conv2d
    scaling: float
    draws: int
    dtype: torch.dtype
    """Type that products are taken in: autocast's where it is on, else the base weight's."""


@dataclass(frozen=True, kw_only=True)
class Factors:
    """A, M (None without a core) and B, and their companions (None where frozen)."""

    a: Tensor
    core: Tensor | None
    b: Tensor
    for_a: Tensor | None
    for_core: Tensor | None
    for_b: Tensor | None

    def flat(self) -> tuple[Tensor | None, ...]:
        """In the order of the functions' arguments."""
        return self.a, self.core, self.b, self.for_a, self.for_core, self.for_b


def apply_lora(x: Tensor, frozen: Frozen, factors: Factors) -> Tensor:
    """The adapted layer's output, with per-unit gradients for the companions.

    Args:
        x: [u·K, …, in] for a linear layer, [u·K, in, height, width] for a convolution.
        frozen: the base layer and constants.
        factors: the LoRA.
    """
    function = _Convolution if frozen.base.weight.dim() == 4 else _Linear
    y: Tensor = function.apply(x, frozen, *factors.flat())  # type: ignore[no-untyped-call]
    return y


def _exact(x: Tensor) -> Tensor:
    """Half precision widened to float32, for products that are summed into a gradient."""
    return x.float() if x.dtype in {torch.bfloat16, torch.float16} else x


def _per_unit(left: Tensor, right: Tensor, rows: int, draws: int, scaling: float, like: Tensor) -> Tensor:
    """Σ over a unit's rows of leftᵀ·right, times ``scaling``: [u, *like.shape[1:]]."""
    units = rows // draws
    grouped_left, grouped_right = (_exact(t).reshape(units, -1, t.shape[-1]) for t in (left, right))
    product = torch.bmm(grouped_left.transpose(1, 2), grouped_right)
    if scaling != 1.0:
        product *= scaling
    return product.to(like.dtype).reshape(like.shape)


class _Linear(Function):
    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917 - autograd wants tensors as plain arguments
        ctx: Any,  # noqa: ANN401 - autograd's context
        x: Tensor,
        frozen: Frozen,
        a: Tensor,
        core: Tensor | None,
        b: Tensor,
        for_a: Tensor | None,
        for_core: Tensor | None,
        for_b: Tensor | None,
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            kind = frozen.dtype
            flat = x.reshape(-1, x.shape[-1]).to(kind)
            bias = None if frozen.base.bias is None else frozen.base.bias.to(kind)
            y = functional.linear(flat, frozen.base.weight.to(kind), bias)
            h = flat @ a.to(kind).t()
            k = h if core is None else h @ core.to(kind).t()
            y.addmm_(k, b.to(kind).t(), alpha=frozen.scaling)
        ctx.save_for_backward(flat if for_a is not None else None, h, a, core, b)
        ctx.companions = (for_a, for_core, for_b)
        ctx.frozen, ctx.x = frozen, (x.shape, x.dtype)
        return y.reshape(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - autograd's context
        frozen, (shape, dtype), (for_a, for_core, for_b) = ctx.frozen, ctx.x, ctx.companions
        flat, h, a, core, b = ctx.saved_tensors
        kind, rows = frozen.dtype, (shape[0], frozen.draws)
        with torch.autocast(grad.device.type, enabled=False):
            g = grad.reshape(-1, grad.shape[-1]).to(kind)
            to_b = None if for_b is None else _per_unit(g, h, *rows, frozen.scaling, for_b)
            gk = (g @ b.to(kind)).mul_(frozen.scaling)
            to_core = None if for_core is None else _per_unit(gk, h, *rows, 1.0, for_core)
            gh = gk if core is None else gk @ core.to(kind)
            to_a = None if for_a is None else _per_unit(gh, flat, *rows, 1.0, for_a)
            gx = None
            if ctx.needs_input_grad[0]:
                gx = (g @ frozen.base.weight.to(kind)).addmm_(gh, a.to(kind)).reshape(shape).to(dtype)
        return gx, None, None, None, None, to_a, to_core, to_b


class _Convolution(Function):
    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917 - autograd wants tensors as plain arguments
        ctx: Any,  # noqa: ANN401 - autograd's context
        x: Tensor,
        frozen: Frozen,
        a: Tensor,
        core: Tensor | None,
        b: Tensor,
        for_a: Tensor | None,
        for_core: Tensor | None,
        for_b: Tensor | None,
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            kind, base = frozen.dtype, frozen.base
            z = x.to(kind)
            bias = None if base.bias is None else base.bias.to(kind)
            y = functional.conv2d(z, base.weight.to(kind), bias, *_geometry(base))
            h = functional.conv2d(z, a.to(kind), None, *_geometry(frozen.a))
            k = h if core is None else functional.conv2d(h, core.to(kind))
            y.add_(functional.conv2d(k, b.to(kind)), alpha=frozen.scaling)
        ctx.save_for_backward(z if for_a is not None else None, h, a, core, b)
        ctx.companions = (for_a, for_core, for_b)
        ctx.frozen, ctx.x = frozen, (x.shape, x.dtype)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - autograd's context
        frozen, (shape, dtype), (for_a, for_core, for_b) = ctx.frozen, ctx.x, ctx.companions
        z, h, a, core, b = ctx.saved_tensors
        kind, draws = frozen.dtype, frozen.draws
        with torch.autocast(grad.device.type, enabled=False):
            g = grad.to(kind)
            to_b = None if for_b is None else _per_unit_pixels(g, h, draws, for_b).mul_(frozen.scaling)
            gk = functional.conv2d(g, b.to(kind).transpose(0, 1)).mul_(frozen.scaling)
            to_core = None if for_core is None else _per_unit_pixels(gk, h, draws, for_core)
            gh = gk if core is None else functional.conv2d(gk, core.to(kind).transpose(0, 1))
            to_a = None if for_a is None else _per_unit_patches(gh, z, frozen, for_a)
            gx = None
            if ctx.needs_input_grad[0]:
                gx = _to_input(g, frozen.base, frozen.base.weight.to(kind), shape)
                gx = gx.add_(_to_input(gh, frozen.a, a.to(kind), shape)).to(dtype)
        return gx, None, None, None, None, to_a, to_core, to_b


def _geometry(layer: nn.Linear | nn.Conv2d) -> tuple[Any, Any, Any, Any]:
    return layer.stride, layer.padding, layer.dilation, layer.groups


def _to_input(grad: Tensor, layer: nn.Linear | nn.Conv2d, weight: Tensor, shape: torch.Size) -> Tensor:
    gradient: Tensor = conv2d_input(shape, weight, grad, *_geometry(layer))  # type: ignore[no-untyped-call]
    return gradient


def _per_unit_pixels(left: Tensor, right: Tensor, draws: int, like: Tensor) -> Tensor:
    """Σ over a unit's draws and pixels of left·rightᵀ for 1×1 kernels: [u, out, r, 1, 1]."""
    product = torch.bmm(_exact(left).flatten(2), _exact(right).flatten(2).transpose(1, 2))
    return product.reshape(-1, draws, *product.shape[1:]).sum(1).to(like.dtype).reshape(like.shape)


def _per_unit_patches(gh: Tensor, z: Tensor, frozen: Frozen, like: Tensor) -> Tensor:
    """Gradient of A for each unit, [u, r, in, height, width]; unit by unit, because patches are kernel² times x."""
    stride, padding, dilation, _ = _geometry(frozen.a)
    kernel, draws = like.shape[-2:], frozen.draws
    gradients = torch.empty_like(like, memory_format=torch.contiguous_format)
    for unit, (mine, rows) in enumerate(zip(torch.split(gh, draws), torch.split(z, draws), strict=True)):
        patches = functional.unfold(_exact(rows), kernel, dilation, padding, stride)
        product = torch.bmm(_exact(mine).flatten(2), patches.transpose(1, 2)).sum(0)
        gradients[unit] = product.to(like.dtype).reshape(like.shape[1:])
    return gradients
