"""Vectors as integers modulo 2ᵇ: what masking takes, and what a sum gives back.

A private run's integers come from :mod:`common.privacy`, noise included, through :func:`from_integers`. A run whose
manifest asks for no differential privacy rounds its real values with :func:`from_reals`; its scale is a power of two,
so that ``scale · x`` is exact in float64 and rounding, by at most ½, is the only error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError, WrongShape

if TYPE_CHECKING:
    from common.secagg.messages import Bits

Words: TypeAlias = NDArray[np.uint32] | NDArray[np.uint64]
Reals: TypeAlias = NDArray[np.float32] | NDArray[np.float64]

_CHUNK: Final = 1 << 14
_LIMITS: Final = {32: 2.0**31 - 1, 64: 2.0**63 - 1024}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Summand:
    """What one institution adds to a cohort's sum, ready to be masked; d words."""

    words: Words = field(repr=False)
    bits: Bits
    cohort: int
    """How many institutions it is made for: noise shares of one sum must all be made for the same number."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VectorSum:
    """The sum of a whole cohort modulo 2ᵇ, check coordinates removed; d words."""

    words: Words = field(repr=False)
    bits: Bits
    cohort: int


def word_type(bits: Bits) -> np.dtype[Any]:
    """Little-endian unsigned words, as on the wire."""
    return np.dtype("<u4") if bits == 32 else np.dtype("<u8")


def choose_scale(*, bits: Bits, bound: float, institutions: int) -> float:
    """The largest power of two s at which no sum of ``institutions`` vectors wraps: n·(s·bound + ½) ≤ 2ᵇ⁻¹ − 1.

    For b = 64 it is at most 2⁵² / (n·bound), beyond which a float64 input holds no more digits.

    Args:
        bits: b.
        bound: Largest absolute value of one coordinate of one institution.
        institutions: n, the largest cohort.

    Raises:
        ConfigError: Not even one step per bound fits, or a bound or n of 0.

    """
    if not (0 < bound < math.inf and institutions >= 1):
        raise ConfigError(f"wanted a bound above 0 and at least one institution, got {bound} and {institutions}")
    largest = min((2.0 ** (bits - 1) - 1) / institutions - 0.5, 2.0**52 / institutions) / bound
    if largest * bound < 1:
        raise ConfigError(f"{institutions} institutions leave no step per {bound} in {bits} bits; use 64")
    return 2.0 ** math.floor(math.log2(largest))


def check_scale(scale: float) -> None:
    """Refuse a scale that would round twice.

    Raises:
        ConfigError: Not a power of two.

    """
    if not (math.isfinite(scale) and math.frexp(scale)[0] == 0.5):
        raise ConfigError(f"scale: wanted a power of two, got {scale}")


def from_integers(values: NDArray[np.int64], *, bits: Bits, cohort: int) -> Summand:
    """A clipped, quantised and noised sum modulo 2ᵇ.

    Args:
        values: int64[d], with this institution's noise share for a cohort of this size.
        bits: b.
        cohort: |U|.

    Raises:
        WrongShape: Not a vector of int64.

    """
    if values.ndim != 1 or values.dtype != np.int64:
        raise WrongShape(f"wanted a vector of int64, got {values.dtype} of shape {values.shape}")
    return Summand(words=values.astype(word_type(bits)), bits=bits, cohort=cohort)


def from_reals(values: Reals, *, scale: float, bits: Bits, cohort: int) -> Summand:
    """Round ``scale · values`` to the nearest integers (ties to even) modulo 2ᵇ; without any noise.

    Values outside the signed range of b bits become its nearest end.

    Args:
        values: float[d].
        scale: Power of two.
        bits: b.
        cohort: |U|.

    Raises:
        WrongShape: Not a vector, or not finite.
        ConfigError: The scale is not a power of two.

    """
    check_scale(scale)
    if values.ndim != 1:
        raise WrongShape(f"wanted a vector, got shape {values.shape}")
    words = np.empty(values.size, dtype=word_type(bits))
    signed = words.view(f"<i{bits // 8}")
    for start in range(0, values.size, _CHUNK):  # pieces, so that temporaries stay small whatever d is
        scaled = np.multiply(values[start : start + _CHUNK], scale, dtype=np.float64)
        if not np.isfinite(scaled).all():
            raise WrongShape("a value is not finite")
        signed[start : start + _CHUNK] = np.clip(np.rint(scaled), -_LIMITS[bits], _LIMITS[bits])
    return Summand(words=words, bits=bits, cohort=cohort)


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
