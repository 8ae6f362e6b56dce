"""Vectors as integers modulo 2ᵇ: what masking takes, and what a sum gives back.

The integers come from :mod:`common.privacy.mechanisms`, noise included, and their sum goes back there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.errors import WrongShape

if TYPE_CHECKING:
    from common.secagg.messages import Bits

Words: TypeAlias = NDArray[np.uint32] | NDArray[np.uint64]


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


def from_integers(values: NDArray[np.int64], *, bits: Bits, cohort: int) -> Summand:
    """A clipped, quantised and noised sum modulo 2ᵇ.

    Args:
        values: int64[d], with this institution's noise share for a cohort of this size.
        bits: b.
        cohort: |U|.

    Raises:
        WrongShape: Not a vector of int64.

    Example:
        >>> from_integers(np.array([3, -1, 2**32 + 5]), bits=32, cohort=2).words.tolist()
        [3, 4294967295, 5]

    """
    if values.ndim != 1 or values.dtype != np.int64:
        raise WrongShape(f"wanted a vector of int64, got {values.dtype} of shape {values.shape}")
    return Summand(words=values.astype(word_type(bits)), bits=bits, cohort=cohort)
