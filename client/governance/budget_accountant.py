"""The accountant behind the ledger: charged contributions composed by their privacy loss distributions.

A composition takes some tenths of a second on the fine grid and some hundredths on a coarser one, whose answer is as
valid and hardly larger. Each distinct one is computed once in a process.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from common.errors import UnknownEvent
from common.privacy.accounting import Rounds, epsilon, epsilon_bound

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from client.governance.ledger import Event

_KNOWN: Final = "add_remove_one"


class PldAccountant:
    """A :class:`client.governance.ledger.BudgetAccountant` for Poisson-sampled Gaussian sums.

    Guarantee: what it answers is at least the ε of all events together at this δ, their slacks and losses included; it
    refuses whatever it does not know.
    """

    def epsilon(self, events: Sequence[Event], *, delta: float) -> float:
        """See :class:`client.governance.ledger.BudgetAccountant`.

        Raises:
            UnknownEvent: A relation other than adding or removing one unit.
            AccountingError: Slack or losses use up δ, or there is no finite ε.

        """
        return _composed(tuple(events), delta, epsilon)

    def bound(self, events: Sequence[Event], *, delta: float) -> float:
        """See :class:`client.governance.ledger.QuickAccountant`; raises as :meth:`epsilon`."""
        return _composed(tuple(events), delta, epsilon_bound)


@lru_cache(maxsize=4096)
def _composed(events: tuple[Event, ...], delta: float, price: Callable[..., float]) -> float:
    for event in events:
        if event.relation != _KNOWN:
            raise UnknownEvent(f"wanted events for {_KNOWN}, got {event.relation!r}: nothing is stated about it")
    rounds = [
        Rounds(noise_multiplier=one.noise_multiplier, sampling_rate=one.sampling_rate, rounds=one.count)
        for one in events
    ]
    # each slack is Pinsker's bound on a divergence, and the divergences of independent rounds add up
    slack = math.sqrt(sum(one.count * one.slack**2 for one in events))
    return price(rounds, delta=delta, slack=slack, lost=sum(one.count * one.lost for one in events))
