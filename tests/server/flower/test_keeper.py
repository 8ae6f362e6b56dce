"""Which runs are started again, against a Flower that only says what it is told to."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from common.errors import ProvisioningError
from server.federation.run_files import RunFiles
from server.flower.reconciler import GRACE_SECONDS, RunKeeper
from server.flower.runs import FlowerRun
from server.flower.superlink import Launch
from server.run.leadership import leading, want, want_no_more
from tests.federation.live_federation import federation_on_disk

if TYPE_CHECKING:
    from pathlib import Path

    from server.federation.directory import FederationDirectory


@dataclass
class Flower:
    """Its word on the run, and how often the run was started."""

    status: str = "finished"
    fails: bool = False
    starts: list[str] = field(default_factory=list)

    def start(self, run: FlowerRun) -> str:
        if self.fails:
            raise ProvisioningError("no answer")
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
    monkeypatch.setattr(FlowerRun, "start", lambda run: made.start(run))  # noqa: PLW0108 - as a method it gets the run
    return made


def make(tmp_path: Path, clock: Clock, *names: str) -> tuple[RunKeeper, FederationDirectory]:
    federation = federation_on_disk(tmp_path / "coordinator")
    for name in names:
        (federation.root / "runs" / name / "run").mkdir(parents=True)
        want(federation.root / "runs" / name / "run")
    return RunKeeper(Launch(federation, federation.config()), now=clock), federation


def test_a_wanted_run_that_nobody_leads_is_started_after_a_while(tmp_path: Path, flower: Flower) -> None:
    clock = Clock()
    keeper, federation = make(tmp_path, clock, "ct", "mr")
    want_no_more(federation.root / "runs" / "mr" / "run")
    keeper.look()
    clock.time += GRACE_SECONDS - 0.1
    keeper.look()
    assert flower.starts == []
    clock.time += 0.1
    keeper.look()
    assert flower.starts == ["ct"]


def test_one_that_is_led_is_left_alone(tmp_path: Path, flower: Flower) -> None:
    clock = Clock()
    keeper, federation = make(tmp_path, clock, "ct")
    folder = federation.root / "runs" / "ct" / "run"
    with leading(folder):
        for _ in range(3):
            keeper.look()
            clock.time += 100
    want(folder)
    keeper.look()  # its grace begins now
    assert flower.starts == []


def test_one_that_flower_still_believes_in_is_left_to_flower(tmp_path: Path, flower: Flower) -> None:
    clock, flower.status = Clock(), "running"
    keeper, _ = make(tmp_path, clock, "ct")
    keeper.look()
    clock.time += GRACE_SECONDS
    keeper.look()
    assert flower.starts == []
    flower.status = "finished"
    clock.time += GRACE_SECONDS
    keeper.look()
    assert flower.starts == ["ct"]


def test_one_that_never_comes_up_is_tried_less_and_less_often(tmp_path: Path, flower: Flower) -> None:
    clock = Clock()
    keeper, _ = make(tmp_path, clock, "ct")
    for _ in range(4000):
        keeper.look()
        clock.time += 1
    assert 8 <= len(flower.starts) <= 14


def test_a_flower_that_does_not_answer_is_asked_again(
    tmp_path: Path, flower: Flower, caplog: pytest.LogCaptureFixture
) -> None:
    clock, flower.fails = Clock(), True
    keeper, _ = make(tmp_path, clock, "ct")
    for _ in range(20):
        keeper.look()
        clock.time += 1
    assert "cannot be started yet: no answer" in caplog.text
    flower.fails = False
    clock.time += 100
    keeper.look()
    assert flower.starts == ["ct"]


def test_what_a_person_is_just_starting_is_not_started_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower answers slowly, and until it has, nobody knows the number of the run that it starts."""
    federation = federation_on_disk(tmp_path / "coordinator")
    files = RunFiles(federation, "ct")
    files.directory.mkdir(parents=True)
    (federation.root / "app").mkdir()
    handed: list[str] = []

    def hand_over(run: FlowerRun, _app: Path) -> str:
        handed.append(run.files.name)
        time.sleep(0.5)
        return "17"

    monkeypatch.setattr(RunFiles, "signed", lambda _files: None)
    monkeypatch.setattr(FlowerRun, "_hand_over", hand_over)
    monkeypatch.setattr(FlowerRun, "status", lambda run: "starting" if run.number() else "")
    launch = Launch(federation, federation.config())
    person = threading.Thread(target=FlowerRun(launch, files).start)
    person.start()
    while not handed:
        time.sleep(0.01)
    clock = Clock()
    keeper = RunKeeper(launch, now=clock)
    keeper.look()
    clock.time += GRACE_SECONDS
    keeper.look()
    person.join()
    assert handed == ["ct"]
    assert files.flower_file.read_text() == "17"


def test_a_folder_that_is_no_run_hides_no_other(
    tmp_path: Path, flower: Flower, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    keeper, _ = make(tmp_path, clock, "a.bak", "ct")
    for _ in range(3):
        keeper.look()
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

    monkeypatch.setattr(FlowerRun, "start", start)
    clock = Clock()
    keeper, federation = make(tmp_path, clock, "bo", "ct", "mr")
    lock = federation.root / "runs" / "bo" / "run" / "lock"
    lock.mkdir()  # nobody can find out who leads it
    keeper.look()
    clock.time += GRACE_SECONDS
    keeper.look()
    assert flower.starts == ["mr"]
    assert "No space left on device" in caplog.text
