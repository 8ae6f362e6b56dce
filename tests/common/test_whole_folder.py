"""A folder that is there as a whole, or as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.durable_files import UNFINISHED, whole_folder


def fill(folder: Path) -> None:
    with whole_folder(folder, last="settings") as made:
        (made / "settings").write_text("s")
        (made / "keys").mkdir()


@pytest.mark.parametrize("name", ["new", "a/b/new", "there"])
def test_it_is_made(tmp_path: Path, name: str) -> None:
    (tmp_path / "there").mkdir()
    before = (tmp_path / "there").stat().st_ino
    fill(tmp_path / name)
    assert {path.name for path in (tmp_path / name).iterdir()} == {"settings", "keys"}
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "there").stat().st_ino == before
    assert not list(tmp_path.rglob(UNFINISHED + "*"))


def test_it_is_made_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fill(Path())
    assert (Path.cwd() / "settings").exists()


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def fill_badly() -> None:
        with whole_folder(tmp_path / "new", last="settings") as made:
            (made / "settings").touch()
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fill_badly()
    assert list(tmp_path.iterdir()) == []


def test_a_move_that_fails_is_taken_back(tmp_path: Path) -> None:
    (tmp_path / "settings").mkdir()  # a file cannot take its place
    with pytest.raises(OSError, match="settings"):
        fill(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["settings"]
