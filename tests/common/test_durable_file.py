"""Files that are whole or not there, whoever else writes them."""

from __future__ import annotations

import errno
import os
import stat
import threading
from typing import TYPE_CHECKING

import pytest

from common.durable_files import write_atomically

if TYPE_CHECKING:
    from pathlib import Path


def test_two_writers_at_once_leave_one_whole_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow one has written half when the fast one begins and ends."""
    path, inside, go_on, sync = tmp_path / "roster.toml", threading.Event(), threading.Event(), os.fsync
    failures: list[BaseException] = []

    def slow_sync(descriptor: int) -> None:
        if threading.current_thread() is slow and not go_on.is_set():
            inside.set()
            go_on.wait(10)
        sync(descriptor)

    def write() -> None:
        try:
            write_atomically(path, b"slow")
        except BaseException as error:  # noqa: BLE001 - reported by the main thread
            failures.append(error)

    monkeypatch.setattr(os, "fsync", slow_sync)
    slow = threading.Thread(target=write)
    slow.start()
    assert inside.wait(10)
    write_atomically(path, b"fast")
    assert path.read_bytes() == b"fast"
    go_on.set()
    slow.join()
    assert failures == []
    assert path.read_bytes() == b"slow"
    assert os.listdir(tmp_path) == ["roster.toml"]  # noqa: PTH208 - hidden ones, too


def test_a_failure_leaves_the_old_content_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "roster.toml"
    write_atomically(path, b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["roster.toml"]


def test_what_a_crash_left_is_not_in_the_way_and_looks_like_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "ash.id", list[str]()
    sync = os.fsync

    def look(descriptor: int) -> None:
        seen.extend(each.name for each in tmp_path.iterdir())
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", look)
        write_atomically(path, b"17")
    name = seen[0]
    assert name.startswith(".ash.id.")
    assert name.endswith(".partial")
    (tmp_path / name).write_bytes(b"half")
    write_atomically(path, b"18")
    assert path.read_bytes() == b"18"
    assert list(tmp_path.glob("*.id")) == [path]


def test_a_planted_link_is_not_written_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"mine")
    monkeypatch.setattr("common.durable_files.secrets.token_hex", lambda _bytes: "0")
    (tmp_path / ".key.0.partial").symlink_to(elsewhere)
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "key", b"secret")
    assert elsewhere.read_bytes() == b"mine"


def test_nobody_has_more_rights_than_wanted(tmp_path: Path) -> None:
    write_atomically(tmp_path / "key", b"secret", mode=0o600)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint"
    write_atomically(path, b"old")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("common.durable_files.os.fsync", full)
    with pytest.raises(OSError, match="checkpoint") as raised:
        write_atomically(path, b"new")
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(path))
    assert [each.name for each in tmp_path.iterdir()] == ["checkpoint"]
    assert path.read_bytes() == b"old"
