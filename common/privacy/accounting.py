"""What was done, and the (ε, δ) that it costs.

Events say what happened and nothing about its price; the accountant prices them with privacy loss distributions
(Koskela et al. 2020, arXiv:1906.03049; Doroshenko et al. 2022, arXiv:2207.04380) as implemented by Google's
dp-accounting. Every ε is an upper bound: the distributions are rounded pessimistically at whatever grid is used, so a
coarser grid costs a little and never understates.

Neighbouring data sets differ by one privacy unit added or removed. What the accountant does not see enters δ in two
ways. ``slack``, a total variation τ (sums of rounded noise), costs (1 + e^ε)·τ, since a mechanism within τ of an (ε, δ)
one is (ε, δ + (1 + e^ε)·τ). ``lost``, the probability that the events were not what they are said to be (a sample that
reached its cap), costs just that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from dp_accounting import NeighboringRelation
from dp_accounting.pld import privacy_loss_distribution as pld

from common.bounds import LARGEST_MULTIPLIER, SMALLEST_MULTIPLIER
from common.errors import AccountingError, UnknownEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ACCOUNTANT: Final = "PLD (dp-accounting), Poisson-subsampled Gaussian, add/remove one unit"
FINE: Final = 1e-4
"""Grid of the privacy loss for every ε that is reported; coarser where ε passes 50, at a relative cost below 1e-3."""
COARSE: Final = 1e-2
SEARCH: Final = 1e-3
LARGEST_EPSILON: Final = 5e4
"""Above this nothing is protected, and the figure is not worth its computation."""
LARGEST_GRID: Final = 2**23
"""Most points of a privacy loss: some seconds and half a GiB. A coarser grid is taken instead, or nothing is stated."""
TRANSFORM: Final = 2.0**-50
"""Taken off δ for each round: a composition is a power of a Fourier transform, whose rounding grows with the rounds to
some 2⁻⁵² each. At q = 1 it made ε too small, against the Gaussian mechanism's own formula: by 1e-5 of itself for 10⁴
rounds at δ = 1e-10, and by a third for 10⁵ rounds at δ = 1e-30."""


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """Rounds of one kind: Poisson-sample units, clip each to C, sum, add Gaussian noise of standard deviation z·C.

    Attributes:
        noise_multiplier: z > 0.
        sampling_rate: q in (0, 1], the chance of each unit to be in a round's sample.
        rounds: How many, at least 1; an attempt that was sent and then repeated counts too.

    """

    noise_multiplier: float
    sampling_rate: float
    rounds: int

    def __post_init__(self) -> None:
        _require(self.noise_multiplier > 0 and math.isfinite(self.noise_multiplier), "noise_multiplier > 0", self)
        _require(0 < self.sampling_rate <= 1, "sampling_rate in (0, 1]", self)
        _require(self.rounds >= 1, "rounds ≥ 1", self)


def _require(condition: object, wanted: str, got: object) -> None:
    if not condition:
        raise AccountingError(f"wanted {wanted}; got {got}")


def check_delta(delta: float, population: int | None) -> None:
    """Refuse a δ that promises nothing.

    Raises:
        AccountingError: δ is outside (0, 1), or at least 1/N: publishing a random unit in full would satisfy it.

    """
    _require(0 < delta < 1, "delta in (0, 1)", delta)
    if population is not None:
        _require(population >= 1, "at least one privacy unit", population)
        if delta >= 1 / population:
            raise AccountingError(
                f"delta = {delta:g} is not below 1/N = {1 / population:g}: publishing one whole unit would satisfy it; "
                f"take a delta of {0.1 / population:.1g} or less",
            )


def epsilon(
    events: Sequence[Rounds],
    *,
    delta: float,
    slack: float = 0.0,
    lost: float = 0.0,
    population: int | None = None,
) -> float:
    """The smallest ε that the accountant proves for these events together.

    Args:
        events: What was done; none at all costs 0.
        delta: The δ to be stated.
        slack: Total variation between the mechanism that ran and these events, over all of them.
        lost: Probability, over all of them, that the events are void.
        population: Number of units N, where known; δ must be below 1/N.

    Guarantee: if the mechanism that ran is within ``slack`` of the events in total variation, save with probability
    ``lost``, its transcript is (ε, δ)-DP for adding or removing one unit.

    Raises:
        UnknownEvent: Something other than :class:`Rounds` is among the events.
        AccountingError: Nonsense, a δ of 1/N or more, a slack that uses up δ, or an ε above :data:`LARGEST_EPSILON`.

    Example:
        A hundred rounds with a tenth of all units each, and noise as large as one clipped gradient:

        >>> training = Rounds(noise_multiplier=1.0, sampling_rate=0.1, rounds=100)
        >>> round(epsilon([training], delta=1e-5), 2)
        7.05

    """
    check_delta(delta, population)
    _refuse_unknown(events)
    left = _left(delta, slack, lost, rounds=sum(each.rounds for each in events))
    if not events:
        return 0.0
    rough = _solve(_compose(events, COARSE), left, slack)
    finer = _affordable(events, FINE if rough <= 50 else SEARCH)
    if rough > 500 or finer >= COARSE:
        return rough
    return min(rough, _solve(_compose(events, finer), left, slack))


def epsilon_bound(events: Sequence[Rounds], *, delta: float, slack: float = 0.0, lost: float = 0.0) -> float:
    """The same on a coarser grid: within some hundredths of a second, and usually the same to four digits.

    Arguments and guarantee are those of :func:`epsilon`.

    Raises:
        UnknownEvent: Something other than :class:`Rounds` is among the events.
        AccountingError: As :func:`epsilon`.

    """
    check_delta(delta, None)
    _refuse_unknown(events)
    left = _left(delta, slack, lost, rounds=sum(each.rounds for each in events))
    return _solve(_compose(events, _affordable(events, SEARCH)), left, slack) if events else 0.0


def _left(delta: float, slack: float, lost: float, *, rounds: int) -> float:
    """δ without what is lost."""
    _require(slack >= 0 and lost >= 0, "slack and lost ≥ 0", (slack, lost))
    if lost >= delta:
        raise AccountingError(f"a loss of {lost:g} uses up delta = {delta:g}: raise the cap on sampled units")
    left = delta - lost - TRANSFORM * rounds
    _require(left > 0, f"a delta above {TRANSFORM * rounds:.2g}, to which {rounds} rounds can be accounted for", delta)
    return left


def _refuse_unknown(events: Sequence[object]) -> None:
    for event in events:
        if type(event) is not Rounds:
            raise UnknownEvent(f"the accountant knows Rounds only and states nothing about {event!r}")


def _affordable(events: Sequence[Rounds], grid: float) -> float:
    """This grid, or a coarser one on which the losses of all events together have at most :data:`LARGEST_GRID` points.

    A round's loss reaches some 9 deviations beyond 1/(2z²), its largest mean; the mean of all is at most the sum of
    q/(2z²), as the divergence is convex.

    Raises:
        AccountingError: So much can be lost that not even the coarsest grid holds it.

    """
    means = [0.5 / max(each.noise_multiplier, 1e-6) ** 2 for each in events]  # so small that its square is not 0
    total = sum(each.rounds * each.sampling_rate * mean for each, mean in zip(events, means, strict=True))
    square = sum(
        each.rounds * each.sampling_rate * (mean**2 + 2 * mean) for each, mean in zip(events, means, strict=True)
    )
    largest = max(mean + 9 * math.sqrt(2 * mean) for mean in means)
    reach = total + 9 * math.sqrt(square) + largest
    while grid < COARSE and reach / grid > LARGEST_GRID:
        grid = min(10 * grid, COARSE)
    _require(reach / grid <= LARGEST_GRID, f"an epsilon of at most {LARGEST_EPSILON:g}: use more noise", events)
    return grid


def _compose(events: Sequence[Rounds], grid: float) -> Any:  # noqa: ANN401 - dp-accounting is untyped
    return _composed(tuple(events), grid)


@lru_cache(maxsize=4)
def _composed(events: tuple[Rounds, ...], grid: float) -> Any:  # noqa: ANN401 - dp-accounting is untyped
    """Kept for the next δ: a ledger asks for a run's and for a lifetime's at each charge."""
    _affordable(events, COARSE)
    total = pld.identity(value_discretization_interval=grid)
    for event in events:
        total = total.compose(_single(event.noise_multiplier, event.sampling_rate, grid).self_compose(event.rounds))
    return total


@lru_cache(maxsize=16)
def _single(noise_multiplier: float, sampling_rate: float, grid: float) -> Any:  # noqa: ANN401 - dp-accounting is untyped
    """One round's privacy loss, which takes longer than composing it with itself."""
    return pld.from_gaussian_mechanism(
        standard_deviation=noise_multiplier,
        sampling_prob=sampling_rate,
        value_discretization_interval=grid,
        neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
    )


