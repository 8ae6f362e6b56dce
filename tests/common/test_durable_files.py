"""Files that are whole or not there, whoever else writes them."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from common import durable_files
from common.durable_files import OWNER_ONLY, PUBLIC, open_new, sync_tree, write_atomically, write_new

if TYPE_CHECKING:
    from collections.abc import Callable

RENAMED = (write_atomically, "sync_folder")


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


@pytest.mark.parametrize("umask", [0o000, 0o077])
@pytest.mark.parametrize("mode", [OWNER_ONLY, PUBLIC])
def test_the_mode_is_the_wanted_one_whatever_the_umask(tmp_path: Path, mode: int, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "replaced", b"secret", mode=mode)
        write_new(tmp_path / "new", b"secret", mode=mode)
        os.close(open_new(tmp_path / "open", mode=mode))
    finally:
        os.umask(before)
    assert {stat.S_IMODE(each.stat().st_mode) for each in tmp_path.iterdir()} == {mode}


@pytest.mark.parametrize("there", ["a file", "a link", "a link to nothing"])
def test_a_new_file_overwrites_nothing_and_follows_no_link(tmp_path: Path, there: str) -> None:
    path, other = tmp_path / "key", tmp_path / "other"
    if there == "a file":
        path.write_bytes(b"mine")
    else:
        path.symlink_to(other)
    if there == "a link":
        other.write_bytes(b"mine")
    for make in (lambda: write_new(path, b"new"), lambda: os.close(open_new(path))):
        with pytest.raises(FileExistsError):
            make()
    assert [each.read_bytes() for each in (path, other) if each.exists()] in ([b"mine"], [b"mine", b"mine"], [])
    assert path.is_symlink() == (there != "a file")


def test_a_new_file_that_the_disk_does_not_take_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_new(tmp_path / "folder" / "key", b"secret")
    assert list((tmp_path / "folder").iterdir()) == []


@pytest.mark.parametrize("refused", ["fchmod", "sync_folder"])
@pytest.mark.parametrize("make", [write_new, write_atomically])
def test_a_file_whose_mode_or_folder_fails_is_not_there_and_nothing_stays_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path, bytes], None], refused: str
) -> None:
    """An empty key file, or one that may not survive, would be refused, or trusted, at every later start."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os if refused == "fchmod" else durable_files, refused, refuse)
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match="not permitted"):
        make(tmp_path / "key", b"secret")
    # what was renamed into its place is whole, whatever the folder says of it
    assert [each.name for each in tmp_path.iterdir()] == (["key"] if (make, refused) == RENAMED else [])
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before


def test_every_file_and_folder_of_a_tree_reaches_the_disk_and_the_tree_itself_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inner").mkdir()
    paths = [tmp_path / "a", tmp_path / "inner" / "b", tmp_path / "inner", tmp_path]
    for path in paths[:2]:
        path.touch()
    synced = list[tuple[int, int]]()
    monkeypatch.setattr(os, "fsync", lambda each: synced.append((os.fstat(each).st_dev, os.fstat(each).st_ino)))
    sync_tree(tmp_path)
    assert sorted(synced) == sorted((path.stat().st_dev, path.stat().st_ino) for path in paths)
    assert synced[-1][1] == tmp_path.stat().st_ino


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
