"""Look for text that is burned into a picture, such as a patient's name in the corner of a scan.

Such text is drawn in one brightness on a calmer ground, in a row of parts of like height. So parts that stand out from
their surroundings are cut out, bright and dark ones apart, and rows of at least :data:`MIN_GLYPHS` of them that look
alike are counted as lines of text, if little but other rows stands out above and below them (twigs, gravel and dither
stand out everywhere), and if large parts have one brightness (coins and fences have not).

Finds printed overlays of about 8 to 60 pixels in height (of a picture at most 1024 pixels wide). Misses handwriting,
slanted or curved text, letters that touch each other, text of low contrast or in the midst of twigs and leaves, fewer
than four letters, and larger or smaller type; and takes some rows of like parts, such as a ruler's marks, for text. It
is a help for the person who looks at the contact sheet, and no proof that a picture holds no text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image
from scipy import ndimage

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION: Final = 2
MAX_SIDE: Final = 1024
MIN_GLYPHS: Final = 4
_CONTRAST: Final = 48
"""Grey levels by which a part must stand out; burned-in text is usually at the end of the scale."""
_WINDOW: Final = 13
"""Pixels; strokes wider than this are not taken for letters."""
_HEIGHTS: Final = (6, 64)
_MAX_PARTS: Final = 3000
"""More parts than this are a texture."""
_MAX_CLUTTER: Final = 0.18
"""Share of the strips above and below a row, of 0.6 of its height each, that may stand out as well."""
_RULE: Final = (3, 40)
"""Pixels: what is at most so thin and at least so long is a rule or a frame's side, and no clutter."""
_MAX_SLOPE: Final = 0.4
"""Of a row's height: how far apart the lower ends of its parts may be, tails of letters included; fences run uphill."""
_LARGE: Final = 16
"""Pixels of height from which a part tells its brightness; smaller letters are all edge."""
_LONG: Final = 8
"""So many parts in one row are hardly ever anything but letters, however rough a JPEG made them."""
_MAX_UNEVENNESS: Final = 0.19
"""Of a part's contrast: how far its 90th percentile of brightness may be above its median. A quarter of a row's parts
must be so even. Printed letters are, also in a JPEG of quality 40, nearly always; coins and fences are not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Parts:
    """One row a part: its label, top, bottom, left and right in pixels, and its brightness."""

    label: NDArray[np.intp]

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
    ground = _ground(grey)
    labels, count = ndimage.label((grey - ground) > _CONTRAST, structure=np.ones((3, 3)))
    if not MIN_GLYPHS <= count <= _MAX_PARTS * 4:
        return 0
    boxes, area = _boxes(labels, count)
    parts = _letter_like(grey, labels, boxes, area)
    if parts is None:
        return 0
    rows = _rows(parts)
    if not rows:
        return 0
    other = _clutter(boxes, area)
    other[parts.label[np.concatenate(rows)]] = False
    clutter = other[labels]
    return sum(_is_clear(clutter, parts, row) and _is_even(grey, ground, labels, parts, row) for row in rows)


def _ground(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What remains when bright parts narrower than the window are taken away; at half the resolution, for speed."""
    height, width = grey.shape
    even = np.pad(grey, ((0, height % 2), (0, width % 2)), mode="edge")
    half = np.minimum(np.minimum(even[::2, ::2], even[1::2, ::2]), np.minimum(even[::2, 1::2], even[1::2, 1::2]))
    opened = ndimage.grey_opening(half, size=(_WINDOW // 2 + 1, _WINDOW // 2 + 1))
    return np.asarray(np.minimum(opened.repeat(2, axis=0).repeat(2, axis=1)[:height, :width], grey), np.uint8)


def _boxes(labels: NDArray[np.int32], count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Top, bottom, left and right of every part, and its pixels; part n is in row n - 1."""
    found = ndimage.find_objects(labels)
    boxes = np.array([(rows.start, rows.stop, columns.start, columns.stop) for rows, columns in found])
    return boxes, np.bincount(labels.ravel(), minlength=count + 1)[1:]


def _letter_like(
    grey: NDArray[np.uint8], labels: NDArray[np.int32], boxes: NDArray[np.intp], area: NDArray[np.intp]
) -> _Parts | None:
    shade = np.zeros(area.size, np.float64)
    mask = labels > 0
    np.maximum.at(shade, labels[mask] - 1, grey[mask])
    height, width = boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]
    fill = area / (height * width)
    good = (height >= _HEIGHTS[0]) & (height <= _HEIGHTS[1]) & (width <= 1.6 * height) & (fill > 0.15) & (fill < 0.9)
    good |= (height >= _HEIGHTS[0]) & (height <= _HEIGHTS[1]) & (width * 2.5 < height) & (fill > 0.5)  # I, l, 1
    if not MIN_GLYPHS <= good.sum() <= _MAX_PARTS:
        return None
    top, bottom, left, right = boxes[good].astype(np.float64).T
    label = np.flatnonzero(good) + 1
    return _Parts(label=label, top=top, bottom=bottom, left=left, right=right, shade=shade[good])


def _clutter(boxes: NDArray[np.intp], area: NDArray[np.intp]) -> NDArray[np.bool_]:
    """By label: which parts are no rules or frames, such as lie around the fields of a form."""
    height, width = boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]
    thin, long = np.minimum(height, width), np.maximum(height, width)
    ruled = ((thin <= _RULE[0]) & (long >= _RULE[1])) | (area < 0.05 * height * width)
    return np.concatenate([[False], ~ruled])


def _is_clear(clutter: NDArray[np.bool_], parts: _Parts, row: NDArray[np.intp]) -> bool:
    """Whether little stands out above and below the row."""
    top, bottom = int(parts.top[row].min()), int(parts.bottom[row].max())
    left, right = int(parts.left[row].min()), int(parts.right[row].max())
    reach = max(1, round(0.6 * float(np.median(parts.bottom[row] - parts.top[row]))))
    strips = (clutter[max(0, top - reach) : top, left:right], clutter[bottom : bottom + reach, left:right])
    return sum(int(strip.sum()) for strip in strips) <= _MAX_CLUTTER * max(1, sum(strip.size for strip in strips))


def _is_even(
    grey: NDArray[np.uint8],
    ground: NDArray[np.uint8],
    labels: NDArray[np.int32],
    parts: _Parts,
    row: NDArray[np.intp],
) -> bool:
    """Whether the parts are of one brightness within, as far as they are large enough to tell."""
    if row.size >= _LONG or np.median(parts.bottom[row] - parts.top[row]) < _LARGE:
        return True
    unevenness = []
    for part in row:
        edges = (parts.top[part], parts.bottom[part], parts.left[part], parts.right[part])
        top, bottom, left, right = (int(edge) for edge in edges)
        box = slice(top, bottom), slice(left, right)
        middle, bright = np.percentile(grey[box][labels[box] == parts.label[part]], (50, 90))
        unevenness.append((bright - middle) / max(1.0, bright - float(np.median(ground[box]))))
    return bool(np.percentile(unevenness, 25) <= _MAX_UNEVENNESS)


def _rows(parts: _Parts) -> list[NDArray[np.intp]]:
    """Level chains of parts in which each has its right neighbour near, as high, as bright and on the same line."""
    following = _right_neighbours(parts)
    starts = np.setdiff1d(np.arange(following.size), following[following >= 0])
    chains = (np.array(_chain(following, int(start))) for start in starts)
    return [chain for chain in chains if chain.size >= MIN_GLYPHS and _is_level(parts, chain)]


def _is_level(parts: _Parts, row: NDArray[np.intp]) -> bool:
    bottom = parts.bottom[row]
    return bool(np.ptp(bottom) <= max(3.0, _MAX_SLOPE * float(np.median(bottom - parts.top[row]))))


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


def _chain(following: NDArray[np.intp], start: int) -> list[int]:
    seen: dict[int, None] = {}
    while start >= 0 and start not in seen:
        seen[start] = None
        start = int(following[start])
    return list(seen)
