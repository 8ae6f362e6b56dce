"""A SuperNode whose main thread ends ends as a process, too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from client.supernode_process import FLOWERS_WAIT, LOST, SHORTEST_WAIT, Pace

ROOT = Path(__file__).parents[2]
LEFT_BEHIND = """
import sys, threading, time
from client.supernode_process import run_to_the_end
def supernode():
    threading.Thread(target=time.sleep, args=(600,)).start()
    {end}
run_to_the_end(supernode)
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


def test_it_is_flowers_program_with_flowers_options() -> None:
    program = [sys.executable, "-P", str(ROOT / "client" / "supernode_process.py")]
    done = subprocess.run([*program, "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert "--auth-supernode-private-key" in done.stdout


class Night:
    """A clock that only sleeping and answers move on."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []
        self.pace = Pace(sleep=self.sleep, clock=lambda: self.now)

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


@pytest.mark.parametrize(("answer_took", "sleeps"), [(0.1, 2.0), (0.15, 3.0), (2.0, 3.0), (600.0, 3.0)])
def test_a_busy_one_more_seldom_and_never_less_often_than_flower_does(answer_took: float, sleeps: float) -> None:
    night = Night()
    night.ask(0.01)
    assert night.ask(answer_took) == pytest.approx(sleeps)
    assert night.ask(0.01) == SHORTEST_WAIT, "and it is forgiven"


def test_a_crowd_that_would_keep_the_coordinator_busy_slows_down() -> None:
    """A question costs 35 ms of one core: 50 sites that ask each second would need 1.75 cores, at Flower's pace 0.6."""
    sites, cost = 50, 0.035
    night, answer = Night(), cost
    for _ in range(20):
        share = sites * cost / (night.ask(answer) + answer)
        answer = cost / max(1 - share, 0.05)  # an M/M/1 queue's, cut where it has no end
    assert night.slept[-1] == FLOWERS_WAIT


def test_work_in_between_is_no_answers_time() -> None:
    night = Night()
    night.ask(0.01)
    night.now += 0.05  # a message comes, and the app works on it for ten minutes
    for _ in range(1200):
        night.pace.sleep(0.5)
    assert set(night.slept[1:]) == {0.1}
    assert night.ask(0.8) == SHORTEST_WAIT, "which was the sending"


def test_flowers_loop_sleeps_by_it_and_nobody_else_does() -> None:
    """Fails if Flower's loop sleeps in another way than the pinned version's does."""
    look = """
import inspect, time
from client.supernode_process import set_pace
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
