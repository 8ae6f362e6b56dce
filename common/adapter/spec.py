"""Which adapter: base model, configuration, and the names, shapes and order of everything that is trained.

The specification is public. Two parties whose specifications have the same digest mean the same thing by the i-th
coordinate of an adapter vector.
"""

from __future__ import annotations

import hashlib
import math
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import msgspec

from common.config import AdapterConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ADAPTER_NAME: Final = "default"
"""PEFT's name of the one adapter that is trained."""
A: Final = "lora_A"
B: Final = "lora_B"
CORE: Final = "lora_core"
TRAINED: Final = {"B": (B,), "AB": (A, B), "core": (CORE,)}
"""Factors of each adapted module that are trained, by ``AdapterConfig.train``."""

_DIGEST_LABEL: Final = b"darkroom/adapter-spec/1\0"


class Family(StrEnum):
    """Kinds of Stable Diffusion that differ in architecture; what the UNet predicts is a separate matter."""

    SD1 = "sd1"
    SD2 = "sd2"
    SDXL = "sdxl"


class TensorSpec(msgspec.Struct, frozen=True):
    """One trained tensor: ``<UNet module>.<lora_A | lora_B | lora_core>`` and its shape."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


class AdapterSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Layout of an adapter vector and what it belongs to."""

    config: AdapterConfig
    base_digest: str
    family: Family
    tensors: tuple[TensorSpec, ...]
    """Sorted by name; the vector is their row-major values one after another."""

    @property
    def dimension(self) -> int:
        """Length d of the adapter vector."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def starts_at_zero(self) -> bool:
        """Whether a freshly injected adapter's vector is zero: every trained factor is, but A."""
        return not any(tensor.name.endswith(f".{A}") for tensor in self.tensors)

    @property
    def digest(self) -> str:
        """``sha256:…`` over the canonical bytes of every field."""
        return "sha256:" + hashlib.sha256(_DIGEST_LABEL + encode_spec(self)).hexdigest()


def encode_spec(spec: AdapterSpec) -> bytes:
    """Canonical JSON: fields in declared order, shortest floats, no white space."""
    return msgspec.json.encode(spec, order="deterministic")


def vector_digest(vector: NDArray[np.float32]) -> str:
    """``sha256:…`` over an adapter vector's bytes as they are sent: float32, little-endian."""
    return f"sha256:{hashlib.sha256(vector.astype('<f4', copy=False).tobytes()).hexdigest()}"
