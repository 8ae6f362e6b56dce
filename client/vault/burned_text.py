"""Look for text that is burned into a picture, such as a patient's name in the corner of a scan.

Such text is drawn in one brightness on a calmer ground, in a row of parts of like height. So parts that stand out from
their surroundings are cut out, bright and dark ones apart, and rows of at least :data:`MIN_GLYPHS` of them that look
alike are counted as lines of text.

Finds printed overlays of about 8 to 60 pixels in height (of a picture at most 1024 pixels wide). Misses handwriting,
slanted or curved text, letters that touch each other, text of low contrast, fewer than four letters, and larger or
smaller type; and takes rows of like parts, such as the marks of a ruler or a fence, for text. It is a help for the
person who looks at the contact sheet, and no proof that a picture holds no text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image
from scipy import ndimage

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION: Final = 1
MAX_SIDE: Final = 1024
MIN_GLYPHS: Final = 4
_CONTRAST: Final = 48
"""Grey levels by which a part must stand out; burned-in text is usually at the end of the scale."""
_WINDOW: Final = 13
"""Pixels; strokes wider than this are not taken for letters."""
_HEIGHTS: Final = (6, 64)
_MAX_PARTS: Final = 3000
"""More parts than this are a texture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Parts:
    """One row a part: top, bottom, left and right in pixels, and its brightness."""

    top: NDArray[np.float64]
    bottom: NDArray[np.float64]
    left: NDArray[np.float64]
    right: NDArray[np.float64]
    shade: NDArray[np.float64]


def count_text_lines(pixels: NDArray[np.uint8]) -> int:
    """Rows of letter-like parts in RGB uint8 [height, width, 3]."""
    image = Image.fromarray(pixels).convert("L")
    if max(image.size) > MAX_SIDE:
        image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BOX)
    grey = np.asarray(image)
    return max(_count_bright(grey), _count_bright(255 - grey))


def _count_bright(grey: NDArray[np.uint8]) -> int:
    parts = _letter_like(grey, (grey - _ground(grey)) > _CONTRAST)
    return 0 if parts is None else _count_rows(parts)


def _ground(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What remains when bright parts narrower than the window are taken away; at half the resolution, for speed."""
    height, width = grey.shape
    even = np.pad(grey, ((0, height % 2), (0, width % 2)), mode="edge")
    half = np.minimum(np.minimum(even[::2, ::2], even[1::2, ::2]), np.minimum(even[::2, 1::2], even[1::2, 1::2]))
    opened = ndimage.grey_opening(half, size=(_WINDOW // 2 + 1, _WINDOW // 2 + 1))
    return np.asarray(np.minimum(opened.repeat(2, axis=0).repeat(2, axis=1)[:height, :width], grey), np.uint8)


def _letter_like(grey: NDArray[np.uint8], mask: NDArray[np.bool_]) -> _Parts | None:
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    if not MIN_GLYPHS <= count <= _MAX_PARTS * 4:
        return None
    found = ndimage.find_objects(labels)
    boxes = np.array([(rows.start, rows.stop, columns.start, columns.stop) for rows, columns in found])
    area = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    shade = np.zeros(count, np.float64)
    np.maximum.at(shade, labels[mask] - 1, grey[mask])
    height, width = boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]
    fill = area / (height * width)
    good = (height >= _HEIGHTS[0]) & (height <= _HEIGHTS[1]) & (width <= 1.6 * height) & (fill > 0.15) & (fill < 0.9)
    good |= (height >= _HEIGHTS[0]) & (height <= _HEIGHTS[1]) & (width * 2.5 < height) & (fill > 0.5)  # I, l, 1
    if not MIN_GLYPHS <= good.sum() <= _MAX_PARTS:
        return None
    top, bottom, left, right = boxes[good].astype(np.float64).T
    return _Parts(top=top, bottom=bottom, left=left, right=right, shade=shade[good])


def _count_rows(parts: _Parts) -> int:
    """Chains of parts in which each has its right neighbour near, as high, as bright and on the same line."""
    following = _right_neighbours(parts)
    starts = np.setdiff1d(np.arange(following.size), following[following >= 0])
    return sum(_chain_length(following, int(start)) >= MIN_GLYPHS for start in starts)


def _right_neighbours(parts: _Parts) -> NDArray[np.intp]:
    """Index of each part's right neighbour, or -1."""
    height = parts.bottom - parts.top
    gap = parts.left[None, :] - parts.right[:, None]
    tallest = np.maximum(height[:, None], height[None, :])
    fits = (gap >= -2) & (gap <= 0.8 * tallest)
    fits &= np.abs(parts.bottom[:, None] - parts.bottom[None, :]) <= np.maximum(1.5, 0.15 * tallest)
    fits &= np.minimum(height[:, None], height[None, :]) >= 0.6 * tallest
    fits &= np.abs(parts.shade[:, None] - parts.shade[None, :]) <= 24
    np.fill_diagonal(fits, val=False)
    nearest = np.where(fits, gap, np.inf).argmin(axis=1)
    return np.where(fits.any(axis=1), nearest, -1)


def _chain_length(following: NDArray[np.intp], start: int) -> int:
    seen: set[int] = set()
    while start >= 0 and start not in seen:
        seen.add(start)
        start = int(following[start])
    return len(seen)
