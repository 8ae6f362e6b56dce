"""Whether the file that everybody loads holds the adapter that a vector's digest names, and nothing else.

The vector has only what is trained. The rest of the file acts just as much on what is drawn: the frozen factors, α in
the metadata, and tensors for parts that were never trained. Who could choose them could release another adapter under
the digest of an honest one.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.adapter.export import (
    CORE_FILE,
    SPEC_FILE,
    WEIGHTS_FILE,
    adapted_modules,
    core_metadata,
    plain_factors,
    read_adapter_vector,
    read_tensors,
    weight_key,
    weights_metadata,
)
from common.adapter.lora import inject_lora, orthonormal_rows
from common.adapter.spec import TRAINED, A, AdapterSpec, B
from common.adapter.vector import write_vector
from common.errors import AdapterError, ConfigError, WrongAdapterSpec

if TYPE_CHECKING:
    from pathlib import Path

    from common.adapter.model import BaseModel

_MODULE: Final = re.compile(r"[A-Za-z0-9_.]{1,300}")
_TOLERANCE: Final = 1e-5
"""Share of a factor's largest value by which linear algebra libraries may differ."""
Tensors: TypeAlias = dict[str, NDArray[Any]]


def check_adapter_weights(directory: Path, spec: AdapterSpec) -> None:
    """Look into the files that loaders read, without the base.

    Guarantee: the file for stock loaders has both factors of every module of ``spec``, finite, float32 and of the
    rank, no other tensor, and the metadata that this code writes; trained factors have the shapes of ``spec``; with
    ``train = "B"`` every frozen A is the one of the public seed, up to rounding; the file of the cores has cores only.

    Not looked at: frozen factors of ``train = "core"``, which follow from the base's weights, and how many inputs and
    outputs the base's modules have; :func:`compare_with_base` does both.

    Raises:
        AdapterError: A file is missing, truncated, garbage, or holds anything else.

    """
    _check_names(directory / SPEC_FILE, spec)
    path = directory / WEIGHTS_FILE
    places = {weight_key(module, factor): (module, factor) for module in adapted_modules(spec) for factor in (A, B)}
    tensors = _read(path, set(places), weights_metadata(spec))
    trained = {f"unet.{tensor.name}.weight": tensor.shape for tensor in spec.tensors}
    for key, (module, factor) in places.items():
        tensor = tensors[key]
        if not np.isfinite(tensor).all():
            raise AdapterError(f"{path}: {key} holds values that are not finite; copy it again")
        if not _is_of_rank(tensor.shape, factor, spec) or tensor.shape != trained.get(key, tensor.shape):
            raise AdapterError(
                f"{path}: {key} has the shape {list(tensor.shape)}, which is not what the {SPEC_FILE} beside it says"
            )
        if spec.config.train == "B" and factor == A and not _is_close(tensor, _drawn(tensor.shape, module, spec)):
            raise AdapterError(f"{path}: {key} is not the one of the public seed; somebody put in another")
    if spec.config.train == "core":
        _read(directory / CORE_FILE, {tensor.name for tensor in spec.tensors}, core_metadata(spec))


def compare_with_base(directory: Path, spec: AdapterSpec, base: BaseModel) -> None:
    """Make the adapter again from its base and the trained values, and hold every factor against the file.

    Guarantee: what stock loaders put into this base is what the vector puts there, up to rounding; frozen factors and
    shapes included. Takes as long as injecting the adapter; ``train = "core"`` decomposes every adapted weight.

    Raises:
        ModelError: The base's UNet cannot be loaded.
        WrongAdapterSpec: This base gives another adapter than ``spec``.
        AdapterError: A file cannot be read, or a factor is another one.

    """
    vector = read_adapter_vector(directory, spec)
    unet = base.load_unet()
    try:
        made = inject_lora(unet, spec.config, base_digest=base.digest)
    except ConfigError as error:
        raise WrongAdapterSpec(f"{directory / SPEC_FILE}: does not fit its base: {error}") from error
    if made.digest != spec.digest:
        raise WrongAdapterSpec(f"{directory / SPEC_FILE}: this base gives adapter {made.digest}, not {spec.digest}")
    write_vector(unet, spec, vector)
    wanted = plain_factors(unet, spec)
    path = directory / WEIGHTS_FILE
    tensors = _read(path, set(wanted), weights_metadata(spec))
    for key, value in wanted.items():
        if not _is_close(tensors[key], value.numpy()):
            raise AdapterError(f"{path}: {key} is not what base, seed and trained values give; somebody put in another")


def _read(path: Path, keys: set[str], metadata: dict[str, str]) -> Tensors:
    """Every tensor of a file that has exactly these and this metadata."""
    file = read_tensors(path, keys)
    said, found = file.metadata, file.names
    if found != keys:
        odd = min(found ^ keys)
        raise AdapterError(
            f"{path}: belongs to another adapter than the {SPEC_FILE} beside it, or was altered: it has {len(found)} "
            f"tensors, wanted {len(keys)}; {odd} is {'missing' if odd in keys else 'none of them'}"
        )
    if said != metadata:
        odd = min(name for name in said.keys() | metadata.keys() if said.get(name) != metadata.get(name))
        raise AdapterError(
            f"{path}: belongs to another adapter than the {SPEC_FILE} beside it, or was altered: metadata {odd} is "
            f"{said.get(odd)!r}, wanted {metadata.get(odd)!r}"
        )
    return file.tensors


def _check_names(path: Path, spec: AdapterSpec) -> None:
    """A specification may not leave out what its own configuration trains: the digest would not cover it.

    Nor may its names be words: people read them in the file's header, and without the base nothing else tells.
    """
    for name in (*spec.config.targets, *(tensor.name for tensor in spec.tensors)):
        if not _MODULE.fullmatch(name):
            raise AdapterError(f"{path}: {name!r} is no module's name: wanted letters, digits, dots and underscores")
    factors = TRAINED[spec.config.train]
    wanted = sorted(f"{module}.{factor}" for module in adapted_modules(spec) for factor in factors)
    if not wanted or [tensor.name for tensor in spec.tensors] != wanted:
        raise AdapterError(f"{path}: wanted {' and '.join(factors)} of each module once, sorted, and nothing else")


def _is_of_rank(shape: tuple[int, ...], factor: str, spec: AdapterSpec) -> bool:
    """Whether a linear layer's or convolution's A or B; A's rows can be orthonormal only if no fewer are the inputs."""
    rank = spec.config.rank
    if len(shape) not in {2, 4} or shape[0 if factor == A else 1] != rank:
        return False
    return factor == B or spec.config.train == "AB" or math.prod(shape[1:]) >= rank


def _drawn(shape: tuple[int, ...], module: str, spec: AdapterSpec) -> NDArray[Any]:
    """A frozen A of ``train = "B"``."""
    drawn: NDArray[Any] = orthonormal_rows(shape, spec.config.seed, module).numpy()
    return drawn


def _is_close(tensor: NDArray[Any], wanted: NDArray[Any]) -> bool:
    """Also false where a value is no number."""
    if tensor.shape != wanted.shape or tensor.dtype != wanted.dtype:
        return False
    return bool(np.abs(tensor - wanted).max() <= _TOLERANCE * np.abs(wanted).max())
