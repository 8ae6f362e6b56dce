"""Who learns how much: the four (ε, δ) of a run, each with everything that it depends on.

What an adversary sees is the noised sum without the shares that it knows. If noise is sized so that m − s of m
institutions reach z, each share is z²/(m − s), and against k known ones z·√((m − k)/(m − s)) is left. Rounds may differ
in m; the statements take the worst.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from common.errors import AccountingError, NotPrivate
from common.privacy.accounting import ACCOUNTANT, Rounds, epsilon

if TYPE_CHECKING:
    from collections.abc import Callable

Unit: TypeAlias = Literal["image", "subject"]

RELATION: Final = "adding or removing one unit"
EXCLUDED: Final = (
    "what is published apart from the rounds: number of institutions, rounds, rates, the adapter's start",
    "the intake: a unit is what a vault holds after it; which files it took was decided by looking at all of them",
    "float64 functions and float32 gradients are taken as exact",
    "a person known to two institutions, who is two units: up to 2·epsilon at (1 + e^epsilon)·delta",
    "choices made by looking at the data, and other runs over the same data: see each institution's ledger",
)


class Adversary(StrEnum):
    """Who looks, and at what."""

    SERVER = "the coordinator with colluding institutions"
    INSTITUTIONS = "other institutions"
    PUBLIC = "whoever gets the adapter, or any number of its images"
    FALLBACK = "the coordinator, if secure aggregation fails for one institution"


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What a run's (ε, δ) depend on.

    Attributes:
        unit: What is protected.
        delta: δ of every statement.
        institutions: n, the fewest whose shares are in any sum that is released.
        roster: The most; absent: n.
        colluders: t < n, whom the coordinator may be in league with.
        noise_multiplier: z, reached by all institutions but ``spare``, as in :class:`NoisePlan`.
        spare: s < n, :attr:`NoisePlan.colluders`; with s = t the coordinator faces z itself.
        sampling_rate: q.
        rounds: T, every sent attempt counted.
        population: Fewest units N of all institutions together, where known; δ must be below 1/N.
        slack: Of the sum of several shares, over all rounds: :func:`common.privacy.mechanisms.rounding_slack`.
        lost: Over all rounds: T times :func:`common.privacy.sampling.overflow_probability`, summed over institutions.
        private: False where noise or samples were repeatable.

    """

    unit: Unit
    delta: float
    institutions: int
    noise_multiplier: float
    sampling_rate: float
    rounds: int
    colluders: int = 1
    spare: int = 0
    roster: int | None = None
    population: int | None = None
    slack: float = 0.0
    lost: float = 0.0
    private: bool = True

    def __post_init__(self) -> None:
        for known in (self.colluders, self.spare):
            if not 0 <= known < self.institutions:
                raise AccountingError(
                    f"wanted 0 ≤ colluders, spare < institutions, got {known} of {self.institutions}: "
                    "someone honest must add noise",
                )
        if self.roster is not None and self.roster < self.institutions:
            raise AccountingError(f"wanted a roster of at least {self.institutions} institutions, got {self.roster}")

    def noise_left(self, known: Callable[[int], int]) -> float:
        """Noise multiplier without ``known(m)`` of m shares, for the m that leaves least; 0 if none is left."""
        sizes = {self.institutions, self.roster or self.institutions}  # monotone in m, so the ends suffice
        return min(self.noise_multiplier * math.sqrt(max(0, m - known(m)) / (m - self.spare)) for m in sizes)


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One (ε, δ), or none (``epsilon`` is None) where nothing can be promised.

    Attributes:
        adversary: Who looks.
        epsilon: ε.
        noise_multiplier: z against this adversary.
        known_shares: Shares of the noise that this adversary knows.

    """

    adversary: Adversary
    epsilon: float | None
    noise_multiplier: float
    known_shares: int


@dataclass(frozen=True, kw_only=True)
class Statements:
    """The four statements of a run."""

    settings: RunSettings
    server: Statement
    institutions: Statement
    public: Statement
    fallback: Statement
    accountant: str = ACCOUNTANT
    relation: str = RELATION
    excluded: tuple[str, ...] = EXCLUDED

    @property
    def all(self) -> tuple[Statement, ...]:
        """In the order in which they are printed."""
        return self.server, self.institutions, self.public, self.fallback

    def as_text(self) -> str:
        """Every statement as a sentence, and what holds for all."""
        s = self.settings
        head = f"Protected: one {s.unit}, under {self.relation}, at delta = {s.delta:g}."
        basis = (
            f"n ≥ {s.institutions}, t = {s.colluders}, z = {s.noise_multiplier:.4g} without {s.spare} of them, "
            f"q = {s.sampling_rate:.4g}, T = {s.rounds}; accountant: {self.accountant}."
        )
        lines = [f"- Against {one.adversary}{_known(one)}: epsilon = {figure(one.epsilon)}." for one in self.all]
        return "\n".join([head, *lines, basis, "Not included:", *(f"- {line}" for line in self.excluded)])


def _known(statement: Statement) -> str:
    known = statement.known_shares
    return (
        f", who know {known} of the shares of noise" if known and statement.adversary is not Adversary.FALLBACK else ""
    )


def figure(value: float | None) -> str:
    """ε to 3 digits, rounded up.

    Example:
        >>> figure(8.6412), figure(None)
        ('8.65', 'none: nothing is promised')

    """
    if value is None:
        return "none: nothing is promised"
    step = 10.0 ** (math.floor(math.log10(value)) - 2) if value > 0 else 1.0
    return f"{math.ceil(value / step - 1e-9) * step:#.3g}"


def state(settings: RunSettings) -> Statements:
    """Work out the four statements of a run.

    Raises:
        NotPrivate: Noise or samples were repeatable, so there is nothing to state.
        AccountingError: Nonsense, or a δ of 1/N or more.

    Example:
        >>> settings = RunSettings(
        ...     unit="image", delta=1e-5, institutions=10, noise_multiplier=1.0, sampling_rate=0.1, rounds=1, spare=1
        ... )
        >>> for one in state(settings).all:
        ...     print(figure(one.epsilon), "against", one.adversary)
        1.69 against the coordinator with colluding institutions
        1.69 against other institutions
        1.50 against whoever gets the adapter, or any number of its images
        12.8 against the coordinator, if secure aggregation fails for one institution

    """
    if not settings.private:
        raise NotPrivate("noise or samples came from a repeatable stream: no (ε, δ) holds for this run")
    n, t = settings.institutions, settings.colluders

    def statement(adversary: Adversary, known: Callable[[int], int]) -> Statement:
        z = settings.noise_left(known)
        # a single share is one rounding, not a sum of several
        slack = 0.0 if adversary is Adversary.FALLBACK else settings.slack
        bound = _or_none(lambda: _epsilon(settings, z, slack))
        return Statement(adversary=adversary, epsilon=bound, noise_multiplier=z, known_shares=known(n))

    _epsilon(settings, settings.noise_multiplier, settings.slack)  # a fault of the settings is an error, not a "none"
    return Statements(
        settings=settings,
        server=statement(Adversary.SERVER, lambda _: t),
        institutions=statement(Adversary.INSTITUTIONS, lambda _: max(t, 1)),
        public=statement(Adversary.PUBLIC, lambda _: 0),
        fallback=statement(Adversary.FALLBACK, lambda m: m - 1),
    )


def _epsilon(settings: RunSettings, z: float, slack: float) -> float:
    event = Rounds(noise_multiplier=z, sampling_rate=settings.sampling_rate, rounds=settings.rounds)
    return epsilon([event], delta=settings.delta, slack=slack, lost=settings.lost, population=settings.population)


def _or_none(compute: Callable[[], float]) -> float | None:
    try:
        return compute()
    except AccountingError:
        return None
