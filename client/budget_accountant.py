"""The ledger's accountant: its events, priced with privacy loss distributions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from common.errors import AccountingError, UnknownEvent
from common.privacy.accounting import Rounds, epsilon

if TYPE_CHECKING:
    from collections.abc import Sequence

    from client.ledger import Event


class PldAccountant:
    """A :class:`client.ledger.BudgetAccountant` over :mod:`common.privacy.accounting`."""

    def epsilon(self, events: Sequence[Event], *, delta: float) -> float:
        """ε of all events together; ``inf`` for noise too small to be accounted for.

        Raises:
            UnknownEvent: Another neighbouring relation than adding or removing one unit.

        """
        for event in events:
            if event.relation != "add_remove_one":
                raise UnknownEvent(f"the accountant knows add_remove_one only; got {event.relation!r}")
        rounds = [
            Rounds(noise_multiplier=event.noise_multiplier, sampling_rate=event.sampling_rate, rounds=event.count)
            for event in events
        ]
        slack = math.fsum(event.slack * event.count for event in events)
        lost = math.fsum(event.lost * event.count for event in events)
        try:
            return epsilon(rounds, delta=delta, slack=slack, lost=lost)
        except UnknownEvent:
            raise
        except AccountingError:
            # nothing can be promised (noise too small, or slack that uses up δ): over any budget
            return math.inf
