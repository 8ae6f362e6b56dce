from __future__ import annotations

import io
import json
import os
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from client.imagefolder import Picture, check_images, load_pixels, read_imagefolder, unlisted_files
from common.errors import BadCaption, BadImage, DataError, EmptyFolder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RESOLUTION = 16


def picture(name: str) -> Picture:
    return Picture(file_name=name, caption="", subject_id=name, label="")


def paint(path: Path, mode: str = "RGB", size: tuple[int, int] = (20, 20), **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 100).save(path, **options)  # type: ignore[arg-type]
    return path


def write_rows(folder: Path, *rows: object) -> None:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")


def test_rows_become_pictures_in_order(tmp_path: Path) -> None:
    for name in ("b.png", "ward/a.png", "c.png"):
        paint(tmp_path / name)
    write_rows(
        tmp_path,
        {"file_name": "b.png", "text": "a brain", "subject_id": 7, "label": "axial", "other": [1]},
        "",
        {"file_name": "./ward/a.png", "caption": "", "subject_id": " 7 "},
        {"file_name": "c.png", "text": "x", "caption": "x", "subject_id": "e\u0301"},
    )
    assert read_imagefolder(tmp_path) == (
        Picture(file_name="b.png", caption="a brain", subject_id="7", label="axial"),
        Picture(file_name="ward/a.png", caption="", subject_id="7", label="ward"),
        Picture(file_name="c.png", caption="x", subject_id="\u00e9", label=""),
    )


