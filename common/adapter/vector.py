"""The adapter as one flat vector: what is trained, aggregated and sent.

Coordinates follow ``AdapterSpec.tensors``. Always float32 and on the CPU, whatever type and device the UNet has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from common.adapter.lora import kaiming_rows, trained_layer
from common.adapter.spec import A, AdapterSpec
from common.errors import AdapterError, WrongAdapterSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

Vector: TypeAlias = NDArray[np.float32]


def trained_parameters(unet: nn.Module, spec: AdapterSpec) -> tuple[nn.Parameter, ...]:
    """The UNet's trained tensors in the specification's order.

    Raises:
        WrongAdapterSpec: The UNet has no adapter, or one with other tensors.

    """
    return tuple(_parameter(unet, tensor.name, tensor.shape) for tensor in spec.tensors)


def read_vector(unet: nn.Module, spec: AdapterSpec) -> Vector:
    """A copy of the adapter in the UNet, ``float32[d]``.

    Raises:
        WrongAdapterSpec: The UNet has no adapter, or one with other tensors.

    """
    return _flatten(parameter.detach() for parameter in trained_parameters(unet, spec))


@torch.no_grad()
def write_vector(unet: nn.Module, spec: AdapterSpec, vector: Vector) -> None:
    """Put the vector into the UNet's own tensors, which stay where they are in memory.

    Args:
        unet: The UNet with the adapter.
        spec: Its layout.
        vector: ``float32[d]``, finite.

    Raises:
        WrongAdapterSpec: Another length, or a UNet with other tensors; nothing is written.
        AdapterError: Another type, or a value that is not finite; nothing is written.

    """
    check_vector(spec, vector)
    parameters = trained_parameters(unet, spec)
    values = torch.from_numpy(np.array(vector, dtype=np.float32))  # a copy: torch cannot take read-only memory
    parts = torch.split(values, [parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.copy_(part.reshape(parameter.shape))


def check_vector(spec: AdapterSpec, vector: Vector) -> None:
    """Refuse what is not a finite ``float32[d]``.

    Raises:
        WrongAdapterSpec: Another length.
        AdapterError: Another type, or a value that is not finite.

    """
    if vector.shape != (spec.dimension,):
        raise WrongAdapterSpec(f"wanted an adapter vector of {spec.dimension} values, got shape {vector.shape}")
    if vector.dtype != np.float32:
        raise AdapterError(f"wanted an adapter vector of float32, got {vector.dtype}")
    if not np.isfinite(vector).all():
        bad = int(np.count_nonzero(~np.isfinite(vector)))
        raise AdapterError(f"the adapter vector has {bad} of {spec.dimension} values that are not finite")


def gradient_vector(unet: nn.Module, spec: AdapterSpec) -> Vector:
    """A copy of the gradients, ``float32[d]``; zeros where there is none. They are not checked to be finite.

    Raises:
        WrongAdapterSpec: The UNet has no adapter, or one with other tensors.

    """
    parameters = trained_parameters(unet, spec)
    return _flatten(torch.zeros_like(one) if one.grad is None else one.grad for one in parameters)


def initial_vector(spec: AdapterSpec) -> Vector:
    """What a freshly injected adapter holds, ``float32[d]``, without a UNet: zeros, but for a trained A."""
    return _flatten(
        kaiming_rows(tensor.shape, spec.config.seed, tensor.name.removesuffix(f".{A}"))
        if tensor.name.endswith(f".{A}")
        else torch.zeros(tensor.shape)
        for tensor in spec.tensors
    )


def _flatten(tensors: Iterable[Tensor]) -> Vector:
    return torch.cat([tensor.reshape(-1).float() for tensor in tensors]).cpu().numpy()


def _parameter(unet: nn.Module, name: str, shape: tuple[int, ...]) -> nn.Parameter:
    module, _, factor = name.rpartition(".")
    try:
        parameter = trained_layer(unet, module, factor).weight
    except (AttributeError, KeyError) as error:
        raise WrongAdapterSpec(f"this UNet has no {name}; inject the adapter of this specification first") from error
    if not isinstance(parameter, nn.Parameter):
        raise WrongAdapterSpec(f"this UNet does not train {name}; its adapter was injected in another mode")
    if tuple(parameter.shape) != shape:
        raise WrongAdapterSpec(f"{name}: the specification says shape {shape}, the UNet has {tuple(parameter.shape)}")
    return parameter
