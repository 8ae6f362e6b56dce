"""A SuperNode whose main thread ends ends as a process, too."""

from __future__ import annotations

import heapq
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from client.connection.supernode_process import (
    FLOWERS_LOCAL_WAIT,
    FLOWERS_WAIT,
    LOCAL_WAIT,
    LOST,
    REFUSED,
    SHORTEST_WAIT,
    Pace,
    set_pace,
)

ROOT = Path(__file__).parents[3]
LEFT_BEHIND = """
import sys, threading, time
from client.connection.supernode_process import Answers, run_to_the_end
answers = Answers()
def supernode():
    threading.Thread(target=time.sleep, args=(600,)).start()
    {end}
run_to_the_end(supernode, answers)
"""


def ended(end: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LEFT_BEHIND.format(end=end)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("end", ["return", "raise OSError('cut')", "raise KeyboardInterrupt('cut')"])
def test_no_thread_keeps_a_supernode_alive_that_has_given_up(end: str) -> None:
    done = ended(end)
    assert done.returncode == LOST
    assert "to be started again" in done.stderr
    assert ("cut" in done.stderr) == ("cut" in end)


@pytest.mark.parametrize(
    ("end", "code", "words"),
    [("sys.exit(0)", 0, ""), ("sys.exit()", 0, ""), ("sys.exit(1)", 1, ""), ("sys.exit('cut')", 1, "cut\n")],
)
def test_nor_one_that_exits_as_flower_does(end: str, code: int, words: str) -> None:
    done = ended(f"print('last words'); {end}")
    assert (done.returncode, done.stderr, done.stdout) == (code, words, "last words\n")


@pytest.mark.parametrize("end", ["sys.exit(0)", "sys.exit(1)", "raise OSError"])
def test_one_whose_key_is_not_taken_ends_with_a_code_of_its_own(end: str) -> None:
    done = ended(f"answers.note('/v1/fleet/pull-messages', 401, ''); {end}")
    assert done.returncode == REFUSED
    assert "does not take this site's key" in done.stderr


def test_it_is_flowers_program_with_flowers_options() -> None:
    program = [sys.executable, "-P", str(ROOT / "client" / "connection" / "supernode_process.py")]
    done = subprocess.run([*program, "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert "--auth-supernode-private-key" in done.stdout


class Night:
    """A clock that only sleeping and answers move on; it starts right after some work."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []
        self.pace = Pace(sleep=self.sleep, clock=lambda: self.now)
        self.pace.note_work()

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def ask(self, answer_took: float) -> float:
        """One question without work; how long it then sleeps."""
        self.now += answer_took
        self.pace.sleep(3)
        return self.slept[-1]


def test_a_coordinator_that_answers_at_once_is_asked_each_second() -> None:
    night = Night()
    assert [night.ask(0.04) for _ in range(5)] == [SHORTEST_WAIT] * 5


@pytest.mark.parametrize(("answer_took", "sleeps"), [(0.11, 2.0), (0.16, 3.0), (2.0, 3.0), (600.0, 3.0)])
def test_a_busy_one_more_seldom_and_never_less_often_than_flower_does(answer_took: float, sleeps: float) -> None:
    night = Night()
    for _ in range(2):
        night.ask(0.01)
    assert night.ask(answer_took) == pytest.approx(sleeps)


def test_a_busy_one_is_forgiven_and_distance_is_no_business() -> None:
    near, far = Night(), Night()
    for _ in range(2):
        near.ask(0.01)
    near.ask(0.2)
    assert near.ask(0.01) == SHORTEST_WAIT
    assert [far.ask(0.3) for _ in range(5)] == [SHORTEST_WAIT] * 5


def test_without_recent_work_it_asks_as_seldom_as_flower_does() -> None:
    night = Night()
    slept = [night.ask(0.01) for _ in range(700)]
    assert sum(slept[:500]) == pytest.approx(500 * SHORTEST_WAIT)
    assert set(slept[600:]) == {FLOWERS_WAIT}
    night.pace.sleep(FLOWERS_LOCAL_WAIT)
    assert night.ask(0.01) == SHORTEST_WAIT


def crowd(sites: int, *, cost: float, seconds: float) -> tuple[float, float]:
    """Sites that ask one server, which takes about ``cost`` for each question: its load, and the sites' mean sleep."""
    chance = np.random.default_rng(50)
    nights = [Night() for _ in range(sites)]
    questions = [(100.0 + 3.0 * place / sites, place) for place in range(sites)]
    free_at = busy = 0.0
    while questions[0][0] < 100.0 + seconds:
        asked, place = heapq.heappop(questions)
        takes = cost * chance.uniform(0.5, 1.5)
        free_at = max(asked, free_at) + takes
        busy += takes
        nights[place].now = asked
        nights[place].ask(free_at - asked)
        heapq.heappush(questions, (nights[place].now, place))
    slept = [each for night in nights for each in night.slept]
    return busy / seconds, sum(slept) / len(slept)


def test_a_crowd_that_would_keep_the_coordinator_busy_slows_down() -> None:
    """On a coordinator that takes 35 ms for a question: each second, 50 sites would need 1.75 of its one core."""
    few, some, many = (crowd(sites, cost=0.035, seconds=300) for sites in (3, 20, 50))
    assert few[1] == pytest.approx(SHORTEST_WAIT, rel=0.01)
    assert few[1] < some[1] < many[1] <= FLOWERS_WAIT
    assert some[0] < 0.75
    assert many[0] < 0.8


def test_work_in_between_is_no_answers_time() -> None:
    night = Night()
    night.ask(0.01)
    night.now += 0.05  # a message comes, and the app works on it for ten minutes
    for _ in range(6000):
        night.pace.sleep(0.5)
    assert set(night.slept[1:]) == {LOCAL_WAIT}
    assert night.ask(0.8) == SHORTEST_WAIT, "which was the sending"


@pytest.mark.parametrize("seconds", [0.0, 0.2, 1.0, 2.0, 5.0, 60.0])
def test_any_other_sleep_is_flowers_own(seconds: float) -> None:
    night = Night()
    night.pace.sleep(seconds)
    assert night.slept == [seconds]


def test_a_flower_with_another_loop_keeps_its_own_pace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "flwr.supernode.start_client_internal", None)
    set_pace()
    assert "at its own pace" in capsys.readouterr().err


def test_flowers_loop_sleeps_by_it_and_nobody_else_does() -> None:
    """Fails if Flower's loop sleeps in another way than the pinned version's does."""
    look = """
import inspect, time
from client.connection.supernode_process import set_pace
sleep = time.sleep
set_pace()
import flwr.supernode.start_client_internal as loop
assert time.sleep is sleep
assert loop.time.sleep.__qualname__ == "Pace.sleep", loop.time.sleep
assert loop.time.monotonic is time.monotonic
source = inspect.getsource(loop)
print(*map(source.count, ("time.sleep(", "time.sleep(3)", "time.sleep(0.5)", "import time")))
"""
    done = subprocess.run(
        [sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == ["3", "1", "2", "1"], done.stderr
