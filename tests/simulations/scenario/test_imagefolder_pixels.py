from __future__ import annotations

import io
import os
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from client.intake.pictures import read_formats
from common.errors import BadImage, DataError
from simulations.scenario.folder_latents import load_pixels
from simulations.scenario.imagefolder import Picture, check_images, decode

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RESOLUTION = 16


def picture(name: str) -> Picture:
    return Picture(file_name=name, caption="", subject_id=name, label="")


def paint(path: Path, **options: object) -> None:
    Image.new("RGB", (20, 20), (100, 100, 100)).save(path, **options)  # type: ignore[arg-type]


def test_picture_of_the_right_size_keeps_its_exact_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    loaded = load_pixels(tmp_path, picture("a.png"), 48)
    assert loaded.dtype == np.uint8
    assert loaded.flags.writeable
    np.testing.assert_array_equal(loaded, pixels)


def test_centre_square_is_kept(tmp_path: Path) -> None:
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = (10, 200, 30)
    for name, view in (("wide.png", pixels), ("tall.png", pixels.transpose(1, 0, 2))):
        Image.fromarray(np.ascontiguousarray(view)).save(tmp_path / name)
        assert (load_pixels(tmp_path, picture(name), 10) == (10, 200, 30)).all()


def test_shrinking_does_not_alias(tmp_path: Path) -> None:
    checks = (np.indices((320, 320)).sum(axis=0) % 2 * 255).astype(np.uint8)
    Image.fromarray(checks).save(tmp_path / "a.png")
    assert np.abs(load_pixels(tmp_path, picture("a.png"), 16).astype(int) - 127).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_followed(tmp_path: Path, orientation: int) -> None:
    """Independent oracle: the operations that the EXIF standard names, applied with numpy."""
    upright = np.random.default_rng(2).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    undo: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: np.rot90,
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(undo[orientation](upright))).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(load_pixels(tmp_path, picture("a.png"), 8), upright)


@pytest.mark.parametrize(
    ("mode", "colour", "wanted"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("LA", (0, 0), (255, 255, 255)),
        ("LA", (77, 255), (77, 77, 77)),
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("RGBA", (0, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 51), (255, 204, 204)),
    ],
)
def test_modes_become_rgb_on_white(tmp_path: Path, mode: str, colour: object, wanted: tuple[int, int, int]) -> None:
    Image.new(mode, (9, 9), colour).save(tmp_path / "a.png")  # type: ignore[arg-type]
    assert (load_pixels(tmp_path, picture("a.png"), 8) == wanted).all()


