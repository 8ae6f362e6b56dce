from __future__ import annotations

import math
import warnings
from typing import Any

import dp_accounting
import numpy as np
import pytest
from dp_accounting import rdp
from dp_accounting.pld import PLDAccountant
from opacus.accountants import PRVAccountant
from scipy import optimize, special, stats

from common.bounds import SMALLEST_MULTIPLIER
from common.errors import AccountingError, UnknownEvent
from common.privacy.accounting import Rounds, calibrate, epsilon, epsilon_bound

GRID = [(0.032, 1.0, 1000), (0.1024, 1.576, 500), (0.01, 0.8, 2000), (0.5, 3.0, 100), (0.001, 0.7, 5000)]


def rounds(q: float, z: float, t: int) -> Rounds:
    return Rounds(noise_multiplier=z, sampling_rate=q, rounds=t)


def event(q: float, z: float, t: int) -> dp_accounting.DpEvent:
    one = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(z))
    return dp_accounting.SelfComposedDpEvent(one, t)


@pytest.mark.parametrize(("q", "z", "t"), GRID)
def test_equals_dp_accounting_itself(q: float, z: float, t: int) -> None:
    wanted = PLDAccountant().compose(event(q, z, t)).get_epsilon(1e-5 - t * 2**-50)
    assert epsilon([rounds(q, z, t)], delta=1e-5) == pytest.approx(wanted, rel=1e-9)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Of the Gaussian mechanism with sensitivity over deviation μ, in closed form (Balle and Wang 2018)."""

    def excess(e: float) -> float:
        first, second = special.log_ndtr(mu / 2 - e / mu), e + special.log_ndtr(-mu / 2 - e / mu)
        return float(first + np.log1p(-np.exp(second - first)) - math.log(delta)) if second < first else -math.inf

    high = 1.0
    while excess(high) > 0:
        high *= 2
    return float(optimize.brentq(excess, 0, high, xtol=1e-9)) if excess(0.0) > 0 else 0.0


@pytest.mark.parametrize("delta", [1e-30, 1e-13, 1e-11, 1e-10, 1e-5])
@pytest.mark.parametrize(("mu", "t"), [(0.5, 3000), (1.0, 5000), (8.0, 10_000), (0.05, 100_000), (12.0, 100_000)])
def test_no_figure_is_below_the_gaussian_mechanisms_own_formula(mu: float, t: int, delta: float) -> None:
    """Without sampling, T rounds are one Gaussian of μ = √T/z; a Fourier transform rounds, which shows at a small δ."""
    try:
        found = epsilon([rounds(1.0, math.sqrt(t) / mu, t)], delta=delta)
    except AccountingError:
        return
    assert found >= gaussian_epsilon(mu, delta)


@pytest.mark.parametrize(("q", "z", "t"), GRID)
def test_lies_within_opacus_prv_error(q: float, z: float, t: int) -> None:
    accountant = PRVAccountant()
    accountant.history = [(z, q, t)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        upper = accountant.get_epsilon(1e-5, eps_error=0.01, delta_error=1e-8)
    # the upper end of PRV's interval, whose width is twice its stated error
    assert upper - 0.021 <= epsilon([rounds(q, z, t)], delta=1e-5) <= upper + 1e-3


@pytest.mark.parametrize(("q", "z", "t"), GRID)
def test_is_below_the_bound_of_renyi_dp(q: float, z: float, t: int) -> None:
    bound = rdp.RdpAccountant().compose(event(q, z, t)).get_epsilon(1e-5)
    mine = epsilon([rounds(q, z, t)], delta=1e-5)
    assert 0.5 * bound < mine < bound


@pytest.mark.parametrize(("q", "z", "t"), GRID)
def test_the_quick_bound_holds_and_is_close(q: float, z: float, t: int) -> None:
    finest = PLDAccountant(value_discretization_interval=2e-5).compose(event(q, z, t)).get_epsilon(1e-5)
    bound = epsilon_bound([rounds(q, z, t)], delta=1e-5)
    assert finest * (1 - 1e-4) <= bound <= 1.01 * epsilon([rounds(q, z, t)], delta=1e-5)
    assert epsilon_bound([rounds(q, z, t)], delta=1e-5, slack=1e-12, lost=1e-7) > bound
    assert epsilon_bound([], delta=1e-5) == 0.0
    for nonsense in ({"delta": 1e-5, "lost": 1e-5}, {"delta": 0.0}):
        with pytest.raises(AccountingError):
            epsilon_bound([rounds(q, z, t)], **nonsense)
    with pytest.raises(UnknownEvent):
        epsilon_bound([event(q, z, t)], delta=1e-5)


def test_published_figures() -> None:
    assert round(epsilon([rounds(0.032, 1.0, 1000)], delta=1e-5, population=1000), 3) == 6.589
    assert calibrate(8.0, delta=1e-5, sampling_rate=2048 / 20_000, rounds=500, population=20_000) == 1.576


def test_one_unsampled_round_is_the_exact_gaussian_mechanism() -> None:
    """δ(ε) of Balle and Wang 2018, arXiv:1805.06530, theorem 8."""

    def delta(eps: float) -> float:
        return float(stats.norm.cdf(0.5 / 2 - eps * 2) - math.exp(eps) * stats.norm.cdf(-0.5 / 2 - eps * 2))

    exact = optimize.brentq(lambda eps: delta(eps) - 1e-6, 0.1, 10)
    mine = epsilon([rounds(1.0, 2.0, 1)], delta=1e-6)
    assert exact <= mine <= exact + 1e-4


def test_events_compose() -> None:
    whole = epsilon([rounds(0.05, 1.1, 300)], delta=1e-5)
    parts = epsilon([rounds(0.05, 1.1, 100), rounds(0.05, 1.1, 200)], delta=1e-5)
    assert parts == pytest.approx(whole, abs=1e-3)
    assert epsilon([rounds(0.05, 1.1, 300), rounds(0.2, 4.0, 50)], delta=1e-5) > whole
    assert epsilon([], delta=1e-5) == 0


def test_half_the_noise_or_twice_the_rate_cost_more() -> None:
    usual = epsilon([rounds(0.05, 1.1, 300)], delta=1e-5)
    assert epsilon([rounds(0.05, 0.55, 300)], delta=1e-5) > 2 * usual
    assert epsilon([rounds(0.1, 1.1, 300)], delta=1e-5) > 1.5 * usual


def test_slack_and_loss_enter_delta() -> None:
    events = [rounds(0.05, 1.1, 300)]
    plain = epsilon(events, delta=1e-5)
    for slack in (1e-12, 1e-9, 1e-8):
        with_slack = epsilon(events, delta=1e-5, slack=slack)
        assert with_slack >= plain
        left = 1e-5 - (1 + math.exp(with_slack)) * slack
        assert epsilon(events, delta=left) <= with_slack <= epsilon(events, delta=left) * (1 + 1e-6)
    assert epsilon(events, delta=1e-5, lost=4e-6) == pytest.approx(epsilon(events, delta=6e-6), rel=1e-12)


def test_slack_that_uses_up_delta_is_refused() -> None:
    with pytest.raises(AccountingError, match="uses up delta"):
        epsilon([rounds(0.05, 1.1, 300)], delta=1e-5, slack=1e-6)
    with pytest.raises(AccountingError, match="uses up delta"):
        epsilon([rounds(0.05, 1.1, 300)], delta=1e-5, lost=1e-5)
    with pytest.raises(AccountingError, match="slack and lost"):
        epsilon([rounds(0.05, 1.1, 300)], delta=1e-5, lost=-1e-5)


@pytest.mark.parametrize(
    ("target", "options"),
    [
        (1.0, {"sampling_rate": 0.05, "rounds": 200}),
        (8.0, {"sampling_rate": 0.3, "rounds": 60, "slack": 1e-10, "lost": 1e-6}),
        (0.1, {"sampling_rate": 1.0, "rounds": 1}),
        (50.0, {"sampling_rate": 0.2, "rounds": 300}),
    ],
)
def test_calibrated_noise_meets_the_target_closely(target: float, options: dict[str, Any]) -> None:
    z = calibrate(target, delta=1e-5, **options)
    extra = {name: options.get(name, 0.0) for name in ("slack", "lost")}
    reached = epsilon([rounds(options["sampling_rate"], z, options["rounds"])], delta=1e-5, **extra)
    assert reached <= target
    less = epsilon([rounds(options["sampling_rate"], 0.995 * z, options["rounds"])], delta=1e-5, **extra)
    assert less > target


def test_no_amount_of_noise_below_ten_thousand_is_refused() -> None:
    with pytest.raises(AccountingError, match="10000"):
        calibrate(1e-4, delta=1e-9, sampling_rate=1.0, rounds=10_000)


class Lookalike(Rounds):
    """Something that claims to be what the accountant knows."""


@pytest.mark.parametrize(
    "unknown", [None, "rounds", object(), Lookalike(noise_multiplier=1, sampling_rate=1, rounds=1)]
)
def test_unknown_events_are_refused(unknown: Any) -> None:
    with pytest.raises(UnknownEvent, match="states nothing"):
        epsilon([rounds(0.05, 1.1, 300), unknown], delta=1e-5)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan, 1e-3, 2e-3])
def test_meaningless_deltas_are_refused(delta: float) -> None:
    with pytest.raises(AccountingError):
        epsilon([rounds(0.05, 1.1, 300)], delta=delta, population=1000)
    with pytest.raises(AccountingError):
        calibrate(1.0, delta=delta, sampling_rate=0.05, rounds=300, population=1000)


@pytest.mark.parametrize(
    ("q", "z", "t"),
    [(0.0, 1, 1), (1.1, 1, 1), (0.1, 0.0, 1), (0.1, -1, 1), (0.1, math.inf, 1), (0.1, math.nan, 1), (0.1, 1, 0)],
)
def test_nonsense_events_are_refused(q: float, z: float, t: int) -> None:
    with pytest.raises(AccountingError):
        rounds(q, z, t)


def test_hopeless_epsilons_are_refused_instead_of_computed() -> None:
    with pytest.raises(AccountingError, match="more noise"):
        epsilon([rounds(0.5, 0.1, 10_000)], delta=1e-5)


@pytest.mark.parametrize(("target", "q", "t"), [(1e-3, 1e-6, 1), (1e3, 1e-6, 100_000)])
def test_a_target_that_next_to_no_noise_meets_gets_the_least_that_a_manifest_may_have(
    target: float, q: float, t: int
) -> None:
    """The search for the very least would take minutes: a unit is hardly ever sampled, so z = 1e-9 would do."""
    assert calibrate(target, delta=1e-5, sampling_rate=q, rounds=t) == SMALLEST_MULTIPLIER
