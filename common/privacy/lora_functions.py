"""LoRA layers as autograd functions whose backward pass yields one gradient per privacy unit.

Shapes: u units of K draws each are u·K rows, a unit's draws next to each other; n rows of r-dimensional features after
flattening all but the last axis. With W frozen and scaling s = α/r::

    h = x·Aᵀ      k = h·Mᵀ (k = h without a core M)      y = x·Wᵀ + bias + s·k·Bᵀ

Each trained factor P comes with a companion: a leaf of shape [u, *P.shape] that takes no part in the forward pass and
receives in the backward pass, for each unit, the gradient that P itself would have got from that unit's rows alone. P
gets none.

Everything else is as cheap as it can be, so that this costs less time and memory than the layer it stands in for:

* Where there are many more rows than features, W + s·B·M·A is formed for the pass, as one product with it costs less
  than W's and the factors' own. In half precision never, as small updates would be rounded away.
* Nothing of x is kept unless A is trained.
* Frozen convolutions keep nothing of their input either; torch's own do.

Low-precision inputs: products that make a gradient of a factor are taken and summed in float32.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import torch
from torch import nn
from torch.autograd import Function
from torch.nn import functional

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import Tensor

    _Flat: TypeAlias = tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor | None, Tensor | None]

HALF: Final = frozenset({torch.bfloat16, torch.float16})


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """What a layer's passes need besides the tensors that autograd must see."""

    base: nn.Linear | nn.Conv2d
    a: nn.Linear | nn.Conv2d
    scaling: float
    draws: int
    dtype: torch.dtype
    """Type that products are taken in: autocast's where it is on, else the base weight's."""

    def pays_to_merge(self, positions: int) -> bool:
        """Whether W + s·B·M·A should be formed for a product with this many rows (pixels, for convolutions)."""
        base, a = self.base, self.a
        alike = not isinstance(base, nn.Conv2d) or _geometry(base) == _geometry(a)
        return alike and self.dtype not in HALF and positions >= 2 * base.weight.shape[1]


@dataclass(frozen=True, kw_only=True)
class Factors:
    """A, M (None without a core) and B, and their companions (None where frozen)."""

    a: Tensor
    core: Tensor | None
    b: Tensor
    for_a: Tensor | None
    for_core: Tensor | None
    for_b: Tensor | None

    def flat(self) -> _Flat:
        """As the functions take them: autograd wants tensors as plain arguments."""
        return self.a, self.core, self.b, self.for_a, self.for_core, self.for_b


def apply_lora(x: Tensor, frozen: Frozen, factors: Factors) -> Tensor:
    """The adapted layer's output, with per-unit gradients for the companions.

    Args:
        x: [u·K, …, in] for a linear layer, [u·K, in, height, width] for a convolution.
        frozen: The base layer and constants.
        factors: The LoRA.

    """
    function = _Convolution if frozen.base.weight.dim() == 4 else _Linear
    y: Tensor = function.apply(x, frozen, *factors.flat())  # type: ignore[no-untyped-call]
    return y


def _without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Products are cast by hand, so that the backward pass repeats the forward pass's types."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _exact(x: Tensor) -> Tensor:
    """Half precision widened to float32, for products that are summed into a gradient."""
    return x.float() if x.dtype in HALF else x


def _merged(frozen: Frozen, a: Tensor, core: Tensor | None, b: Tensor) -> Tensor:
    """W + s·B·M·A in W's shape."""
    kind, weight = frozen.dtype, frozen.base.weight
    left = b.flatten(1) if core is None else b.flatten(1) @ core.flatten(1)
    together = torch.addmm(weight.flatten(1).to(kind), left.to(kind), a.flatten(1).to(kind), alpha=frozen.scaling)
    return together.reshape(weight.shape)


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
    def forward(ctx: Any, x: Tensor, frozen: Frozen, *factors: *_Flat) -> Tensor:  # noqa: ANN401 - autograd's context
        a, core, b, for_a, for_core, for_b = factors
        with _without_autocast(x):
            kind = frozen.dtype
            flat = x.reshape(-1, x.shape[-1]).to(kind)
            bias = None if frozen.base.bias is None else frozen.base.bias.to(kind)
            h = flat @ a.to(kind).t()
            if frozen.pays_to_merge(flat.shape[0]):
                y = functional.linear(flat, _merged(frozen, a, core, b), bias)
            else:
                y = functional.linear(flat, frozen.base.weight.to(kind), bias)
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
        with _without_autocast(grad):
            g = grad.reshape(-1, grad.shape[-1]).to(kind)
            to_b = None if for_b is None else _per_unit(g, h, *rows, frozen.scaling, for_b)
            gx = gh = None
            merge = frozen.pays_to_merge(g.shape[0])
            to_core, to_a = None, None
            if not merge or for_core is not None or for_a is not None:
                gk = (g @ b.to(kind)).mul_(frozen.scaling)
                to_core = None if for_core is None else _per_unit(gk, h, *rows, 1.0, for_core)
                gh = gk if core is None else gk @ core.to(kind)
                to_a = None if for_a is None else _per_unit(gh, flat, *rows, 1.0, for_a)
            if ctx.needs_input_grad[0] and merge:
                gx = g @ _merged(frozen, a, core, b)
            elif ctx.needs_input_grad[0]:
                gx = (g @ frozen.base.weight.to(kind)).addmm_(gh, a.to(kind))
            gx = None if gx is None else gx.reshape(shape).to(dtype)
        return gx, None, None, None, None, to_a, to_core, to_b