def _solve(distribution: Any, delta: float, slack: float) -> float:  # noqa: ANN401 - dp-accounting is untyped
    """The smallest ε with δ_acc(ε) + (1 + e^ε)·slack ≤ δ, by iteration from below."""
    bound = _bounded(distribution.get_epsilon_for_delta(delta))
    if slack == 0:
        return bound
    for _ in range(100):
        left = delta - (1 + math.exp(min(bound, 700.0))) * slack
        if left <= 0:
            raise AccountingError(
                f"a slack of {slack:g} at epsilon ≈ {bound:.3g} uses up delta = {delta:g}: "
                "take a larger scale or a larger delta",
            )
        following = _bounded(distribution.get_epsilon_for_delta(left))
        if following <= bound * (1 + 1e-9):
            return float(bound * (1 + 1e-9))
        bound = following
    raise AccountingError(
        f"a slack of {slack:g} leaves no epsilon for delta = {delta:g}: raise the cap on sampled units"
    )


def _bounded(value: float) -> float:
    _require(value <= LARGEST_EPSILON, f"an epsilon of at most {LARGEST_EPSILON:g}: use more noise", value)
    return max(float(value), 0.0)


def calibrate(  # noqa: PLR0913 - the settings that z depends on
    target: float,
    *,
    delta: float,
    sampling_rate: float,
    rounds: int,
    slack: float = 0.0,
    lost: float = 0.0,
    population: int | None = None,
) -> float:
    """The smallest noise multiplier z that a manifest may have, rounded up to 4 digits, whose ε is at most ``target``.

    The search runs on a coarse grid and the answer is checked on the fine one, so it errs to more noise.

    Raises:
        AccountingError: Nonsense, or a target that no noise up to :data:`common.bounds.LARGEST_MULTIPLIER` meets.

    Example:
        >>> round(calibrate(8.0, delta=1e-5, sampling_rate=0.1, rounds=100), 2)
        0.94

    """
    _require(target > 0 and math.isfinite(target), "a target epsilon > 0", target)

    def meets(z: float, grid: float) -> bool:
        event = Rounds(noise_multiplier=z, sampling_rate=sampling_rate, rounds=rounds)
        try:
            return _solve(_compose([event], grid), left, slack) <= target
        except AccountingError:
            return False

    check_delta(delta, population)
    left = _left(delta, slack, lost, rounds=rounds)
    low, high = 0.5, 1.0
    while not meets(high, COARSE):
        low, high = high, 2 * high
        _require(high <= LARGEST_MULTIPLIER, f"a target epsilon that z ≤ {LARGEST_MULTIPLIER:g} meets", target)
    while meets(low, COARSE):
        low, high = low / 2, low
        if low < SMALLEST_MULTIPLIER:  # the smaller z, the longer it takes, and there is no least one where q·T ≤ δ
            return SMALLEST_MULTIPLIER if meets(SMALLEST_MULTIPLIER, SEARCH) else high
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if meets(middle, SEARCH) else (middle, high)
    return _polish(high, lambda z: meets(z, FINE if target <= 50 else SEARCH))


def _polish(start: float, meets: Callable[[float], bool]) -> float:
    """The least 4-digit z near ``start`` that meets the target, by bisection on the fine grid."""
    step = 10.0 ** (math.floor(math.log10(start)) - 3)
    high = math.ceil(start / step)
    while not meets(high * step):
        high += 1
    low, stride = high - 1, 1
    while low > 0 and meets(low * step):
        low, high, stride = low - 2 * stride, low, 2 * stride
    low = max(low, 0)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if meets(middle * step) else (middle, high)
    return round(high * step, 12)
