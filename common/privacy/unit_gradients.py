"""Per-unit gradients of a model's LoRA factors from one forward and one backward pass.

Inside :func:`record_units` each of PEFT's LoRA layers computes what it computed before, and leaves one gradient per
privacy unit for every trained factor. Outside, the model is as it was.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from common.errors import ClippingError
from common.privacy.lora_functions import Factors, Frozen, apply_lora, convolve_frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

_MARK: Final = "_darkroom_recorded"


@dataclass(frozen=True, kw_only=True)
class _Site:
    """One LoRA layer: its base, its factors (core: LoRA-XS's r×r matrix before B, or None) and s = α/r."""

    name: str
    layer: nn.Module
    base: nn.Linear | nn.Conv2d
    a: nn.Linear | nn.Conv2d
    core: nn.Linear | nn.Conv2d | None
    b: nn.Linear | nn.Conv2d
    scaling: float

    def weights(self) -> tuple[Tensor, ...]:
        """Of A, core and B."""
        return tuple(part.weight for part in (self.a, self.core, self.b) if part is not None)


class UnitRecorder:
    """Collects the companions' gradients of one micro-batch at a time."""

    def __init__(self, parameters: Sequence[nn.Parameter], *, draws: int) -> None:
        self._parameters = tuple(parameters)
        self._draws = draws
        self._companions: dict[Tensor, Tensor] = {}
        self._units: int | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<recorder of {len(self._parameters)} factors>"

    def units_in(self, rows: int, where: str) -> int:
        """Number of units in ``rows`` rows; the same in every layer of one micro-batch.

        Raises:
            ClippingError: A unit would be split, or rows of different units were mixed on the way to this layer.

        """
        units, rest = divmod(rows, self._draws)
        if rest:
            raise ClippingError(
                f"{where}: wanted whole units of {self._draws} draws each, got a number that splits one"
            )
        if self._units is None:
            self._units = units
        if units != self._units:
            raise ClippingError(
                f"{where}: wanted one row per draw as in the layers before; this layer sees another number of rows, so "
                "rows of different units cannot be told apart; leave it out of the adapter's targets",
            )
        return units

    def companion(self, parameter: Tensor, units: int) -> Tensor | None:
        """The leaf that gets this factor's per-unit gradients, or None where the factor is not trained."""
        if not parameter.requires_grad:
            return None
        with self._lock:
            if parameter not in self._companions:
                leaf = parameter.detach().expand(units, *parameter.shape).requires_grad_()
                self._companions[parameter] = leaf
            return self._companions[parameter]

    def collect(self) -> list[Tensor | None]:
        """Each parameter's gradient per unit, [units, *shape], or None if no loss depended on it; then start afresh."""
        leaves = [self._companions.get(parameter) for parameter in self._parameters]
        self._companions, self._units = {}, None
        return [None if leaf is None else leaf.grad for leaf in leaves]


@contextmanager
def record_units(model: nn.Module, parameters: Sequence[nn.Parameter], *, draws: int) -> Iterator[UnitRecorder]:
    """Make the model's LoRA layers leave per-unit gradients with the recorder that this yields.

    Guarantee: on leaving, with or without an exception, the model has no attribute, hook or gradient that it did not
    have before. While it lasts, no second recording of the same layers can begin, in any thread.

    Args:
        model: Has PEFT LoRA layers on Linear or Conv2d, with one active adapter and without dropout, bias or variant.
        parameters: All trained parameters, each a factor (A, B or core) of one LoRA layer.
        draws: K ≥ 1 rows for each unit, next to each other in the batch.

    Raises:
        ClippingError: The model is not of that kind, trains something else too, or is being recorded already.

    """
    if draws < 1:
        raise ClippingError(f"wanted at least one draw per unit, got {draws}")
    sites = _find_sites(model)
    _check_parameters(model, parameters, sites)
    recorder = UnitRecorder(parameters, draws=draws)
    forwards: dict[nn.Module, Callable[[Tensor], Tensor]] = {
        site.layer: _RecordingForward(site, recorder, draws) for site in sites
    }
    forwards |= {layer: _LeanForward(layer) for layer in _frozen_convolutions(model, sites)}
    with ExitStack() as undo:
        for site in sites:
            if site.layer.__dict__.setdefault(_MARK, recorder) is not recorder:
                raise ClippingError(f"{site.name} is being recorded already; record one batch at a time per model")
            undo.callback(site.layer.__dict__.pop, _MARK)
            if "forward" in site.layer.__dict__:
                raise ClippingError(f"{site.name}: its forward method was replaced already, which recording would undo")
        for layer, forward in forwards.items():
            layer.__dict__["forward"] = forward
            undo.callback(layer.__dict__.pop, "forward")
        yield recorder


class _RecordingForward:
    """A LoRA layer's forward pass with companions."""

    def __init__(self, site: _Site, recorder: UnitRecorder, draws: int) -> None:
        self.site, self.recorder, self.draws = site, recorder, draws

    def __call__(self, x: Tensor) -> Tensor:
        site = self.site
        units = self.recorder.units_in(x.shape[0], site.name)
        dtype = _product_type(x, site.base)
        frozen = Frozen(base=site.base, a=site.a, scaling=site.scaling, draws=self.draws, dtype=dtype)
        core = None if site.core is None else site.core.weight
        companion = self.recorder.companion
        factors = Factors(
            a=site.a.weight,
            core=core,
            b=site.b.weight,
            for_a=companion(site.a.weight, units),
            for_core=None if core is None else companion(core, units),
            for_b=companion(site.b.weight, units),
        )
        return apply_lora(x, frozen, factors)


class _LeanForward:
    """A frozen convolution's forward pass that keeps no input."""

    def __init__(self, layer: nn.Conv2d) -> None:
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        return convolve_frozen(x, self.layer, _product_type(x, self.layer))


def _product_type(x: Tensor, layer: nn.Linear | nn.Conv2d) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else layer.weight.dtype


def _frozen_convolutions(model: nn.Module, sites: Sequence[_Site]) -> list[nn.Conv2d]:
    parts = {part for site in sites for part in (site.base, site.a, site.core, site.b)}
    return [
        layer
        for layer in model.modules()
        if type(layer) is nn.Conv2d
        and layer not in parts
        and not _unusual(layer)
        and "forward" not in layer.__dict__
        and not any(parameter.requires_grad for parameter in layer.parameters())
    ]


def _find_sites(model: nn.Module) -> list[_Site]:
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.training:
            raise ClippingError(f"{name}: batch normalisation mixes units, so no unit's gradient is its own")
    sites = [_site(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    if not sites:
        raise ClippingError("wanted a model with PEFT LoRA layers, found none: inject the adapter first")
    return sites


def _site(name: str, layer: LoraLayer) -> _Site:
    if len(layer.active_adapters) != 1 or layer.disable_adapters or layer.merged:
        raise ClippingError(f"{name}: wanted exactly one active, unmerged adapter, got {layer.active_adapters}")
    adapter = layer.active_adapters[0]
    dropout = layer.lora_dropout[adapter]
    if adapter in layer.lora_variant or layer.lora_bias[adapter] or not isinstance(dropout, nn.Identity):
        raise ClippingError(f"{name}: wanted plain LoRA without variant (DoRA, …), bias or dropout")
    base, a, b = layer.base_layer, layer.lora_A[adapter], layer.lora_B[adapter]
    core = None
    if type(b) not in {nn.Linear, nn.Conv2d} and hasattr(b, "core") and hasattr(b, "frozen"):
        core, b = b.core, b.frozen
    site = _Site(name=name, layer=layer, base=base, a=a, core=core, b=b, scaling=layer.scaling[adapter])
    _check_kinds(site)
    return site


def _check_kinds(site: _Site) -> None:
    parts = [part for part in (site.a, site.core, site.b) if part is not None]
    kind = type(site.base)
    if kind not in {nn.Linear, nn.Conv2d} or any(type(part) is not kind for part in parts):
        raise ClippingError(f"{site.name}: wanted LoRA on a plain Linear or Conv2d, got {kind.__name__}")
    if any(part.bias is not None for part in parts) or site.base.weight.requires_grad:
        raise ClippingError(f"{site.name}: wanted a frozen base layer and factors without bias")
    if any(_unusual(part) for part in (site.base, *parts)):
        raise ClippingError(f"{site.name}: wanted a convolution in one group with zero padding of a stated width")
    if site.core is not None and (site.a.weight.requires_grad or site.b.weight.requires_grad):
        raise ClippingError(f"{site.name}: beside a core, A and B must be frozen")


def _unusual(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and (
        layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str)
    )


def _check_parameters(model: nn.Module, parameters: Sequence[nn.Parameter], sites: Sequence[_Site]) -> None:
    factors = [weight for site in sites for weight in site.weights() if weight.requires_grad]
    if len({id(weight) for weight in factors}) != len(factors):
        raise ClippingError(
            "two LoRA layers share a factor, so its gradient has two parts that are not clipped together"
        )
    wanted = {id(parameter) for parameter in parameters}
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    loose = [name for name, p in trained.items() if id(p) not in wanted or all(p is not factor for factor in factors)]
    if loose:
        raise ClippingError(f"these would be trained without being clipped: {', '.join(loose[:5])}; freeze them")
    if len(wanted) != len(parameters) or wanted != {id(parameter) for parameter in trained.values()}:
        raise ClippingError("wanted each trained parameter of the model exactly once, got others or repetitions")
