from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from common.errors import DarkroomError
from server.federation.directory import FederationDirectory
from server.federation.run_files import RunFiles
from server.run.leadership import Standing, leading, note, standing
from simulations.pilot.pilot import LEADERLESS_SECONDS, RunWatch

if TYPE_CHECKING:
    from pathlib import Path


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    return RunFiles(FederationDirectory(tmp_path), "trial")


def test_a_run_that_has_ended_early_is_told_with_its_reason_at_once(files: RunFiles) -> None:
    note(files.directory, "stopped", "too few institutions answered")
    with pytest.raises(DarkroomError, match="too few institutions answered"):
        RunWatch(files, now=Clock()).check(standing(files.directory))


def test_a_run_that_waits_is_waited_for(files: RunFiles) -> None:
    with leading(files.directory):
        RunWatch(files, now=Clock()).check(Standing(state="waiting", reason="institutions", since=""))


def test_a_run_that_nobody_leads_is_given_up_after_a_while(files: RunFiles) -> None:
    clock = Clock()
    watch = RunWatch(files, now=clock)
    clock.seconds = LEADERLESS_SECONDS
    watch.check(None)
    clock.seconds += 1
    with pytest.raises(DarkroomError, match=r"superexec\.log"):
        watch.check(None)


def test_each_time_that_it_is_led_begins_the_while_anew(files: RunFiles) -> None:
    clock = Clock()
    watch = RunWatch(files, now=clock)
    for _ in range(3):
        clock.seconds += LEADERLESS_SECONDS
        with leading(files.directory):
            watch.check(None)
    clock.seconds += LEADERLESS_SECONDS
    watch.check(None)