def test_without_subject_ids_every_picture_is_its_own_subject(tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    paint(tmp_path / "b.png")
    write_rows(tmp_path, {"file_name": "a.png", "text": ""}, {"file_name": "b.png", "text": "", "subject_id": None})
    assert [p.subject_id for p in read_imagefolder(tmp_path)] == ["a.png", "b.png"]


def test_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    row = '{"file_name": "a.png", "text": "one\u2028two"}'
    (tmp_path / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + row.encode() + b"\r\n\r\n")
    assert read_imagefolder(tmp_path)[0].caption == "one\u2028two"


BAD_ROWS = {
    "no caption": '{"file_name": "a.png"}',
    "number as caption": '{"file_name": "a.png", "text": 3}',
    "null as caption": '{"file_name": "a.png", "text": null}',
    "list as caption": '{"file_name": "a.png", "caption": ["x"]}',
    "two captions": '{"file_name": "a.png", "text": "x", "caption": "y"}',
    "no file": '{"text": "x"}',
    "number as file": '{"file_name": 1, "text": "x"}',
    "empty name": '{"file_name": "", "text": "x"}',
    "the folder itself": '{"file_name": ".", "text": "x"}',
    "missing file": '{"file_name": "gone.png", "text": "x"}',
    "a folder": '{"file_name": "sub", "text": "x"}',
    "absolute": '{"file_name": "/etc/hostname", "text": "x"}',
    "parent": '{"file_name": "../outside.png", "text": "x"}',
    "parent inside": '{"file_name": "sub/../a.png", "text": "x"}',
    "backslash": '{"file_name": "sub\\\\a.png", "text": "x"}',
    "null byte": '{"file_name": "a.png\\u0000", "text": "x"}',
    "too long": json.dumps({"file_name": "a" * 5000, "text": "x"}),
    "link out": '{"file_name": "link.png", "text": "x"}',
    "link loop": '{"file_name": "loop.png", "text": "x"}',
    "linked folder": '{"file_name": "away/outside.png", "text": "x"}',
    "blank subject": '{"file_name": "a.png", "text": "x", "subject_id": "  "}',
    "boolean subject": '{"file_name": "a.png", "text": "x", "subject_id": true}',
    "list as label": '{"file_name": "a.png", "text": "x", "label": []}',
    "not an object": '["a.png", "x"]',
    "not JSON": "a.png,x",
    "lone surrogate": '{"file_name": "a.png", "text": "\\ud800 and more"}',
    "deep nesting": "[" * 5000,
}


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder with good a.png and b.png, and links that lead nowhere good."""
    paint(tmp_path / "outside.png")
    folder = tmp_path / "folder"
    paint(folder / "a.png")
    paint(folder / "b.png")
    (folder / "sub").mkdir()
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "away").symlink_to(tmp_path)
    return folder


@pytest.mark.parametrize("row", BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_row_is_refused_with_file_and_line(hostile: Path, row: str) -> None:
    write_rows(hostile, {"file_name": "b.png", "text": "good"}, "", row)
    with pytest.raises(BadCaption, match=r"metadata\.jsonl: 1 row to mend:\n  - line 3: "):
        read_imagefolder(hostile)


def test_every_bad_row_is_named_at_once(hostile: Path) -> None:
    write_rows(hostile, *BAD_ROWS.values())
    with pytest.raises(BadCaption) as caught:
        read_imagefolder(hostile)
    assert f"{len(BAD_ROWS)} rows to mend" in str(caught.value)
    for number in range(1, len(BAD_ROWS) + 1):
        assert f"- line {number}: " in str(caught.value)


@pytest.mark.parametrize("again", ["a.png", "./a.png", "same.png"])
def test_one_file_in_two_rows_is_refused(hostile: Path, again: str) -> None:
    (hostile / "same.png").symlink_to(hostile / "a.png")
    write_rows(hostile, {"file_name": "a.png", "text": "x"}, {"file_name": again, "text": "y"})
    with pytest.raises(BadCaption, match=r"line 2: .*already listed in line 1"):
        read_imagefolder(hostile)


def test_subject_in_some_rows_only_is_refused(hostile: Path) -> None:
    write_rows(hostile, {"file_name": "a.png", "text": "", "subject_id": "p"}, {"file_name": "b.png", "text": ""})
    with pytest.raises(BadCaption, match="line 2: has no subject_id while other rows have"):
        read_imagefolder(hostile)


def test_metadata_that_is_not_utf8_is_refused(hostile: Path) -> None:
    (hostile / "metadata.jsonl").write_bytes(b'{"file_name": "a.png", "text": "caf\xe9"}\n')
    with pytest.raises(BadCaption, match="line 1"):
        read_imagefolder(hostile)


def test_folder_without_anything_is_empty(tmp_path: Path) -> None:
    with pytest.raises(EmptyFolder):
        read_imagefolder(tmp_path)
    (tmp_path / "metadata.jsonl").write_text("\n")
    with pytest.raises(EmptyFolder, match="has no rows"):
        read_imagefolder(tmp_path)


def test_missing_folder_and_missing_metadata_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read_imagefolder(tmp_path / "gone")
    paint(tmp_path / "a.png")
    with pytest.raises(DataError, match=r'1 pictures but no metadata\.jsonl; write .*"file_name"'):
        read_imagefolder(tmp_path)


def test_files_without_a_row_are_left_out_and_told(hostile: Path, caplog: pytest.LogCaptureFixture) -> None:
    paint(hostile / "sub" / "extra.JPG", format="JPEG")
    paint(hostile / ".hidden" / "thumb.png")
    for name in ("link.png", "loop.png", "away"):
        (hostile / name).unlink()
    write_rows(hostile, {"file_name": "a.png", "text": ""})
    pictures = read_imagefolder(hostile)
    assert [p.file_name for p in pictures] == ["a.png"]
    assert unlisted_files(hostile, pictures) == ("b.png", "sub/extra.JPG")
    assert "2 picture files have no row" in caplog.text
    assert "extra" not in caplog.text


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
    (folder / "text.png").write_text("not a picture")
    (folder / "page.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    (folder / "huge.png").write_bytes(png_of_declared_size(9000, 9000))
    (folder / "bomb.png").write_bytes(png_of_declared_size(60000, 60000))
    (folder / "lying.png").write_bytes(png_of_declared_size(400, 400))
    Image.fromarray(np.full((8, 8), 30000, np.uint16)).save(folder / "deep.png")
    Image.fromarray(np.full((8, 8), 30000, np.int32)).save(folder / "deep.tif")
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(folder / "float.tif")
    Image.new("CMYK", (8, 8)).save(folder / "print.jpg")
    Image.new("LAB", (8, 8)).save(folder / "lab.tif")
    for name in ("film.gif", "film.png", "film.webp", "pages.tif"):
        frames[0].save(folder / name, save_all=True, append_images=frames[1:])
    return {
        "zero.png": "0 bytes",
        "cut.jpg": "cannot be read",
        "text.png": "cannot be read",
        "page.eps": "cannot be read",
        "huge.png": "80_000_000 pixels",
        "bomb.png": "80_000_000 pixels",
        "lying.png": "cannot be read",
        "deep.png": "window",
        "deep.tif": "window",
        "float.tif": "window",
        "print.jpg": "CMYK",
        "lab.tif": "LAB",
        "film.gif": "2 frames",
        "film.png": "2 frames",
        "film.webp": "2 frames",
        "pages.tif": "2 frames",
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
    bad = check_images(folder, pictures)
    assert len(bad) == len(reasons)
    for error, (name, reason) in zip(bad, reasons.items(), strict=True):
        assert name in str(error)
        assert reason in str(error)


def test_a_picture_that_became_a_link_out_after_ingest_is_refused(hostile: Path) -> None:
    write_rows(hostile, {"file_name": "a.png", "text": ""})
    (ingested,) = read_imagefolder(hostile)
    (hostile / "a.png").unlink()
    (hostile / "a.png").symlink_to(hostile.parent / "outside.png")
    with pytest.raises(BadImage, match="leads out of the folder"):
        load_pixels(hostile, ingested, RESOLUTION)


def test_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paint(tmp_path / "a.png")

    def deny(*_: object, **__: object) -> None:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(Image, "open", deny)
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
