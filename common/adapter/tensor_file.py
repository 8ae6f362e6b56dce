"""Safetensors files of adapters: read with the true reason where they cannot be, and written in one order."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from safetensors import SafetensorError, safe_open

from common.errors import AdapterError

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

_FLOAT32: Final = "F32"


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


def in_order(data: bytes) -> bytes:
    """The safetensors file with its metadata in order: safetensors itself writes them in another order each time."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the values stay aligned
    return len(text).to_bytes(8, "little") + text + data[8 + length :]
