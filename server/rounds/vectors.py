"""Adapter vectors as the coordinator holds them: float32[d], and their bytes on the wire."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Vector: TypeAlias = npt.NDArray[np.float32]
"""float32[d]"""
Precise: TypeAlias = npt.NDArray[np.float64]
"""float64[d]"""


def to_bytes(vector: Vector) -> bytes:
    """The vector's wire form: float32, little-endian, 4·d bytes."""
    return vector.astype("<f4", copy=False).tobytes()


def frozen_copy(values: npt.ArrayLike, kind: type[np.floating[Any]]) -> npt.NDArray[Any]:
    """A copy in the given float type that cannot be written to, so that a state stays what it was."""
    made = np.array(values, dtype=kind)
    made.setflags(write=False)
    return made
