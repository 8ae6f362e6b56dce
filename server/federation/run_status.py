"""How a run stands, read from what it wrote: works while it runs, after a crash, and on another day."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import TYPE_CHECKING, Final

from common.privacy.run_plan import private_plan
from server.rounds.secagg_session import COUNTERSIGNATURES
from server.run import attempts, leadership
from server.run.directory import finished_rounds, read_metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from common.privacy.run_plan import PrivacyReport, PrivatePlan
    from server.federation.run_files import RunFiles
    from server.run.leadership import Standing

_RECENT: Final = 10
"""Rounds whose median says how long the rest takes."""


class RunState(StrEnum):
    """Where a run stands, in the words that are shown."""

    NEW = "not started"
    STARTING = "wanted, but no process leads it yet; darkroom-server up sees to that"
    RUNNING = "running"
    PAUSED = "paused"
    ENDED = "does not run; darkroom-server run start goes on"
    FINISHED = "finished"

    @property
    def is_under_way(self) -> bool:
        """Whether it runs, or will without anybody's doing."""
        return self in {RunState.STARTING, RunState.RUNNING, RunState.PAUSED}


def run_state(files: RunFiles) -> RunState:
    """Read it.

    Raises:
        ManifestError: The run has no signed manifest.

    """
    directory = files.directory
    if finished_rounds(directory) == files.signed()[0].config.rounds:
        return RunState.FINISHED
    led = leadership.is_led(directory)
    if not (led or leadership.is_wanted(directory)):
        return RunState.ENDED if files.flower_file.exists() else RunState.NEW
    if leadership.is_paused(directory):
        return RunState.PAUSED
    return RunState.RUNNING if led else RunState.STARTING


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """A run between start and end."""

    name: str
    round: int
    """Rounds that counted."""
    rounds: int
    state: RunState
    standing: Standing | None
    """What it waits for, or why it ended early."""
    countersigned: tuple[str, ...]
    """Sites whose acceptance of the manifest the coordinator holds."""
    sites: int
    """That the last round summed."""
    roster: int
    attempts: int
    """Sent so far; every one of them is paid for."""
    seconds: float
    """Of a round, the recent median; 0 before the first."""
    plan: PrivatePlan | None
    """None without privacy."""

    @property
    def privacy(self) -> PrivacyReport | None:
        """As of the attempts so far; None before the first and without privacy. Half a second's work, so on demand."""
        return None if self.plan is None or not self.attempts else self.plan.report(self.attempts)

    @property
    def left(self) -> dt.timedelta:
        """Time to the last round at this pace."""
        return dt.timedelta(seconds=round(self.seconds * (self.rounds - self.round)))

    def lines(self) -> Iterator[str]:
        """For a terminal."""
        yield f"{self.name}: round {self.round} of {self.rounds}, {self.state}"
        # what a process waited for that has ended since is no news
        if self.standing is not None and (self.state.is_under_way or self.standing.state == "stopped"):
            yield str(self.standing)
        yield f"accepted by {len(self.countersigned)} of {self.roster} sites: {', '.join(self.countersigned) or 'none'}"
        if self.round:
            left = "" if self.state is RunState.FINISHED else f"; about {self.left} left"
            yield f"sites in the last round: {self.sites}; {self.seconds:.1f} s a round{left}"
        yield f"attempts sent: {self.attempts}"
        if (privacy := self.privacy) is not None:
            yield "what holds:" if self.state is RunState.FINISHED else "known so far, if the run ended now:"
            yield privacy.as_text()


def run_status(files: RunFiles) -> RunStatus:
    """Read it.

    Raises:
        ManifestError: The run has no signed manifest.
        CheckpointError: What was sent cannot be read.

    """
    manifest, _ = files.signed()
    rows = [row for row in read_metrics(files.directory) if row["kind"] == "round"]
    plan = private_plan(manifest.config)
    sent = 0
    if plan is not None:
        sent = attempts.AttemptJournal(files.directory / attempts.FILE, most=plan.attempts).sent
    signed = (files.directory / COUNTERSIGNATURES).glob("*.bin")
    return RunStatus(
        name=files.name,
        round=rows[-1]["round"] if rows else 0,
        rounds=manifest.config.rounds,
        standing=leadership.standing(files.directory),
        state=run_state(files),
        countersigned=tuple(sorted(path.stem for path in signed)),
        sites=len(rows[-1]["answered"]) if rows else 0,
        roster=len(manifest.roster),
        attempts=sent,
        seconds=median(row["seconds"] for row in rows[-_RECENT:]) if rows else 0.0,
        plan=plan,
    )