def test_palette_and_keyed_transparency_are_laid_on_white(tmp_path: Path) -> None:
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([200, 10, 10, 10, 200, 10])
    palette.save(tmp_path / "opaque.png")
    palette.save(tmp_path / "keyed.png", transparency=0)
    palette.save(tmp_path / "partly.png", transparency=bytes([0, 128]))
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "rgb.png", transparency=(9, 9, 9))
    assert (load_pixels(tmp_path, picture("opaque.png"), 8) == (200, 10, 10)).all()
    for name in ("keyed.png", "partly.png", "rgb.png"):
        assert (load_pixels(tmp_path, picture(name), 8) == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_each_named_format_is_read(tmp_path: Path, kind: str) -> None:
    paint(tmp_path / "picture", format=kind)
    assert load_pixels(tmp_path, picture("picture"), RESOLUTION).shape == (RESOLUTION, RESOLUTION, 3)


def png_of_declared_size(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def make_refused(folder: Path) -> dict[str, str]:
    """Files that must be refused, and a word that the reason must hold."""
    good = io.BytesIO()
    noise = np.random.default_rng(3).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(good, "JPEG")
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    (folder / "zero.png").touch()
    (folder / "cut.jpg").write_bytes(good.getvalue()[:-200])
    paint(folder / "tail.png")
    (folder / "tail.png").write_bytes((folder / "tail.png").read_bytes()[:-9])
    (folder / "text.png").write_text("not a picture")
    (folder / "page.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    (folder / "huge.png").write_bytes(png_of_declared_size(9000, 9000))
    (folder / "bomb.png").write_bytes(png_of_declared_size(60000, 60000))
    (folder / "lying.png").write_bytes(png_of_declared_size(400, 400))
    Image.fromarray(np.full((8, 8), 30000, np.uint16)).save(folder / "deep.png")
    Image.fromarray(np.full((8, 8), 30000, np.int32)).save(folder / "deep.tif")
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(folder / "float.tif")
    for name in ("film.gif", "film.png", "film.webp", "pages.tif"):
        frames[0].save(folder / name, save_all=True, append_images=frames[1:])
    return {
        "zero.png": "0 bytes",
        "cut.jpg": "damaged or truncated",
        "tail.png": "damaged or truncated",
        "text.png": "not a picture",
        "page.eps": "EPS",
        "huge.png": "80 megapixels",
        "bomb.png": "80 megapixels",
        "lying.png": "damaged or truncated",
        "deep.png": "window",
        "deep.tif": "window",
        "float.tif": "window",
        "film.gif": "several frames",
        "film.png": "several frames",
        "film.webp": "several frames",
        "pages.tif": "several frames",
        "gone.png": "no such file",
        "../outside.png": "below the folder",
    }


def test_refused_pictures_are_all_named_and_good_ones_kept(tmp_path: Path) -> None:
    paint(tmp_path / "outside.png")
    folder = tmp_path / "folder"
    folder.mkdir()
    paint(folder / "first.png")
    paint(folder / "last.png")
    reasons = make_refused(folder)
    pictures = [picture(name) for name in ("first.png", *reasons, "last.png")]
    with pytest.raises(DataError, match=f"{len(reasons)} of {len(pictures)} pictures cannot be used") as caught:
        check_images(folder, pictures)
    faults = str(caught.value).splitlines()[1:]
    for fault, (name, reason) in zip(faults, reasons.items(), strict=True):
        assert fault.startswith(f"  - {name}: ")
        assert reason in fault


def test_a_picture_that_became_a_link_out_after_ingest_is_refused(tmp_path: Path) -> None:
    paint(tmp_path / "outside.png")
    folder = tmp_path / "folder"
    folder.mkdir()
    paint(folder / "a.png")
    check_images(folder, [picture("a.png")])
    (folder / "a.png").unlink()
    (folder / "a.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(BadImage, match="leads out of the folder"):
        load_pixels(folder, picture("a.png"), RESOLUTION)


def test_no_decoder_runs_but_the_named_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paint(tmp_path / "a.png")
    allowed: list[tuple[str, ...]] = []
    real_open = Image.open

    def spy(path: Path, *, formats: tuple[str, ...] = ("all",)) -> Image.Image:
        allowed.append(formats)
        return real_open(path, formats=formats)

    monkeypatch.setattr(Image, "open", spy)
    load_pixels(tmp_path, picture("a.png"), RESOLUTION)
    assert set(allowed) == {read_formats()}
    assert {*read_formats()} <= {"PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF"}


def test_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paint(tmp_path / "a.png")

    def deny(*_: object) -> None:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(os, "open", deny)
    with pytest.raises(BadImage, match="Permission denied"):
        load_pixels(tmp_path, picture("a.png"), RESOLUTION)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore:.*:UserWarning")
def test_damaged_files_give_pixels_or_bad_image_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, kind: str
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    good = io.BytesIO()
    noise = np.random.default_rng(4).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(noise).save(good, kind)
    data = good.getvalue()

    @settings(derandomize=True, max_examples=60, deadline=None)
    @given(cut=st.integers(0, len(data)), position=st.integers(0, len(data) - 1), value=st.integers(0, 255))
    def damage(cut: int, position: int, value: int) -> None:
        broken = bytearray(data)
        broken[position] = value
        (folder / "a").write_bytes(bytes(broken[:cut]) if cut % 2 else bytes(broken))
        try:
            assert load_pixels(folder, picture("a"), RESOLUTION).shape == (RESOLUTION, RESOLUTION, 3)
        except BadImage as error:
            assert str(error).startswith("a: ")  # noqa: PT017 - either outcome is right

    damage()


def test_what_an_intake_turns_and_converts_is_turned_and_converted_alike(tmp_path: Path) -> None:
    """A grey TIFF that lies on its side once came out turned twice; print colours were refused."""
    grey = Image.fromarray(np.random.default_rng(5).integers(0, 256, (33, 64), dtype=np.uint8))
    on_its_side = Image.Exif()
    on_its_side[0x0112] = 6
    grey.save(tmp_path / "side.tif", exif=on_its_side)
    upright = np.asarray(grey.transpose(Image.Transpose.ROTATE_270).convert("RGB"))
    np.testing.assert_array_equal(decode(tmp_path, picture("side.tif")), upright)
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "print.tif")
    assert (load_pixels(tmp_path, picture("print.tif"), 8) == (255, 0, 0)).all()
