"""Notices that a run will not finish, so that nobody waits for it to its deadline."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from common.errors import DarkroomError
from server.run.leadership import is_led

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.federation.run_files import RunFiles
    from server.run.leadership import Standing

LEADERLESS_SECONDS: Final = 60.0
"""A server app takes seconds to start; one that cannot, never leads."""


class RunWatch:
    """Watches one run from its start on."""

    def __init__(self, files: RunFiles, *, now: Callable[[], float] = time.monotonic) -> None:
        """``now`` is in seconds of a clock that only runs forward."""
        self._files = files
        self._now = now
        self._led = now()

    def check(self, standing: Standing | None) -> None:
        """Call about once a second with what the run says of itself.

        Raises:
            DarkroomError: It has ended early, for the reason that is told, or nobody leads it.

        """
        if standing is not None and standing.state == "stopped":
            raise DarkroomError(f"{self._files.name}: has ended early: {standing.reason}")
        if is_led(self._files.directory):
            self._led = self._now()
        elif self._now() - self._led > LEADERLESS_SECONDS:
            log = self._files.federation.root / "logs" / "superexec.log"
            raise DarkroomError(
                f"{self._files.name}: nobody has led it for {LEADERLESS_SECONDS:.0f} s; its server app's log is {log}"
            )
