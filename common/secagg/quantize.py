"""Real vectors ↔ integers modulo 2ᵇ, and the types that a vector passes through on its way to the wire.

``QuantizedSum`` → ``NoisedShare`` → (:mod:`common.secagg.masking`) ``MaskedVector`` → ``VectorSum`` → real numbers.
Each step takes the type before it only.

The scale is a power of two, so that ``scale · x`` is exact in float64 and rounding is the only error: at most ½ per
coordinate and institution. Two neighbouring inputs at distance δ then differ by at most ``scale·|δ| + 1`` per
coordinate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError, WrongShape

if TYPE_CHECKING:
    from collections.abc import Iterator

    from common.secagg.messages import Bits

Words: TypeAlias = NDArray[np.uint32] | NDArray[np.uint64]
Reals: TypeAlias = NDArray[np.float32] | NDArray[np.float64]

WRAP_SIGMAS: Final = 8.0
"""Distance, in standard deviations of the summed noise, that is kept from the edge; beyond it a coordinate wraps, which
costs accuracy (chance 1.3e-15 per coordinate and round) and never privacy."""
_CHUNK: Final = 1 << 14
_LIMITS: Final = {32: 2.0**31 - 1, 64: 2.0**63 - 1024}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class QuantizedSum:
    """An institution's clipped sum as integers modulo 2ᵇ; without noise, so it must not leave."""

    words: Words
    bits: Bits


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class NoisedShare:
    """A quantised sum plus this institution's noise for a cohort of one given size; ready to be masked."""

    words: Words
    bits: Bits
    cohort: int
    """The share's variance was made for this many institutions."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VectorSum:
    """The sum of a whole cohort modulo 2ᵇ, check coordinates removed."""

    words: Words
    bits: Bits
    cohort: int


def word_type(bits: Bits) -> np.dtype[Any]:
    """Little-endian unsigned words, as on the wire."""
    return np.dtype("<u4") if bits == 32 else np.dtype("<u8")


def choose_scale(  # noqa: PLR0913 - the arguments are the formula's symbols
    *,
    bits: Bits,
    clip: float,
    maximum_units: int,
    noise_multiplier: float,
    dimension: int,
    institutions: int,
    colluders: int,
) -> float:
    """The largest power of two s for which a sum of whole cohort and noise stays off the edge by 8 standard deviations.

    With Δ₂ = s·C + √d and σ = z·Δ₂·√(n/(n−t)), wanted is s·B·C + n/2 + 8σ ≤ 2ᵇ⁻¹ − 1, which is linear in s. For b =
    64 it is at most 2⁵² / (B·C), beyond which a float64 input holds no more digits.

    Args:
        bits: b, the word size.
        clip: C, L2 bound of one unit.
        maximum_units: B, cap on the units in one sum over all institutions.
        noise_multiplier: z; 0 without noise.
        dimension: d.
        institutions: n, the largest cohort.
        colluders: t.

    Raises:
        ConfigError: No scale of at least 1 per clipping bound fits; use 64 bits.

    """
    spread = WRAP_SIGMAS * noise_multiplier * math.sqrt(institutions / (institutions - colluders))
    room = 2.0 ** (bits - 1) - 1 - institutions / 2 - spread * math.sqrt(dimension)
    largest = min(room / (clip * (maximum_units + spread)), 2.0**52 / (clip * maximum_units))
    if largest * clip < 1:
        raise ConfigError(f"{maximum_units} units and noise {noise_multiplier} do not fit into {bits} bits; use 64")
    return 2.0 ** math.floor(math.log2(largest))


def check_scale(scale: float) -> None:
    """Refuse a scale that would round twice.

    Raises:
        ConfigError: Not a power of two.

    """
    if not (math.isfinite(scale) and math.frexp(scale)[0] == 0.5):
        raise ConfigError(f"scale: wanted a power of two, got {scale}")


def quantize(values: Reals, *, scale: float, bits: Bits) -> QuantizedSum:
    """Round ``scale · values`` to the nearest integers (ties to even) modulo 2ᵇ.

    Values outside the signed range of b bits become its nearest end: that is 1-Lipschitz, so sensitivity does not grow.

    Args:
        values: float[d].
        scale: Power of two.
        bits: b.

    Raises:
        WrongShape: Not one-dimensional, or not finite.
        ConfigError: The scale is not a power of two.

    """
    check_scale(scale)
    if values.ndim != 1:
        raise WrongShape(f"wanted a vector, got shape {values.shape}")
    words = np.empty(values.size, dtype=word_type(bits))
    signed = words.view(f"<i{bits // 8}")
    for part in _chunks(values.size):
        scaled = np.multiply(values[part], scale, dtype=np.float64)
        if not np.isfinite(scaled).all():
            raise WrongShape("a value is not finite; clipped sums are finite by construction, so this is a fault")
        signed[part] = np.clip(np.rint(scaled), -_LIMITS[bits], _LIMITS[bits])
    return QuantizedSum(words=words, bits=bits)


def add_noise(quantized: QuantizedSum, noise: NDArray[np.int64], *, cohort: int) -> NoisedShare:
    """Add an integer noise share modulo 2ᵇ.

    Args:
        quantized: d words.
        noise: int64[d], made for a cohort of this size.
        cohort: How many institutions add such a share.

    Raises:
        WrongShape: Not one integer per coordinate.

    """
    if noise.shape != quantized.words.shape or noise.dtype != np.int64:
        raise WrongShape(f"wanted int64 noise of shape {quantized.words.shape}, got {noise.dtype} of {noise.shape}")
    words = quantized.words.copy()
    for part in _chunks(words.size):
        words[part] += noise[part].astype(words.dtype)
    return NoisedShare(words=words, bits=quantized.bits, cohort=cohort)


def without_noise(quantized: QuantizedSum, *, cohort: int) -> NoisedShare:
    """A share for a run whose manifest asks for no differential privacy: the sum itself is then released exactly."""
    return NoisedShare(words=quantized.words, bits=quantized.bits, cohort=cohort)


def centre(total: VectorSum) -> NDArray[np.signedinteger[Any]]:
    """The sum as signed integers in [−2ᵇ⁻¹, 2ᵇ⁻¹), int32[d] or int64[d]; a view."""
    return total.words.view(f"<i{total.bits // 8}")


def dequantize(total: VectorSum, *, scale: float) -> NDArray[np.float64]:
    """The sum in real units, float64[d].

    Raises:
        ConfigError: The scale is not a power of two.

    """
    check_scale(scale)
    real: NDArray[np.float64] = centre(total).astype(np.float64)
    real /= scale
    return real


def _chunks(size: int) -> Iterator[slice]:
    """Pieces that fit a processor cache, so that temporaries stay small whatever d is."""
    return (slice(start, min(start + _CHUNK, size)) for start in range(0, size, _CHUNK))
