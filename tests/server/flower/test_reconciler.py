"""Which runs are started again, against a Flower that only says what it is told to."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from common.errors import ProvisioningError
from server.federation.run_files import RunFiles
from server.flower.reconciler import GRACE_SECONDS, RunReconciler
from server.flower.runs import FlowerRun
from server.flower.superlink import Launch
from server.run.leadership import is_wanted, leading, standing, want, want_no_more
from tests.federation.live_federation import federation_on_disk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from server.federation.directory import FederationDirectory


@dataclass
class Flower:
    """Its word on the run, and how often the run was started."""

    status: str = "finished"
    fails: bool = False
    starts: list[str] = field(default_factory=list)

    def start(self, run: FlowerRun) -> str | None:
        if self.fails:
            raise ProvisioningError("no answer")
        if self.status != "finished":
            return None
        self.starts.append(run.files.name)
        return "17"


@dataclass
class Clock:
    time: float = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def flower(monkeypatch: pytest.MonkeyPatch) -> Flower:
    made = Flower()
    monkeypatch.setattr(FlowerRun, "status", lambda _run: made.status)
    monkeypatch.setattr(FlowerRun, "start_again", lambda run: made.start(run))  # noqa: PLW0108 - as a method it gets the run
    return made


def make(tmp_path: Path, clock: Clock, *names: str) -> tuple[RunReconciler, FederationDirectory]:
    federation = federation_on_disk(tmp_path / "coordinator")
    for name in names:
        (federation.root / "runs" / name / "run").mkdir(parents=True)
        want(federation.root / "runs" / name / "run")
    return RunReconciler(Launch(federation, federation.config()), now=clock), federation


def test_a_wanted_run_that_nobody_leads_is_started_after_a_while(tmp_path: Path, flower: Flower) -> None:
    clock = Clock()
    reconciler, federation = make(tmp_path, clock, "ct", "mr")
    want_no_more(federation.root / "runs" / "mr" / "run")
    reconciler.reconcile()
    clock.time += GRACE_SECONDS - 0.1
    reconciler.reconcile()
    assert flower.starts == []
    clock.time += 0.1
    reconciler.reconcile()
    assert flower.starts == ["ct"]


def test_one_that_is_led_is_left_alone(tmp_path: Path, flower: Flower) -> None:
    clock = Clock()
    reconciler, federation = make(tmp_path, clock, "ct")
    folder = federation.root / "runs" / "ct" / "run"
    with leading(folder):
        for _ in range(3):
            reconciler.reconcile()
            clock.time += 100
    want(folder)
    reconciler.reconcile()  # its grace begins now
    assert flower.starts == []


def test_one_that_flower_still_believes_in_is_left_to_flower(tmp_path: Path, flower: Flower) -> None:
    clock, flower.status = Clock(), "running"
    reconciler, _ = make(tmp_path, clock, "ct")
    reconciler.reconcile()
    clock.time += GRACE_SECONDS
    reconciler.reconcile()
    assert flower.starts == []
    flower.status = "finished"
    clock.time += GRACE_SECONDS
    reconciler.reconcile()
    assert flower.starts == ["ct"]


def test_one_that_never_comes_up_is_tried_less_and_less_often(tmp_path: Path, flower: Flower) -> None:
    clock = Clock()
    reconciler, _ = make(tmp_path, clock, "ct")
    for _ in range(4000):
        reconciler.reconcile()
        clock.time += 1
    assert 8 <= len(flower.starts) <= 14


def test_a_flower_that_does_not_answer_is_asked_again(
    tmp_path: Path, flower: Flower, caplog: pytest.LogCaptureFixture
) -> None:
    clock, flower.fails = Clock(), True
    reconciler, _ = make(tmp_path, clock, "ct")
    for _ in range(20):
        reconciler.reconcile()
        clock.time += 1
    assert "cannot be started yet: no answer" in caplog.text
    flower.fails = False
    clock.time += 100
    reconciler.reconcile()
    assert flower.starts == ["ct"]


@dataclass
class SlowFlower:
    """Takes half a second for everything, and knows the last run that it was handed."""

    handed: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    asked: threading.Event = field(default_factory=threading.Event)

    def hand_over(self, run: FlowerRun, _app: Path) -> str:
        self.asked.set()
        time.sleep(0.5)
        self.handed.append(run.files.name)
        return str(len(self.handed))

    def flwr(self, *arguments: str) -> str:
        self.asked.set()
        time.sleep(0.5)
        self.stopped.append(arguments[1])
        return ""

    def status(self, run: FlowerRun) -> str:
        number = run.number()
        return "" if not number else "finished" if number in self.stopped else "starting"


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> SlowFlower:
    made = SlowFlower()
    monkeypatch.setattr(RunFiles, "signed", lambda _files: None)
    monkeypatch.setattr(FlowerRun, "_hand_over", lambda run, app: made.hand_over(run, app))  # noqa: PLW0108 - as above
    monkeypatch.setattr(FlowerRun, "status", lambda run: made.status(run))  # noqa: PLW0108 - as above
    monkeypatch.setattr(Launch, "flwr", lambda _launch, *arguments: made.flwr(*arguments))
    return made


def ready_run(tmp_path: Path) -> FlowerRun:
    federation = federation_on_disk(tmp_path / "coordinator")
    files = RunFiles(federation, "ct")
    files.directory.mkdir(parents=True)
    (federation.root / "app").mkdir()
    return FlowerRun(Launch(federation, federation.config()), files)


def meanwhile(doing: Callable[[], object], slow: SlowFlower) -> threading.Thread:
    """Somebody else at work, who waits for Flower by now."""
    slow.asked.clear()
    other = threading.Thread(target=doing)
    other.start()
    assert slow.asked.wait(60)
    return other


def test_what_a_person_is_just_starting_is_not_started_twice(tmp_path: Path, slow: SlowFlower) -> None:
    """Flower answers slowly, and until it has, nobody knows the number of the run that it starts."""
    run = ready_run(tmp_path)
    person = meanwhile(run.start, slow)
    clock = Clock()
    reconciler = RunReconciler(run.launch, now=clock)
    reconciler.reconcile()
    clock.time += GRACE_SECONDS
    reconciler.reconcile()
    person.join()
    assert slow.handed == ["ct"]
    assert run.number() == "1"


def test_what_a_person_is_just_stopping_is_not_started_again(tmp_path: Path, slow: SlowFlower) -> None:
    run = ready_run(tmp_path)
    run.start()
    person = meanwhile(run.stop, slow)
    assert run.start_again() is None
    person.join()
    assert not is_wanted(run.files.directory)
    assert slow.handed == ["ct"]


def test_a_stop_ends_the_start_that_it_waited_for(tmp_path: Path, slow: SlowFlower) -> None:
    run = ready_run(tmp_path)
    run.start()
    slow.stopped.append("1")  # Flower has given it up, and ``up`` starts it again
    up = meanwhile(run.start_again, slow)
    assert run.stop()
    up.join()
    assert slow.stopped[-1] == "2"
    assert not is_wanted(run.files.directory)


def test_what_a_stop_says_is_not_said_of_the_next_start(tmp_path: Path, slow: SlowFlower) -> None:
    run = ready_run(tmp_path)
    run.start()
    person = meanwhile(run.stop, slow)
    run.start()
    person.join()
    assert standing(run.files.directory) is None
    assert is_wanted(run.files.directory)


def test_a_folder_that_is_no_run_hides_no_other(
    tmp_path: Path, flower: Flower, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    reconciler, _ = make(tmp_path, clock, "a.bak", "ct")
    for _ in range(3):
        reconciler.reconcile()
        clock.time += GRACE_SECONDS
    assert "ct" in flower.starts
    assert len([line for line in caplog.messages if "a.bak" in line]) == 1


def test_a_full_disk_hides_no_other_run(
    tmp_path: Path, flower: Flower, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def start(run: FlowerRun) -> str:
        if run.files.name == "ct":
            raise OSError(28, "No space left on device", "start.lock")
        return flower.start(run)

    monkeypatch.setattr(FlowerRun, "start_again", start)
    clock = Clock()
    reconciler, federation = make(tmp_path, clock, "bo", "ct", "mr")
    lock = federation.root / "runs" / "bo" / "run" / "lock"
    lock.symlink_to(lock)  # nobody can find out who leads it
    reconciler.reconcile()
    clock.time += GRACE_SECONDS
    reconciler.reconcile()
    assert flower.starts == ["mr"]
    assert "No space left on device" in caplog.text
