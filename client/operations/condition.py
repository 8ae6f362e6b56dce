"""Whether a serving steward's policy, ledger and audit log are still as they should be, looked at now and then."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from client.governance.ledger_store import check_store
from client.governance.policy import read_policy
from client.governance.rollback import check_ledger, read_noted
from common.errors import ConfigError, DarkroomError

if TYPE_CHECKING:
    from collections.abc import Callable

    from client.site.open_site import OpenSite

LOOK_SECONDS: Final = 600.0
"""Checking every signature of a long log takes seconds."""
_BUSY_SECONDS: Final = 10.0
_log: Final = logging.getLogger(__name__)


@dataclass(kw_only=True)
class BooksCondition:
    """What was found at the last look; they were in order when the site was opened."""

    site: OpenSite
    every: float = LOOK_SECONDS
    clock: Callable[[], float] = time.monotonic
    in_order: bool = field(init=False, default=True)
    _next: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        """The first look is due after ``every`` seconds."""
        self._next = self.clock() + self.every

    def look(self) -> None:
        """Look, if it is time; never raises for what is found."""
        if self.clock() < self._next:
            return
        self._next = self.clock() + self.every
        try:
            self._check()
        except DarkroomError as error:
            _log.error("the site is not in order: %s", error)
            self.in_order = False
        else:
            self.in_order = True

    def _check(self) -> None:
        config = self.site.config
        if read_policy(Path(config.policy)) != self.site.policy:
            raise ConfigError(f"{config.policy}: was changed; restart the steward, which still goes by the old one")
        check_store(Path(config.ledger), busy_seconds=_BUSY_SECONDS)
        # looked at from inside the turnstile, as the log is written to: a line without its end is damage
        noted = read_noted(Path(config.audit_log), self.site.identity.public, unfinished="refuse")
        check_ledger(Path(config.ledger), noted)
