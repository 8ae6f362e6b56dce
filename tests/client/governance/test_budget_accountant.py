"""The accountant behind the ledger against dp-accounting itself; what it does not know it refuses."""

from __future__ import annotations

import math
from itertools import pairwise

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant

from client.governance.ledger import Event, PldAccountant
from common.errors import AccountingError, UnknownEvent

DELTA = 1e-5


def event(z: float, q: float, count: int, **changes: float) -> Event:
    return Event(relation="add_remove_one", noise_multiplier=z, sampling_rate=q, count=count, **changes)


def independent(*events: Event) -> float:
    accountant = PLDAccountant(value_discretization_interval=2e-5)
    for one in events:
        gaussian = dp_accounting.GaussianDpEvent(one.noise_multiplier)
        accountant.compose(dp_accounting.PoissonSampledDpEvent(one.sampling_rate, gaussian), one.count)
    return float(accountant.get_epsilon(DELTA))


@pytest.mark.parametrize(
    "events",
    [
        (event(1.1, 0.2, 1),),
        (event(1.1, 0.2, 40),),
        (event(1.1, 0.2, 20), event(2.0, 0.5, 3)),  # two runs on one population
        (event(0.9, 0.05, 10), event(1.1, 0.2, 1), event(3.0, 1.0, 1)),
    ],
)
def test_all_events_together_cost_what_they_cost(events: tuple[Event, ...]) -> None:
    accountant = PldAccountant()
    wanted = independent(*events)
    for answer in (accountant.epsilon(events, delta=DELTA), accountant.bound(events, delta=DELTA)):
        assert wanted * (1 - 1e-4) <= answer <= 1.01 * wanted


def test_more_contributions_cost_more() -> None:
    costs = [PldAccountant().epsilon([event(1.1, 0.2, count)], delta=DELTA) for count in (1, 2, 3, 10, 11)]
    assert all(less < more for less, more in pairwise(costs))


@pytest.mark.parametrize("method", ["epsilon", "bound"])
def test_slack_and_losses_of_every_contribution_are_counted(method: str) -> None:
    price = getattr(PldAccountant(), method)
    plain = price([event(1.1, 0.2, 16)], delta=DELTA)
    lossy = price([event(1.1, 0.2, 16, lost=DELTA / 20)], delta=DELTA)
    assert lossy == pytest.approx(price([event(1.1, 0.2, 16)], delta=DELTA * 4 / 20), rel=1e-9)
    # 16 contributions of slack τ are within 4τ: as one of slack 4τ beside 15 of none
    together = price([event(1.1, 0.2, 16, slack=1e-10)], delta=DELTA)
    apart = price([event(1.1, 0.2, 15), event(1.1, 0.2, 1, slack=4e-10)], delta=DELTA)
    assert plain < together == pytest.approx(apart, rel=1e-6)
    for spent in ({"lost": DELTA / 16}, {"slack": DELTA}):
        with pytest.raises(AccountingError):
            price([event(1.1, 0.2, 16, **spent)], delta=DELTA)


@pytest.mark.parametrize("relation", ["replace_one", "none", "add_remove"])
def test_another_relation_is_refused(relation: str) -> None:
    strange = Event(relation=relation, noise_multiplier=1.0, sampling_rate=0.5)
    for price in (PldAccountant().epsilon, PldAccountant().bound):
        with pytest.raises(UnknownEvent, match=relation):
            price([event(1.1, 0.2, 1), strange], delta=DELTA)


def test_a_refused_event_is_not_remembered_as_free() -> None:
    for _ in range(2):
        with pytest.raises(AccountingError):
            PldAccountant().epsilon([event(1.1, 0.2, 1, lost=0.5)], delta=DELTA)
    assert math.isfinite(PldAccountant().epsilon([event(1.1, 0.2, 1)], delta=DELTA))
