"""The adapter as files that stock diffusers loads, and back into a vector.

``pytorch_lora_weights.safetensors`` is an ordinary LoRA with its rank and α in the metadata, for
``pipeline.load_lora_weights(directory)``; ``adapter_spec.json`` says what it belongs to. LoRA-XS is exported as the
LoRA that it equals, so its cores are kept in ``adapter_core.safetensors``, without which training could not go on.
Loaders too old to read ``lora_adapter_metadata`` apply α = r; there, scale the adapter by α/r.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from common.adapter.spec import ADAPTER_NAME, A, AdapterSpec, B, encode_spec
from common.adapter.vector import Vector, check_vector, trained_parameters
from common.durable_files import write_atomically
from common.errors import AdapterError, WrongAdapterSpec
from common.field_words import decoding_fault

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor, nn


WEIGHTS_FILE: Final = "pytorch_lora_weights.safetensors"
SPEC_FILE: Final = "adapter_spec.json"
CORE_FILE: Final = "adapter_core.safetensors"
SPEC_KEY: Final = "darkroom_adapter_spec"
"""Metadata key of the specification's digest, so that files of two adapters cannot be mixed unnoticed."""
_FLOAT32: Final = "F32"


def save_adapter(directory: Path, unet: nn.Module, spec: AdapterSpec) -> None:
    """Write the adapter in the UNet; each file appears whole or not at all.

    Guarantee: :func:`read_adapter_vector` gives back the very vector, bit for bit; a stock pipeline of the same base
    that loads the directory computes the same ΔW up to float32 rounding; the same adapter gives the same files, byte
    for byte.

    Args:
        directory: Created if it does not exist; files of an earlier export are replaced.
        unet: The UNet with the adapter.
        spec: Its layout.

    Raises:
        WrongAdapterSpec: The UNet has another adapter or none; nothing is written.

    """
    parameters = trained_parameters(unet, spec)
    factors = plain_factors(unet, spec)
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / WEIGHTS_FILE, in_order(save(factors, metadata=weights_metadata(spec))))
    if spec.config.train == "core":
        cores = {one.name: _copy(value) for one, value in zip(spec.tensors, parameters, strict=True)}
        write_atomically(directory / CORE_FILE, in_order(save(cores, metadata=core_metadata(spec))))
    else:
        (directory / CORE_FILE).unlink(missing_ok=True)
    write_atomically(directory / SPEC_FILE, msgspec.json.format(encode_spec(spec), indent=2) + b"\n")


def plain_factors(unet: nn.Module, spec: AdapterSpec) -> dict[str, Tensor]:
    """Both factors of every adapted module as diffusers' file has them: LoRA-XS's U·R is one tensor."""
    adapted: dict[str, Any] = {name: unet.get_submodule(name) for name in adapted_modules(spec)}
    return {
        weight_key(name, factor): _copy(getattr(module, factor)[ADAPTER_NAME].weight)
        for name, module in adapted.items()
        for factor in (A, B)
    }


def adapted_modules(spec: AdapterSpec) -> tuple[str, ...]:
    """Names of the UNet's modules that have the adapter, sorted."""
    return tuple(sorted({tensor.name.rpartition(".")[0] for tensor in spec.tensors}))


def weight_key(module: str, factor: str) -> str:
    """A factor's name in diffusers' file."""
    return f"unet.{module}.{factor}.weight"


def weights_metadata(spec: AdapterSpec) -> dict[str, str]:
    """Metadata of diffusers' file: rank and α, which stock loaders apply, and the specification's digest."""
    config = {
        "unet.r": spec.config.rank,
        "unet.lora_alpha": spec.config.alpha,
        "unet.target_modules": list(spec.config.targets),
    }
    return {"format": "pt", "lora_adapter_metadata": json.dumps(config, sort_keys=True), SPEC_KEY: spec.digest}


def core_metadata(spec: AdapterSpec) -> dict[str, str]:
    """Metadata of the file of LoRA-XS's cores."""
    return {SPEC_KEY: spec.digest}


