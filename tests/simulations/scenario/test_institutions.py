from __future__ import annotations

import gzip
import io
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel
import numpy as np
import pytest
from PIL import Image

from common.errors import DataError, SourceUnavailable
from simulations.scenario import institution_views
from simulations.scenario import medical as institutions
from simulations.scenario.folder_latents import load_pixels
from simulations.scenario.imagefolder import check_images, look_at, read_imagefolder
from simulations.scenario.institution_views import (
    PIXEL_GAP,
    SLICE_GAP,
    Extent,
    View,
    inside,
    meet,
    neurology,
    ophthalmology,
    pathology,
    windows,
)
from simulations.scenario.medical import build_institutions
from simulations.scenario.sources import NILEARN, SCIKIT_IMAGE, DataPackage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

Views = tuple[View, ...]
CACHE = Path(__file__).parents[3] / ".cache" / "sources"
PATCHED = (pathology, ophthalmology)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=0)
    return file.getvalue()


def _nifti(volume: NDArray[np.uint8]) -> bytes:
    return gzip.compress(nibabel.Nifti1Image(volume, np.eye(4)).to_bytes(), 0)


def stand_ins(seed: int) -> dict[str, NDArray[np.uint8]]:
    """Noise in the shapes of the real sources: a head-sized ellipsoid, a square, a bright disc on black."""
    rng = np.random.default_rng(seed)
    x, y, z = (np.linspace(-1, 1, n) for n in (197, 233, 189))
    head = x[:, None, None] ** 2 + y[None, :, None] ** 2 + z[None, None, :] ** 2 < 1
    row, column = np.mgrid[-705:706, -705:706]
    field = (row**2 + column**2 < 690**2)[..., None]
    return {
        institution_views.TEMPLATE: rng.integers(50, 256, head.shape, np.uint8) * head,
        institution_views.TISSUE: rng.integers(0, 256, (512, 512, 3), np.uint8),
        institution_views.FUNDUS: rng.integers(50, 256, (1411, 1411, 3), np.uint8) * field,
    }


def serve(monkeypatch: pytest.MonkeyPatch, sources: dict[str, NDArray[np.uint8]]) -> None:
    def read(_: DataPackage, member: str, __: Path) -> bytes:
        return (_nifti if member.endswith(".nii.gz") else _png)(sources[member])

    monkeypatch.setattr(institution_views, "read_member", read)


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch) -> dict[str, NDArray[np.uint8]]:
    """Stand-ins for the sources, so that nothing is fetched."""
    sources = stand_ins(11)
    serve(monkeypatch, sources)
    return sources


@pytest.fixture(scope="session")
def real_views() -> dict[str, Views]:
    for package in (NILEARN, SCIKIT_IMAGE):
        if not list(CACHE.glob(f"{package.name.replace('-', '_')}-{package.version}-*.whl")):
            pytest.skip(f"{package.name} {package.version} is not in {CACHE}")
    return {build.__name__: tuple(build(CACHE, 48)) for build in (neurology, pathology, ophthalmology)}


