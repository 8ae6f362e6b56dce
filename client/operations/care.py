"""What a serving steward looks after now and then: records that have expired, and whether its books are in order.

Guarantee: from the first look of a day on, nothing that had expired by then is trained on, even if erasing it fails or
the vault cannot be opened: the steward forgets its run first, and gets its pictures anew, without expired ones, when
the run is proposed again.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from client.governance.ledger_store import check_store
from client.governance.policy import read_policy
from client.governance.rollback import check_ledger, read_noted
from client.operations.erasure import erase_noted
from client.site.vault_access import open_noted
from client.vault.records import today
from common.errors import ConfigError, DarkroomError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import date

    from client.governance.signed_releases import ReleaseBook
    from client.site.open_site import OpenSite
    from client.site.settings import VaultConfig
    from client.site.vault_access import HeldVault
    from common.audit_log import AuditLog

_log: Final = logging.getLogger(__name__)
LOOK_SECONDS: Final = 600.0
"""Between looks at the books: checking every signature of a long log takes seconds."""


@dataclass(kw_only=True)
class Retention:
    """Erasing what has expired, once a day.

    Args:
        vault: Where the records are.
        audit: The site's log.
        releases: What the site signed.
        forget: Drops every encoded picture in memory.
        today: The date.

    """

    vault: VaultConfig | HeldVault
    audit: AuditLog
    releases: ReleaseBook
    forget: Callable[[], None]
    today: Callable[[], date] = today
    _done: date | None = field(init=False, default=None)

    def look(self) -> None:
        """Erase, if this day's expired records are not erased yet; called while no request is acted on.

        Raises:
            DarkroomError: It could not be done; the next look tries again.

        """
        day = self.today()
        if self._done is not None and day <= self._done:
            return
        try:
            self._erase(day)
        except DarkroomError:
            self.forget()  # nobody knows what has expired, so nothing that is in memory may be used
            raise
        self._done = day

    def _erase(self, day: date) -> None:
        with open_noted(self.vault, self.audit, access="write") as vault:
            plan = vault.plan_expiry(day)
            if plan.records:
                self.forget()
                erase_noted(self.audit, "expire", plan, lambda: vault.erase_expired(day), book=self.releases)
                _log.info("records that had expired by %s are erased", day)


@dataclass(kw_only=True)
class BooksCheck:
    """Whether policy, ledger and log are in order, as found at the last look; they were when the site was opened."""

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
        if read_policy(config.policy) != self.site.policy:
            raise ConfigError(f"{config.policy}: was changed; restart the steward, which still goes by the old one")
        check_store(config.ledger)
        # looked at from inside the admission, as the log is written to: a line without its end is damage
        noted = read_noted(config.audit_log, self.site.identity.public, unfinished="refuse")
        check_ledger(config.ledger, noted)
