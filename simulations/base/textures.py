"""Pictures that only the autoencoder is trained on: photographs, grey pictures, procedural textures, line art.

An autoencoder trained on flat icons alone reconstructs photographic and grey pictures at 20 dB, and whatever a LoRA
then learns stays blurry. Nothing here comes from a picture that a demonstration institution holds.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from simulations.base.pictures import RESOLUTION, all_icons
from simulations.scenario.sources import SCIKIT_IMAGE, SCIKIT_LEARN, read_member

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_PHOTOGRAPHS: Final = (
    (SCIKIT_IMAGE, "skimage/data/astronaut.png"),
    (SCIKIT_IMAGE, "skimage/data/brick.png"),
    (SCIKIT_IMAGE, "skimage/data/camera.png"),
    (SCIKIT_IMAGE, "skimage/data/chelsea.png"),
    (SCIKIT_IMAGE, "skimage/data/coffee.png"),
    (SCIKIT_IMAGE, "skimage/data/coins.png"),
    (SCIKIT_IMAGE, "skimage/data/grass.png"),
    (SCIKIT_IMAGE, "skimage/data/gravel.png"),
    (SCIKIT_IMAGE, "skimage/data/hubble_deep_field.jpg"),
    (SCIKIT_IMAGE, "skimage/data/moon.png"),
    (SCIKIT_IMAGE, "skimage/data/motorcycle_left.png"),
    (SCIKIT_IMAGE, "skimage/data/page.png"),
    (SCIKIT_IMAGE, "skimage/data/rocket.jpg"),
    (SCIKIT_LEARN, "sklearn/datasets/images/china.jpg"),
    (SCIKIT_LEARN, "sklearn/datasets/images/flower.jpg"),
)


def autoencoder_pool(cache: Path, rng: np.random.Generator, size: int = RESOLUTION) -> NDArray[np.uint8]:
    """RGB uint8 [n, size, size, 3]: icons at two scales, photographic crops and procedural pictures."""
    large = list(all_icons(cache, 2 * size))
    icons = [_icon_view(icon, rng, size) for icon in large]
    photographs = [_open(read_member(package, member, cache)) for package, member in _PHOTOGRAPHS]
    crops = [_photo_crop(photographs[i % len(photographs)], rng, size) for i in range(5000)]
    clouds = [_coloured_noise(rng, size) for _ in range(2500)]
    shapes = [_shapes(rng, size) for _ in range(2500)]
    return np.stack(icons + crops + clouds + shapes)


def _open(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as picture:
        return picture.convert("RGB")


def _icon_view(pixels: NDArray[np.uint8], rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """The whole icon, or, one time in four, a crop at twice the scale."""
    if rng.random() < 0.25:
        top, left = rng.integers(0, size, 2)
        return pixels[top : top + size, left : left + size]
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BOX), dtype=np.uint8)


def _photo_crop(photo: Image.Image, rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """A square of random scale and place; sometimes grey, inverted, darkened or on a black surround."""
    edge = int(np.exp(rng.uniform(np.log(size), np.log(min(photo.size)))))
    left = int(rng.integers(0, photo.width - edge + 1))
    top = int(rng.integers(0, photo.height - edge + 1))
    crop = photo.crop((left, top, left + edge, top + edge)).resize((size, size), Image.Resampling.BOX)
    pixels = np.asarray(crop, dtype=np.float32) / 255
    return _vary(pixels, rng)


def _vary(pixels: NDArray[np.floating], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Grey, inverted, brighter or darker, tinted or on black, each by chance."""
    if rng.random() < 0.4:
        pixels = np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2)
    if rng.random() < 0.2:
        pixels = 1 - pixels
    if rng.random() < 0.4:
        pixels = pixels ** np.float32(np.exp(rng.normal(0, 0.5)))
    if rng.random() < 0.4:
        tint = rng.uniform(0.3, 1.0, (1, 1, 3)).astype(np.float32)
        pixels = pixels * tint + (1 - tint) * np.float32(rng.uniform(0, 0.6))
    if rng.random() < 0.15:
        pixels = pixels * _disc(rng, pixels.shape[0])[..., None]
    return np.asarray(np.clip(pixels * 255, 0, 255), dtype=np.uint8)


def _disc(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """A soft ellipse: 1 inside, 0 outside, as around a scanned object on black."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    centre = rng.uniform(0.4 * size, 0.6 * size, 2)
    radius = rng.uniform(0.25 * size, 0.6 * size, 2)
    distance = np.hypot((y - centre[0]) / radius[0], (x - centre[1]) / radius[1])
    return np.asarray(np.clip((1.03 - distance) * 15, 0, 1), dtype=np.float32)


def _power_law_noise(rng: np.random.Generator, size: int, exponent: float) -> NDArray[np.float32]:
    """Zero-mean unit-variance noise whose amplitude falls as frequency^-exponent."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    frequency[0, 0] = 1
    phase = rng.normal(size=frequency.shape) + 1j * rng.normal(size=frequency.shape)
    noise = np.fft.irfft2(phase * frequency**-exponent, s=(size, size))
    return np.asarray((noise - noise.mean()) / (noise.std() + 1e-6), dtype=np.float32)


def _coloured_noise(rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """A blend of two or three colours steered by power-law noise, sometimes with dark spots or thin branches."""
    palette = rng.uniform(0, 1, (3, 3)).astype(np.float32)
    mix = 1 / (1 + np.exp(-rng.uniform(0.7, 4) * _power_law_noise(rng, size, rng.uniform(0.6, 2.0))))
    pixels = palette[0] * mix[..., None] + palette[1] * (1 - mix[..., None])
    if rng.random() < 0.6:
        spots = _power_law_noise(rng, size, rng.uniform(0.8, 1.6)) > rng.uniform(0.8, 2.0)
        strength = rng.uniform(0.3, 1.0)
        pixels = np.where(spots[..., None], (1 - strength) * pixels + strength * palette[2], pixels)
    if rng.random() < 0.4:
        ridges = np.abs(_power_law_noise(rng, size, rng.uniform(1.3, 2.2))) < rng.uniform(0.03, 0.15)
        pixels = np.where(ridges[..., None], 0.5 * pixels + 0.5 * palette[2], pixels)
    return _vary(np.asarray(pixels, dtype=np.float32), rng)


def _shapes(rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """Random ellipses, polygons and strokes: sharp edges, outlines and thin lines in any colour on any ground."""
    scale = 3
    picture = Image.new("RGB", (size * scale, size * scale), _colour(rng))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(2, 9))):
        points = [tuple(p) for p in rng.uniform(0, size * scale, (int(rng.integers(3, 6)), 2))]
        kind = rng.integers(0, 4)
        if kind == 0:
            draw.polygon(points, fill=_colour(rng), outline=_colour(rng))
        elif kind == 1:
            draw.line(points, fill=_colour(rng), width=int(rng.integers(1, 10)))
        else:
            (x0, y0), radius = points[0], rng.uniform(3, size * scale / 2, 2)
            box = (x0 - radius[0], y0 - radius[1], x0 + radius[0], y0 + radius[1])
            draw.ellipse(box, fill=_colour(rng), outline=_colour(rng), width=int(rng.integers(1, 8)))
    if rng.random() < 0.3:
        picture = picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 6))))
    small = picture.resize((size, size), Image.Resampling.BOX)
    return _vary(np.asarray(small, dtype=np.float32) / 255, rng)


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 256, 3)
    return int(red), int(green), int(blue)
