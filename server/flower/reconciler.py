"""What ``up`` looks after once a second: the roster's nodes, and runs that have lost their processes.

A run that is wanted and led by nobody is started again from its last checkpoint. Flower gives a run up when its server
app dies, or when the SuperLink is away for too long, and never takes it up again.
"""

from __future__ import annotations

import functools
import logging
import time
from typing import TYPE_CHECKING, Final

from common.errors import ConfigError, DarkroomError
from server.federation.run_files import RunFiles
from server.flower.runs import FlowerRun
from server.flower.site_nodes import SiteNodes
from server.run.leadership import is_led, is_wanted

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.federation.roster import Roster
    from server.flower.superlink import Launch

RETRY_SECONDS: Final = 5.0
"""Between two tries at a roster that Flower did not take."""
GRACE_SECONDS: Final = 10.0
"""A run may be led by nobody for so long, as when it has just been started."""
_LONGEST_SECONDS: Final = 600.0
_log = logging.getLogger(__name__)


class RosterReconciler:
    """Has Flower follow the roster file of one federation."""

    def __init__(self, launch: Launch, *, now: Callable[[], float] = time.monotonic) -> None:
        """``now`` is in seconds of a clock that only runs forward."""
        self._launch = launch
        self._now = now
        self._nodes = SiteNodes(launch)
        self._done: Roster | None = None
        self._tried: Roster | None = None
        self._due = 0.0
        self._told = ""

    def reconcile(self) -> None:
        """Do what a changed roster asks for; call about once a second."""
        try:
            roster = self._launch.directory.roster()
            waits = roster == self._tried and self._now() < self._due
            if roster == self._done or waits:
                return
            self._tried, self._due = roster, self._now() + RETRY_SECONDS
            if self._nodes.align(roster):
                self._done = roster
            self._told = ""
        except ConfigError as error:  # an edit that went wrong must not end the supervision, nor change who is in
            self._tell(f"the roster is not read, the last one stays: {error}")
        except (DarkroomError, OSError) as error:  # the SuperLink may be down for a moment, the disk full
            self._tell(f"the roster is not registered yet: {error}")

    def _tell(self, warning: str) -> None:
        if warning != self._told:
            _log.warning("%s", warning)
        self._told = warning


class RunReconciler:
    """Looks after the runs of one federation; at ever longer intervals after one that does not come up."""

    def __init__(self, launch: Launch, *, now: Callable[[], float] = time.monotonic) -> None:
        """``now`` is in seconds of a clock that only runs forward."""
        self._launch = launch
        self._now = now
        self._due: dict[str, float] = {}
        self._pause: dict[str, float] = {}
        # each once, for a copied folder stays where it is
        self._tell = functools.cache(functools.partial(_log.warning, "%s"))

    def reconcile(self) -> None:
        """Start what should run and does not; call about once a second."""
        for folder in sorted((self._launch.directory.root / "runs").glob("*/run")):
            name = folder.parent.name
            try:
                if is_wanted(folder):
                    self._look_at(RunFiles(self._launch.directory, name))
            except (DarkroomError, OSError) as error:  # one folder's trouble must not end the care for the others
                self._tell(f"{folder}: passed over: {error}")

    def _look_at(self, files: RunFiles) -> None:
        name = files.name
        if is_led(files.directory):
            self._due.pop(name, None)
            self._pause.pop(name, None)
        elif self._now() >= self._due.setdefault(name, self._now() + GRACE_SECONDS):
            self._due[name] = self._now() + self._start(files)

    def _start(self, files: RunFiles) -> float:
        """Seconds until the next look."""
        run = FlowerRun(self._launch, files)
        try:
            if (number := run.start_again()) is None:
                # Flower finds out within about a minute that the process has died; until then it would have two of them
                return GRACE_SECONDS
            _log.warning("run %s has lost its process and goes on as Flower's run %s", files.name, number)
        except (DarkroomError, OSError) as error:
            _log.warning("run %s is led by nobody, and cannot be started yet: %s", files.name, error)
        pause = self._pause[files.name] = min(_LONGEST_SECONDS, 2 * self._pause.get(files.name, GRACE_SECONDS))
        return pause
