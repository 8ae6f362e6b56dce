from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import stat
import threading
import time
from typing import TYPE_CHECKING

import pytest

from common.errors import RunBusy
from common.host.file_lock import is_locked, locked

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event
    from pathlib import Path

SPAWN = multiprocessing.get_context("spawn")


def hold(path: Path, held: Event) -> None:
    with locked(path, wait_s=0):
        held.set()
        time.sleep(60)


def test_one_process_holds_it_and_the_kernel_frees_it_when_that_is_killed(tmp_path: Path) -> None:
    path, held = tmp_path / "lock", SPAWN.Event()
    other = SPAWN.Process(target=hold, args=(path, held))
    other.start()
    assert held.wait(60)
    assert is_locked(path)
    with pytest.raises(RunBusy, match="in use"), locked(path, wait_s=0, busy=RunBusy("in use")):
        pass
    os.kill(other.pid or 0, signal.SIGKILL)
    other.join(60)
    assert not is_locked(path)
    with locked(path, wait_s=0):
        assert is_locked(path)


@pytest.mark.parametrize("wait_s", [60.0, "forever"])
def test_who_waits_gets_it_when_it_is_let_go(tmp_path: Path, wait_s: float) -> None:
    taken, got = threading.Event(), threading.Event()

    def wait() -> None:
        taken.set()
        with locked(tmp_path / "lock", wait_s=wait_s, busy=RunBusy("in use")):
            got.set()

    with locked(tmp_path / "lock", wait_s=0):
        other = threading.Thread(target=wait)
        other.start()
        assert taken.wait(60)
        assert not got.wait(0.3)
    other.join(60)
    assert got.is_set()


def test_who_tries_once_is_not_turned_away_by_somebody_who_only_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with locked(tmp_path / "lock", wait_s=0):
        pass
    look = os.open(tmp_path / "lock", os.O_RDONLY)
    fcntl.flock(look, fcntl.LOCK_SH)  # as is_locked does, for as long as it takes
    monkeypatch.setattr(time, "sleep", lambda _: fcntl.flock(look, fcntl.LOCK_UN))
    with locked(tmp_path / "lock", wait_s=0, busy=RunBusy("in use")):
        assert is_locked(tmp_path / "lock")
    os.close(look)


def test_an_error_within_lets_it_go_and_stays_itself(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError), locked(tmp_path / "lock", wait_s=0, busy=RunBusy("in use")):
        raise BlockingIOError
    assert not is_locked(tmp_path / "lock")


def test_the_file_is_its_owners_alone_and_no_link_is_followed(tmp_path: Path) -> None:
    with locked(tmp_path / "lock", wait_s=0) as descriptor:
        os.write(descriptor, b"41")
    assert (tmp_path / "lock").read_bytes() == b"41"
    assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == 0o600
    (tmp_path / "link").symlink_to(tmp_path / "lock")
    with pytest.raises(OSError, match="symbolic link"), locked(tmp_path / "link", wait_s=0):
        pass
    with pytest.raises(OSError, match="symbolic link"):
        is_locked(tmp_path / "link")
    with pytest.raises(FileNotFoundError):
        is_locked(tmp_path / "missing")