def in_order(data: bytes) -> bytes:
    """The safetensors file with its metadata in order: safetensors itself writes them in another order each time."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the values stay aligned
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def read_adapter_spec(directory: Path) -> AdapterSpec:
    """What a saved adapter belongs to.

    Raises:
        AdapterError: The file is missing or no adapter specification.

    """
    path = directory / SPEC_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=AdapterSpec)
    except OSError as error:
        raise AdapterError(
            f"{path}: cannot be read ({error.strerror}); wanted a directory of a saved adapter"
        ) from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise AdapterError(f"{path}: no adapter specification: {decoding_fault(error, AdapterSpec)}") from error


def read_adapter_vector(directory: Path, spec: AdapterSpec) -> Vector:
    """A saved adapter's trained values, ``float32[d]``, to go on training from.

    Raises:
        WrongAdapterSpec: Made under another specification; says which field differs.
        AdapterError: A file that is missing, truncated or garbage, of another adapter, or not finite.

    """
    _compare(read_adapter_spec(directory), spec, directory)
    core = spec.config.train == "core"
    path = directory / (CORE_FILE if core else WEIGHTS_FILE)
    names = {tensor.name: tensor.name if core else f"unet.{tensor.name}.weight" for tensor in spec.tensors}
    file = read_tensors(path, set(names.values()))
    if missing := sorted(set(names.values()) - file.names):
        raise AdapterError(f"{path}: {len(missing)} tensors are missing, {missing[0]} for one; copy it again")
    if file.metadata.get(SPEC_KEY) != spec.digest:
        raise AdapterError(
            f"{path}: was saved under another specification than the {SPEC_FILE} beside it; copy both again"
        )
    return _join(path, spec, [file.tensors[names[tensor.name]] for tensor in spec.tensors])


@dataclass(frozen=True, kw_only=True)
class TensorFile:
    """What a file holds of what was wanted."""

    metadata: dict[str, str]
    names: frozenset[str]
    """Of every tensor in it."""
    tensors: dict[str, NDArray[np.float32]]
    """The wanted ones that are there, by name."""


def read_tensors(path: Path, wanted: AbstractSet[str]) -> TensorFile:
    """An adapter's file.

    Raises:
        AdapterError: Missing, truncated, garbage, or of numbers other than float32. A rounded copy, as converters make
            it, is another adapter than the one that its digest names.

    """
    try:
        with safe_open(path, framework="numpy") as file:
            names = frozenset(file.keys())
            kinds = {name: file.get_slice(name).get_dtype() for name in sorted(names & wanted)}
            other = next((name for name, kind in kinds.items() if kind != _FLOAT32), None)
            # numpy has no bfloat16, so nothing of such a file is read
            tensors = {name: file.get_tensor(name) for name in kinds} if other is None else {}
            metadata = file.metadata() or {}
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise AdapterError(f"{path}: cannot be read as safetensors ({error}); copy it again") from error
    if other is not None:
        raise AdapterError(
            f"{path}: {other} has numbers of type {kinds[other]}, wanted {_FLOAT32}: the file was converted after it "
            "was saved, and rounded numbers are another adapter than its digest names; use the file as it was saved"
        )
    return TensorFile(metadata=metadata, names=names, tensors=tensors)


def _join(path: Path, spec: AdapterSpec, values: list[NDArray[np.float32]]) -> Vector:
    for tensor, value in zip(spec.tensors, values, strict=True):
        if value.shape != tensor.shape:
            raise AdapterError(f"{path}: {tensor.name} has the shape {list(value.shape)}, wanted {list(tensor.shape)}")
    vector = np.concatenate([value.reshape(-1) for value in values])
    check_vector(spec, vector)
    return vector


def _compare(got: AdapterSpec, wanted: AdapterSpec, directory: Path) -> None:
    """Refuse another specification, naming each field that differs."""
    if got.digest == wanted.digest:
        return
    differ = [
        f"{name}: wanted {getattr(wanted.config, name)!r}, got {getattr(got.config, name)!r}"
        for name in wanted.config.__struct_fields__
        if getattr(wanted.config, name) != getattr(got.config, name)
    ]
    differ += [
        f"{name}: wanted {getattr(wanted, name)!s}, got {getattr(got, name)!s}"
        for name in ("base_digest", "family")
        if getattr(wanted, name) != getattr(got, name)
    ]
    if not differ:
        differ = [f"tensors: wanted {len(wanted.tensors)} of other names or shapes, got {len(got.tensors)}"]
    raise WrongAdapterSpec(f"{directory}: this adapter was made under another specification: {'; '.join(differ)}")


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32).contiguous()