def seen(views: Views, split: str, size: int) -> NDArray[np.bool_]:
    """Pixels of the source that some window of the split covers, painted one by one."""
    mask = np.zeros((size, size), bool)
    for view in views:
        if view.split == split:
            (left, right), (top, bottom) = view.extent
            mask[top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize("build", PATCHED, ids=lambda build: build.__name__)
def test_no_held_out_window_shares_a_pixel_with_a_training_window(
    noise: dict[str, NDArray[np.uint8]], build: Callable[[Path, int], Iterator[View]]
) -> None:
    views = tuple(build(CACHE, 16))
    size = noise[views[0].source].shape[0]
    train, holdout = (np.pad(seen(views, split, size), PIXEL_GAP) for split in ("train", "holdout"))
    assert holdout.any()
    for down in range(-PIXEL_GAP + 1, PIXEL_GAP, 3):
        for right in range(-PIXEL_GAP + 1, PIXEL_GAP, 3):
            assert not (np.roll(holdout, (down, right), (0, 1)) & train).any()


@pytest.mark.parametrize("build", PATCHED, ids=lambda build: build.__name__)
def test_training_pictures_depend_on_no_pixel_outside_their_windows(
    noise: dict[str, NDArray[np.uint8]],
    monkeypatch: pytest.MonkeyPatch,
    build: Callable[[Path, int], Iterator[View]],
) -> None:
    """The recorded extents are true: scrambling every other pixel of the source changes no training picture."""
    views = tuple(build(CACHE, 16))
    source = views[0].source
    train = seen(views, "train", noise[source].shape[0])[..., None]
    scrambled = np.where(train, noise[source], np.maximum(255 - noise[source], 41)).astype(np.uint8)
    serve(monkeypatch, noise | {source: scrambled})
    again = {view.extent: view.pixels for view in build(CACHE, 16) if view.split == "train"}
    for view in views:
        if view.split == "train":
            np.testing.assert_array_equal(view.pixels, again[view.extent])


@pytest.mark.usefixtures("noise")
def test_held_out_slices_are_far_from_training_slices_and_from_their_mirror_images() -> None:
    views = tuple(neurology(CACHE, 16))
    for plane in ("axial", "coronal", "sagittal"):
        held = [v.extent[0][0] for v in views if v.source == plane and v.split == "holdout"]
        train = [v.extent[0][0] for v in views if v.source == plane and v.split == "train"]
        mirrored = [196 - index for index in train] if plane == "sagittal" else []
        assert held
        assert min(abs(h - t) for h in held for t in train + mirrored) > SLICE_GAP


def test_a_slice_of_one_plane_shows_that_slice_alone(
    noise: dict[str, NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {(v.source, v.extent): v.pixels for v in neurology(CACHE, 16)}
    changed = noise[institution_views.TEMPLATE].copy()
    changed[:, :, 104:114][changed[:, :, 104:114] > 0] = 255
    serve(monkeypatch, noise | {institution_views.TEMPLATE: changed})
    after = {(v.source, v.extent): v.pixels for v in neurology(CACHE, 16)}
    differing = {
        extent[0][0]
        for (plane, extent), pixels in after.items()
        if plane == "axial" and not np.array_equal(pixels, before[plane, extent])
    }
    assert differing == set(range(104, 114))


def test_real_counts_captions_and_pictures(real_views: dict[str, Views]) -> None:
    for views in real_views.values():
        train = [v for v in views if v.split == "train"]
        held = [v for v in views if v.split == "holdout"]
        assert 200 <= len(train) <= 450
        assert 40 <= len(held) <= 80
        assert {v.caption for v in held} <= {v.caption for v in train}
        assert all(len(v.caption.split()) <= 8 for v in views)
        assert all(v.pixels.shape == (48, 48, 3) and np.ptp(v.pixels) > 40 for v in views)
    wordings = [{v.caption.split(",")[0] for v in views} for views in real_views.values()]
    assert wordings == [
        {"an axial brain mri", "a coronal brain mri", "a sagittal brain mri"},
        {"a tissue stain"},
        {"a retina photo"},
    ]


def test_real_template_is_mirror_symmetric_so_one_hemisphere_is_used(real_views: dict[str, Views]) -> None:
    volume = institution_views._volume(CACHE)
    np.testing.assert_array_equal(volume, volume[::-1])
    assert min(v.extent[0][0] for v in real_views["neurology"] if v.source == "sagittal") == 98


def test_real_held_out_slices_differ_from_training_slices_more_than_neighbours_do(real_views: dict[str, Views]) -> None:
    def distance(a: View, b: View) -> float:
        return float(np.abs(a.pixels.astype(int) - b.pixels).mean())

    views = real_views["neurology"]
    neighbours = [
        distance(a, b)
        for a, b in itertools.pairwise(views)
        if a.source == b.source and b.extent[0][0] - a.extent[0][0] == 1
    ]
    train = [v for v in views if v.split == "train"]
    nearest = [min(distance(h, t) for t in train) for h in views if h.split == "holdout"]
    assert min(nearest) > np.median(neighbours)
    assert np.median(nearest) > 2 * np.median(neighbours)


def test_extents_against_a_painted_oracle() -> None:
    rng = np.random.default_rng(5)
    for _ in range(300):
        x0, y0, x1, y1 = rng.integers(0, 12, 4)
        w0, h0, w1, h1 = rng.integers(1, 9, 4)
        first: Extent = ((x0, x0 + w0), (y0, y0 + h0))
        second: Extent = ((x1, x1 + w1), (y1, y1 + h1))
        cells = [{(x, y) for x in range(*e[0]) for y in range(*e[1])} for e in (first, second)]
        assert meet(first, second) == bool(cells[0] & cells[1])
        assert inside(first, second) == (cells[0] <= cells[1])
        grown = ((x1 - 2, x1 + w1 + 2), (y1 - 2, y1 + h1 + 2))
        assert meet(first, second, gap=2) == meet(first, grown)


def test_windows_stay_in_their_region() -> None:
    region: Extent = ((3, 20), (5, 18))
    found = list(windows(region, 6, 4))
    assert found[0] == ((3, 9), (5, 11))
    assert len(found) == 3 * 2
    assert all(inside(window, region) for window in found)


@pytest.mark.usefixtures("noise")
def test_folders_are_image_folders_with_licences(tmp_path: Path) -> None:
    built = build_institutions(tmp_path / "new" / "root", resolution=24)
    assert [b.name for b in built] == ["neurology", "pathology", "ophthalmology"]
    for institution in built:
        readme = (institution.folder / "README.txt").read_text(encoding="utf-8")
        assert "Licence: " in readme
        assert "stand for one subject" in readme
        for folder in (institution.train, institution.holdout):
            assert look_at(folder).unlisted == ()
            pictures = read_imagefolder(folder)
            check_images(folder, pictures)
            assert {p.label for p in pictures} == {institution.name}
            with Image.open(folder / pictures[0].file_name) as stored:
                np.testing.assert_array_equal(load_pixels(folder, pictures[0], 24), np.asarray(stored))
            first_row = json.loads((folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()[0])
            assert set(first_row) == {"file_name", "text", "label", "source", "extent"}


@pytest.fixture
def built(noise: dict[str, NDArray[np.uint8]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of one small institution, below a root that builds only this one."""
    del noise
    only = tuple(i for i in institutions._INSTITUTIONS if i.name == "pathology")
    monkeypatch.setattr(institutions, "_INSTITUTIONS", only)
    return build_institutions(tmp_path, resolution=16)[0].folder


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_whole_folders_are_left_alone(built: Path) -> None:
    before = contents(built)
    build_institutions(built.parent, resolution=16)
    assert contents(built) == before


@pytest.mark.parametrize("fault", ["changed", "gone", "caption", "manifest", "resolution"])
def test_folders_with_a_fault_are_built_anew(built: Path, fault: str) -> None:
    before = {name: data for name, (data, _) in contents(built).items()}
    if fault == "changed":
        (built / "train" / "0000.png").write_bytes(b"")
    elif fault == "gone":
        (built / "holdout" / "0000.png").unlink()
    elif fault == "caption":
        with (built / "train" / "metadata.jsonl").open("a", encoding="utf-8") as rows:
            rows.write('{"file_name": "0000.png", "text": "x"}\n')
    elif fault == "manifest":
        (built / "manifest.json").write_text("{")
    else:
        build_institutions(built.parent, resolution=8)
        assert load_size(built) == 8
    build_institutions(built.parent, resolution=16)
    assert {name: data for name, (data, _) in contents(built).items()} == before
    assert load_size(built) == 16


def load_size(folder: Path) -> int:
    with Image.open(folder / "train" / "0000.png") as picture:
        return picture.width


def test_a_folder_that_is_not_ours_is_never_replaced(built: Path) -> None:
    (built / "manifest.json").unlink()
    before = contents(built)
    with pytest.raises(DataError, match="was not built here"):
        build_institutions(built.parent, resolution=16)
    assert contents(built) == before


def test_a_build_that_stops_half_way_leaves_the_old_folder_and_no_rest(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(built)

    def stop(*_: object) -> bytes:
        raise SourceUnavailable("no network")

    monkeypatch.setattr(institution_views, "read_member", stop)
    with pytest.raises(SourceUnavailable):
        build_institutions(built.parent, resolution=8)
    assert contents(built) == before
    assert list(built.parent.iterdir()) == [built]
