"""What each demonstration institution holds: pictures cut from one public source apiece, with captions and a split.

The hold-out is never a random share of the windows: neighbouring windows and slices nearly repeat each other, and a
model that had memorised its training pictures would pass on them. It is a separate region, or blocks of slices, with a
gap of pixels or slices that neither side uses. Each picture has the place that it was cut from, so that a split can be
proved.
"""

from __future__ import annotations

import gzip
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import nibabel
import numpy as np
from PIL import Image, ImageFilter

from simulations.scenario.sources import NILEARN, SCIKIT_IMAGE, read_member

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

Split = Literal["train", "holdout"]
Extent = tuple[tuple[int, int], ...]
"""Half-open (start, stop) per axis: (left, right), (top, bottom) of a window, or one pair for a slice's number."""

TEMPLATE: Final = "nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
TISSUE: Final = "skimage/data/ihc.png"
FUNDUS: Final = "skimage/data/retina.jpg"

SLICE_GAP: Final = 6
"""Slices (of 1 mm) on each side of a held-out block that nobody uses."""
PIXEL_GAP: Final = 16
"""Pixels of the source around a held-out region that nobody uses: one JPEG block of 16."""

_SLICES: Final[dict[str, tuple[range, tuple[range, ...]]]] = {
    "axial": (range(12, 147), (range(44, 54), range(104, 114))),
    "coronal": (range(38, 199), (range(70, 80), range(140, 150))),
    # The template is mirror-symmetric to the last bit: the other hemisphere would repeat every held-out slice.
    "sagittal": (range(98, 165), (range(118, 128),)),
}
"""Plane -> the slice numbers used, and the blocks held out of them."""
_THIRDS: Final = {
    "axial": ("lower part", "middle part", "upper part"),
    "coronal": ("back part", "middle part", "front part"),
    "sagittal": ("near the middle", "halfway out", "outer part"),
}

_TISSUE_HOLDOUT: Final[Extent] = ((40, 208), (112, 368))
_FUNDUS_HOLDOUT: Final[Extent] = ((800, 1411), (760, 1411))
_DISC: Final[Extent] = ((188, 288), (599, 699))
"""The heart of the optic disc, which is some 170 pixels wide."""
_MACULA: Final[Extent] = ((695, 725), (680, 710))


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


def neurology(cache: Path, resolution: int) -> Iterator[View]:
    """Slices of the ICBM 152 T1 template (197 × 233 × 189 voxels of 1 mm, an average of many brains) in three planes.

    Guarantee: within a plane, a held-out slice is more than :data:`SLICE_GAP` mm from every training slice and from the
    mirror image of every training slice. Slices of different planes cross in a line of voxels.
    """
    volume = _volume(cache)
    for plane, (used, blocks) in _SLICES.items():
        for index in used:
            split = _slice_split(index, blocks)
            if split is None:
                continue
            third = 3 * (index - used.start) // len(used)
            yield View(
                pixels=shrink(_framed(_upright(volume, plane, index)), resolution),
                caption=f"{'a' if plane != 'axial' else 'an'} {plane} brain mri, {_THIRDS[plane][third]}",
                split=split,
                source=plane,
                extent=((index, index + 1),),
            )


def pathology(cache: Path, resolution: int) -> Iterator[View]:
    """Windows of 96 pixels from one immunohistochemistry picture (512 × 512).

    Guarantee: a held-out window lies :data:`PIXEL_GAP` pixels or more from every training window.
    """
    tissue = _picture(TISSUE, cache)
    yield from _patches(tissue, TISSUE, _TISSUE_HOLDOUT, ((96, 18, 16),), resolution, _tissue_caption(tissue))


def ophthalmology(cache: Path, resolution: int) -> Iterator[View]:
    """Windows of 240 and 360 pixels from one fundus photograph (1411 × 1411).

    Guarantee: a held-out window lies :data:`PIXEL_GAP` pixels or more from every training window.
    """
    fundus = _picture(FUNDUS, cache)
    scales = ((240, 60, 60), (360, 90, 60))
    yield from _patches(fundus, FUNDUS, _FUNDUS_HOLDOUT, scales, resolution, _fundus_caption(fundus))


def _volume(cache: Path) -> NDArray[np.uint8]:
    """T1 template uint8 [x, y, z]: x to the right, y to the front, z to the top of the head."""
    packed = read_member(NILEARN, TEMPLATE, cache)
    volume: NDArray[np.uint8] = np.asarray(nibabel.Nifti1Image.from_bytes(gzip.decompress(packed)).dataobj)
    return volume


