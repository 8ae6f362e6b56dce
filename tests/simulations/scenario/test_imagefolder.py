from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from common.errors import BadCaption, DataError, EmptyFolder
from simulations.scenario.imagefolder import Picture, look_at, read_imagefolder

if TYPE_CHECKING:
    from pathlib import Path


def paint(path: Path, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), (100, 100, 100)).save(path, **options)  # type: ignore[arg-type]


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
    "number as caption": '{"file_name": "a.png", "text": 3}',
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
    with pytest.raises(BadCaption, match=r": 1 row to mend:\n  - metadata\.jsonl line 3: "):
        read_imagefolder(hostile)


def test_every_bad_row_is_named_at_once(hostile: Path) -> None:
    write_rows(hostile, *BAD_ROWS.values())
    with pytest.raises(BadCaption) as caught:
        read_imagefolder(hostile)
    assert f"{len(BAD_ROWS)} rows to mend" in str(caught.value)
    for number in range(1, len(BAD_ROWS) + 1):
        assert f"- metadata.jsonl line {number}: " in str(caught.value)


@pytest.mark.parametrize("again", ["a.png", "./a.png", "same.png"])
def test_one_file_in_two_rows_is_refused(hostile: Path, again: str) -> None:
    (hostile / "same.png").symlink_to(hostile / "a.png")
    write_rows(hostile, {"file_name": "a.png", "text": "x"}, {"file_name": again, "text": "y"})
    with pytest.raises(BadCaption, match=r"line 2: .*already listed in metadata.jsonl line 1"):
        read_imagefolder(hostile)


def test_subject_in_some_rows_only_is_refused(hostile: Path) -> None:
    write_rows(hostile, {"file_name": "a.png", "text": "", "subject_id": "p"}, {"file_name": "b.png", "text": ""})
    with pytest.raises(DataError, match=r"1 pictures have no subject_id(.|\n)*line 2: has no subject_id"):
        read_imagefolder(hostile)


def test_metadata_that_is_not_utf8_is_refused(hostile: Path) -> None:
    (hostile / "metadata.jsonl").write_bytes(b'{"file_name": "a.png", "text": "caf\xe9"}\n')
    with pytest.raises(BadCaption, match="line 1"):
        read_imagefolder(hostile)


def test_folder_without_anything_is_empty(tmp_path: Path) -> None:
    with pytest.raises(EmptyFolder):
        read_imagefolder(tmp_path)
    (tmp_path / "metadata.jsonl").write_text("\n")
    with pytest.raises(EmptyFolder, match="a row for each"):
        read_imagefolder(tmp_path)


def test_a_missing_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read_imagefolder(tmp_path / "gone")


def test_files_without_a_row_are_left_out_and_told(hostile: Path, caplog: pytest.LogCaptureFixture) -> None:
    paint(hostile / "sub" / "extra.JPG", format="JPEG")
    paint(hostile / ".hidden" / "thumb.png")
    for name in ("link.png", "loop.png", "away"):
        (hostile / name).unlink()
    write_rows(hostile, {"file_name": "a.png", "text": ""})
    pictures = read_imagefolder(hostile)
    assert [p.file_name for p in pictures] == ["a.png"]
    assert look_at(hostile).unlisted == ("b.png", "sub/extra.JPG")
    assert "2 picture files have no row" in caplog.text
    assert "extra" not in caplog.text
