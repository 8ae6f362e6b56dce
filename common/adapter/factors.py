"""Values of LoRA factors that everybody computes alike: from a public seed, or from the frozen base weight.

Nothing here is secret or private noise; the opposite is wanted, that all institutions get the same numbers. The draws
come from the raw words of a counter-based generator, whose stream is fixed, and not from a library's normal sampler,
whose stream may change between versions.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


def kaiming_rows(shape: tuple[int, ...], seed: int, name: str) -> Tensor:
    """LoRA's usual A: uniform within ±1/√(fan-in), as PEFT draws it, but from the public seed.

    Args:
        shape: ``[r, in]``, or ``[r, in, k, k]`` for a convolution.
        seed: The run's public adapter seed.
        name: The module's name in the UNet; each module has its own stream.

    """
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    values = (2 * _uniform(math.prod(shape), seed, name) - 1) * bound
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)


def orthonormal_rows(shape: tuple[int, ...], seed: int, name: str) -> Tensor:
    """A frozen A whose flattened rows are orthonormal and span a uniformly random subspace.

    QR decomposition in float64 of a Gaussian matrix, with the signs that make R's diagonal positive, which makes the
    result unique and Haar-distributed (Mezzadri 2007, arXiv:math-ph/0609050). Needs r ≤ in·k·k.

    Args:
        shape: ``[r, in]``, or ``[r, in, k, k]`` for a convolution.
        seed: The run's public adapter seed.
        name: The module's name in the UNet; each module has its own stream.

    """
    rank, columns = shape[0], math.prod(shape[1:])
    q, r = np.linalg.qr(_gaussian(rank * columns, seed, name).reshape(columns, rank))
    rows = (q * np.where(np.diagonal(r) < 0, -1.0, 1.0)).T
    return torch.from_numpy(rows.astype(np.float32)).reshape(shape)


def principal_factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The truncated singular value decomposition of a base weight, split as LoRA-XS splits it.

    Bałazy et al. 2024, arXiv:2405.17604: the frozen factors are U_r·Σ_r and V_rᵀ. Computed in float64. Each singular
    pair has the sign that makes the largest entry of its right vector positive. Needs r ≤ min(out, in·k·k).

    Args:
        weight: ``[out, in]`` or ``[out, in, k, k]``.
        rank: Number r of singular pairs kept.

    Returns:
        U_r·Σ_r as ``[out, r]`` and V_rᵀ as ``[r, in·k·k]``, float32.

    """
    u, s, vh = torch.linalg.svd(weight.detach().to("cpu", torch.float64).flatten(1), full_matrices=False)
    left, right = u[:, :rank] * s[:rank], vh[:rank]
    largest = right.gather(1, right.abs().argmax(dim=1, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0).to(torch.float64)
    return (left * signs.T).float(), (right * signs).float()


def _uniform(count: int, seed: int, name: str) -> NDArray[np.float64]:
    """Numbers in [0, 1), multiples of 2⁻⁵³."""
    key = hashlib.sha256(f"darkroom/factors/{seed}/{name}".encode()).digest()[:16]
    words = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(count)
    return np.asarray(words >> np.uint64(11), dtype=np.float64) * 2.0**-53


def _gaussian(count: int, seed: int, name: str) -> NDArray[np.float64]:
    """Standard normal numbers by Box and Muller's transform."""
    uniform = _uniform(2 * count, seed, name)
    radius = np.sqrt(-2 * np.log1p(-uniform[:count]))
    return np.asarray(radius * np.cos(2 * np.pi * uniform[count:]), dtype=np.float64)
