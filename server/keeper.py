"""Runs survive their processes: what is wanted and led by nobody is started again from its last checkpoint.

Flower gives a run up when its server app dies, or when the SuperLink is away for too long, and never takes it up again.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from common.errors import DarkroomError
from server.flower_runs import FlowerRun
from server.leadership import is_led, is_wanted
from server.run_files import RunFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from server.launch import Launch

GRACE_SECONDS: Final = 10.0
"""A run may be led by nobody for so long, as when it has just been started."""
_LONGEST_SECONDS: Final = 600.0
_log = logging.getLogger(__name__)


class RunKeeper:
    """Looks after the runs of one federation; at ever longer intervals after one that does not come up."""

    def __init__(self, launch: Launch, *, now: Callable[[], float] = time.monotonic) -> None:
        """``now`` is in seconds of a clock that only runs forward."""
        self._launch = launch
        self._now = now
        self._due: dict[str, float] = {}
        self._pause: dict[str, float] = {}

    def look(self) -> None:
        """Start what should run and does not; call about once a second."""
        for files in self._wanted():
            name = files.name
            if is_led(files.directory):
                self._due.pop(name, None)
                self._pause.pop(name, None)
            elif self._now() >= self._due.setdefault(name, self._now() + GRACE_SECONDS):
                self._due[name] = self._now() + self._start(files)

    def _wanted(self) -> Iterator[RunFiles]:
        for folder in sorted((self._launch.directory.root / "runs").glob("*/run")):
            if is_wanted(folder):
                yield RunFiles(self._launch.directory, folder.parent.name)

    def _start(self, files: RunFiles) -> float:
        """Seconds until the next look."""
        run = FlowerRun(self._launch, files)
        try:
            if not run.has_ended():
                # Flower finds out within about a minute that the process has died; until then it would have two of them
                return GRACE_SECONDS
            _log.warning("run %s has lost its process and goes on as Flower's run %s", files.name, run.start())
        except DarkroomError as error:
            _log.warning("run %s is led by nobody, and cannot be started yet: %s", files.name, error)
        pause = self._pause[files.name] = min(_LONGEST_SECONDS, 2 * self._pause.get(files.name, GRACE_SECONDS))
        return pause
