"""What a run does while fewer institutions are there than a round needs; no attempt is used up meanwhile."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from server.run.leadership import go_on, note, standing, wait_while_paused

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from common.errors import TooFewInstitutions

_LONGEST_WAIT: Final = 60.0
_log = logging.getLogger(__name__)


class WaitsForInstitutions:
    """A deployed run below the minimum of institutions: it waits for as long as it takes, and says so."""

    nodes_s: float = 5.0
    """Longest look for nodes before it says that it waits."""

    def __init__(self, directory: Path, *, sleep: Callable[[float], None] = time.sleep) -> None:
        """Of the run in this directory."""
        self._directory = directory
        self._sleep = sleep
        self._times = 0

    def wait(self, shortage: TooFewInstitutions) -> None:
        """Return when it is time to look again: soon at first, then once a minute."""
        current = standing(self._directory)
        if current is None or current.reason != str(shortage):
            note(self._directory, "waiting", str(shortage))
            _log.warning("waiting: %s", shortage)
        self._sleep(min(_LONGEST_WAIT, 2.0**self._times))
        self._times += 1
        wait_while_paused(self._directory)

    def over(self) -> None:
        """Enough are there."""
        if self._times:
            _log.info("enough institutions are there again")
            go_on(self._directory)
        self._times = 0