class _Convolution(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, frozen: Frozen, *factors: *_Flat) -> Tensor:  # noqa: ANN401 - autograd's context
        a, core, b, for_a, for_core, for_b = factors
        with _without_autocast(x):
            kind, base = frozen.dtype, frozen.base
            z = x.to(kind)
            bias = None if base.bias is None else base.bias.to(kind)
            h = functional.conv2d(z, a.to(kind), None, *_geometry(frozen.a))
            if frozen.pays_to_merge(h.numel() // h.shape[1]):
                y = functional.conv2d(z, _merged(frozen, a, core, b), bias, *_geometry(base))
            else:
                y = functional.conv2d(z, base.weight.to(kind), bias, *_geometry(base))
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
        with _without_autocast(grad):
            g = grad.to(kind)
            to_b = None if for_b is None else _per_unit_pixels(g, h, draws, for_b).mul_(frozen.scaling)
            gx = gh = None
            merge = frozen.pays_to_merge(g.numel() // g.shape[1])
            to_core, to_a = None, None
            if not merge or for_core is not None or for_a is not None:
                gk = functional.conv2d(g, b.to(kind).transpose(0, 1)).mul_(frozen.scaling)
                to_core = None if for_core is None else _per_unit_pixels(gk, h, draws, for_core)
                gh = gk if core is None else functional.conv2d(gk, core.to(kind).transpose(0, 1))
                to_a = None if for_a is None else _per_unit_patches(gh, z, frozen, for_a)
            if ctx.needs_input_grad[0] and merge:
                gx = _to_input(g, frozen.base, _merged(frozen, a, core, b), shape)
            elif ctx.needs_input_grad[0] and gh is not None:
                gx = _to_input(g, frozen.base, frozen.base.weight.to(kind), shape)
                gx.add_(_to_input(gh, frozen.a, a.to(kind), shape))
            gx = None if gx is None else gx.to(dtype)
        return gx, None, None, None, None, to_a, to_core, to_b


class _FrozenConvolution(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Conv2d, dtype: torch.dtype) -> Tensor:  # noqa: ANN401 - autograd's context
        with _without_autocast(x):
            bias = None if layer.bias is None else layer.bias.to(dtype)
            y = functional.conv2d(x.to(dtype), layer.weight.to(dtype), bias, *_geometry(layer))
        ctx.layer, ctx.x, ctx.kind = layer, (x.shape, x.dtype), dtype
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - autograd's context
        shape, dtype = ctx.x
        with _without_autocast(grad):
            gx = _to_input(grad.to(ctx.kind), ctx.layer, ctx.layer.weight.to(ctx.kind), shape)
        return gx.to(dtype), None, None


def convolve_frozen(x: Tensor, layer: nn.Conv2d, dtype: torch.dtype) -> Tensor:
    """What ``layer`` computes, without keeping x for the backward pass: a frozen weight needs only its shape."""
    y: Tensor = _FrozenConvolution.apply(x, layer, dtype)  # type: ignore[no-untyped-call]
    return y


def _geometry(layer: nn.Linear | nn.Conv2d) -> tuple[Any, Any, Any, Any]:
    return layer.stride, layer.padding, layer.dilation, layer.groups


def _to_input(grad: Tensor, layer: nn.Linear | nn.Conv2d, weight: Tensor, shape: torch.Size) -> Tensor:
    """Gradient of a convolution's input of that shape.

    As a transposed convolution, because torch.nn.grad.conv2d_input allocates an input that it does not use.
    """
    stride, padding, dilation, groups = _geometry(layer)
    missing = [
        wanted - ((have - 1) * s - 2 * p + d * (k - 1) + 1)
        for wanted, have, s, p, d, k in zip(
            shape[2:], grad.shape[2:], stride, padding, dilation, weight.shape[2:], strict=True
        )
    ]
    return functional.conv_transpose2d(grad, weight, None, stride, padding, missing, groups, dilation)


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