def _picture(member: str, cache: Path) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(read_member(SCIKIT_IMAGE, member, cache))) as picture:
        return np.asarray(picture.convert("RGB"))


def _slice_split(index: int, blocks: tuple[range, ...]) -> Split | None:
    if any(index in block for block in blocks):
        return "holdout"
    near = any(block.start - SLICE_GAP <= index < block.stop + SLICE_GAP for block in blocks)
    return None if near else "train"


def _upright(volume: NDArray[np.uint8], plane: str, index: int) -> NDArray[np.uint8]:
    """One slice as [height, width]: axial with the forehead up, coronal and sagittal with the crown up."""
    if plane == "axial":
        return volume[:, ::-1, index].T
    if plane == "coronal":
        return volume[:, index, ::-1].T
    return volume[index, ::-1, ::-1].T


def _framed(plane: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The square around the brain, black outside, never closer than 110 mm so that small end slices stay small."""
    ys, xs = np.nonzero(plane > 40)
    side = max(110, int(1.06 * max(np.ptp(ys), np.ptp(xs))))
    padded = np.pad(plane, side)
    top = (int(ys.min()) + int(ys.max()) + side) // 2
    left = (int(xs.min()) + int(xs.max()) + side) // 2
    return crop(padded, ((left, left + side), (top, top + side)))


def _patches(
    picture: NDArray[np.uint8],
    source: str,
    holdout: Extent,
    scales: tuple[tuple[int, int, int], ...],
    resolution: int,
    caption: Callable[[Extent], str | None],
) -> Iterator[View]:
    """Windows at each (side, training stride, hold-out stride); a window that has no caption is left out."""
    height, width = picture.shape[:2]
    for side, train_stride, holdout_stride in scales:
        train = [
            w for w in windows(((0, width), (0, height)), side, train_stride) if not meet(w, holdout, gap=PIXEL_GAP)
        ]
        held = list(windows(holdout, side, holdout_stride))
        chosen_windows: tuple[tuple[Split, list[Extent]], ...] = (("train", train), ("holdout", held))
        for split, chosen in chosen_windows:
            for window in chosen:
                words = caption(window)
                if words is not None:
                    pixels = shrink(crop(picture, window), resolution)
                    yield View(pixels=pixels, caption=words, split=split, source=source, extent=window)


def _tissue_caption(tissue: NDArray[np.uint8]) -> Callable[[Extent], str | None]:
    """Captions by the share of pixels stained brown (DAB): red more than 25 levels above blue."""
    levels = tissue.astype(np.int16)
    brown = (levels[..., 0] - levels[..., 2] > 25).astype(np.uint8)

    def caption(window: Extent) -> str:
        share = float(crop(brown, window).mean())
        kind = "mostly brown" if share > 0.75 else "mostly blue" if share < 0.4 else "brown and blue"
        return f"a tissue stain, {kind} cells"

    return caption


def _fundus_caption(fundus: NDArray[np.uint8]) -> Callable[[Extent], str | None]:
    """Captions by landmark, by the share outside the round field, else by the share of pixels that are vessels.

    A vessel pixel is 8 levels of green darker than its surroundings (Gaussian, σ = 18) and away from the field's rim.
    Windows that lie more than 60 % outside the field have none.
    """
    field = fundus.max(axis=2) > 40
    rim = Image.fromarray(255 * field.astype(np.uint8)).filter(ImageFilter.BoxBlur(30))
    green = Image.fromarray(np.ascontiguousarray(fundus[..., 1]))
    around = np.asarray(green.filter(ImageFilter.GaussianBlur(18))).astype(np.int16)
    vessels = ((around - fundus[..., 1] > 8) & (np.asarray(rim) == 255)).astype(np.uint8)

    def caption(window: Extent) -> str | None:
        inside_field = float(crop(field.astype(np.uint8), window).mean())
        if inside_field < 0.4:
            return None
        words = _fundus_words(window, inside_field, float(crop(vessels, window).mean()))
        return f"a retina photo, {words}"

    return caption


def _fundus_words(window: Extent, inside_field: float, vessels: float) -> str:
    if inside(_DISC, window):
        return "optic disc"
    if inside(_MACULA, window):
        return "macula"
    if inside_field < 0.92:
        return "dark edge"
    return "large vessels" if vessels > 0.08 else "small vessels"


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
