"""Pictures cut from one large public source, each with the place it was cut from, so that a split can be proved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

Split = Literal["train", "holdout"]
Extent = tuple[tuple[int, int], ...]
"""Half-open (start, stop) per axis: (left, right), (top, bottom) of a window, or one pair for a slice's number."""


@dataclass(frozen=True, kw_only=True)
class View:
    """One picture of an institution."""

    pixels: NDArray[np.uint8]
    """RGB [resolution, resolution, 3]."""
    caption: str
    split: Split
    source: str
    """The picture, or the plane of a volume, that it was cut from."""
    extent: Extent


def meet(first: Extent, second: Extent, *, gap: int = 0) -> bool:
    """Whether two extents of one source share a cell, or lie closer than ``gap`` cells on every axis."""
    return all(a0 < b1 + gap and b0 < a1 + gap for (a0, a1), (b0, b1) in zip(first, second, strict=True))


def inside(inner: Extent, outer: Extent) -> bool:
    """Whether the inner extent lies wholly in the outer one."""
    return all(b0 <= a0 and a1 <= b1 for (a0, a1), (b0, b1) in zip(inner, outer, strict=True))


def windows(region: Extent, side: int, stride: int) -> Iterator[Extent]:
    """Square windows inside a region, row by row, from its upper left corner."""
    (left, right), (top, bottom) = region
    for y in range(top, bottom - side + 1, stride):
        for x in range(left, right - side + 1, stride):
            yield (x, x + side), (y, y + side)


def crop(plane: NDArray[np.uint8], window: Extent) -> NDArray[np.uint8]:
    """The part of a plane [height, width, ...] under a window."""
    (left, right), (top, bottom) = window
    return plane[top:bottom, left:right]


def shrink(pixels: NDArray[np.uint8], resolution: int) -> NDArray[np.uint8]:
    """Grey or RGB uint8 [n, n(, 3)] as RGB [resolution, resolution, 3], resampled without aliasing."""
    picture = Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")
    return np.asarray(picture.resize((resolution, resolution), Image.Resampling.LANCZOS))
