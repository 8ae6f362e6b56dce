from __future__ import annotations

import multiprocessing
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from common.errors import RoundFailed, RunBusy, TooFewInstitutions
from server.run.leadership import is_led, is_wanted, leading, note, standing, want, want_no_more
from server.run.waiting import WaitsForInstitutions

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event
    from pathlib import Path

FORK = multiprocessing.get_context("spawn")


def lead_until(directory: Path, led: Event, end: Event) -> None:
    with leading(directory):
        led.set()
        end.wait(60)


def test_one_process_at_a_time_leads_and_the_lock_dies_with_it(tmp_path: Path) -> None:
    led, end = FORK.Event(), FORK.Event()
    other = FORK.Process(target=lead_until, args=(tmp_path, led, end))
    want(tmp_path)
    other.start()
    assert led.wait(60)
    assert is_led(tmp_path)
    with pytest.raises(RunBusy, match="another process leads"), leading(tmp_path, wait_s=0.3):
        pass
    assert standing(tmp_path) is None  # whoever was refused has no say
    os.kill(other.pid or 0, signal.SIGKILL)
    other.join(60)
    assert not is_led(tmp_path)
    assert is_wanted(tmp_path)  # it died without a word
    with leading(tmp_path, wait_s=0.0):
        assert is_led(tmp_path)


def test_a_run_that_ends_or_fails_with_a_reason_is_wanted_no_more(tmp_path: Path) -> None:
    want(tmp_path)
    with leading(tmp_path):
        pass
    assert not is_wanted(tmp_path)
    assert standing(tmp_path) is None
    want(tmp_path)
    with pytest.raises(RoundFailed), leading(tmp_path):
        raise RoundFailed("nobody is there")
    assert not is_wanted(tmp_path)
    assert "stopped since" in str(standing(tmp_path))
    assert "nobody is there" in str(standing(tmp_path))
    with leading(tmp_path):
        assert standing(tmp_path) is None  # it goes on


def test_a_run_that_is_wanted_again_no_longer_stands_as_stopped(tmp_path: Path) -> None:
    note(tmp_path, "stopped", "by darkroom-server run stop")
    want(tmp_path)
    assert standing(tmp_path) is None


@pytest.mark.parametrize("end", [KeyboardInterrupt, ZeroDivisionError])
def test_one_that_is_torn_away_stays_wanted(tmp_path: Path, end: type[BaseException]) -> None:
    want(tmp_path)
    with pytest.raises(end), leading(tmp_path):
        raise end
    assert is_wanted(tmp_path)


def test_what_cannot_be_read_is_no_standing(tmp_path: Path) -> None:
    (tmp_path / "standing.json").write_bytes(b"{")
    assert standing(tmp_path) is None
    assert not is_led(tmp_path / "nowhere")
    want_no_more(tmp_path / "nowhere")


def test_a_deployed_run_waits_longer_and_longer_and_says_so_once(tmp_path: Path) -> None:
    slept: list[float] = []
    waiting = WaitsForInstitutions(tmp_path, sleep=slept.append)
    shortage = TooFewInstitutions("2 institutions take part, 3 are needed")
    for _ in range(8):
        waiting.wait(shortage)
    assert slept == [1, 2, 4, 8, 16, 32, 60, 60]
    said: Any = standing(tmp_path)
    assert (said.state, said.reason) == ("waiting", str(shortage))
    waiting.over()
    assert standing(tmp_path) is None
    waiting.wait(shortage)
    assert slept[-1] == 1


def test_that_enough_are_there_changes_nothing_unless_it_waited(tmp_path: Path) -> None:
    note(tmp_path, "stopped", "by another start")
    WaitsForInstitutions(tmp_path).over()
    assert standing(tmp_path) is not None


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"state":"waiting","reason":"\xff","since":"x"}'])
def test_a_damaged_word_is_none_and_is_written_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "standing.json").write_bytes(content)
    assert standing(tmp_path) is None
    WaitsForInstitutions(tmp_path, sleep=lambda _seconds: None).wait(TooFewInstitutions("one is missing"))
    said = standing(tmp_path)
    assert said is not None
    assert said.reason == "one is missing"
