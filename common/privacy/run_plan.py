"""What a run's public settings fix: how much noise, how many attempts, which cap, and what may be said about it.

Coordinator and institutions each work this out from the run configuration alone, so that nobody has to be believed.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from common.errors import MechanismError
from common.privacy.accounting import calibrate
from common.privacy.mechanisms import plan_noise, rounding_slack
from common.privacy.sampling import overflow_probability, smallest_cap
from common.privacy.statements import RunSettings, Statements, figure, state

if TYPE_CHECKING:
    from common.config import PrivacyConfig, RunConfig
    from common.privacy.mechanisms import NoisePlan

Aggregation: TypeAlias = Literal["secure", "clear"]

LOST_SHARE: Final = 1e-3
"""Share of δ that samples which reach their cap may use up, over the whole run and all institutions."""
SLACK_SHARE: Final = 1e-6
"""Share of δ set aside for sums of rounded noise, at the target ε."""
NO_PRIVACY: Final = "Not private: the noise of this run is repeatable, and whoever knows the seed can remove it."


@dataclass(frozen=True, kw_only=True)
class PrivatePlan:
    """A run's privacy, worked out.

    Attributes:
        config: The public settings.
        institutions: n, whose shares are in every sum.
        attempts: Most attempts that may be sent, T of the calibration.
        cap: Most units of one institution in one sample.
        lost: Probability that some sample of the run reaches its cap.
        noise_multiplier: z of what n − t institutions add up to.
        aggregation: Whether the coordinator learns the sum alone, or each institution's share.

    """

    config: PrivacyConfig
    aggregation: Aggregation
    institutions: int
    attempts: int
    cap: int
    lost: float
    noise_multiplier: float

    @property
    def slack(self) -> float:
        """Most total variation that sums of rounded noise may have, over the whole run."""
        return _slack_allowed(self.config)

    def noise(self, dimension: int) -> NoisePlan:
        """How vectors of this length become integers.

        Raises:
            MechanismError: No scale carries the noise, or only one too coarse to be accounted for.

        """
        plan = plan_noise(
            coordinates=dimension,
            clip=self.config.clip,
            noise_multiplier=self.noise_multiplier,
            institutions=self.institutions,
            cap=self.cap * self.institutions,
            colluders=self.config.colluders,
        )
        if not rounding_slack(plan, rounds=self.attempts) <= self.slack:
            raise MechanismError("sums of this noise are too coarse for delta: lower privacy.largest_site")
        return plan

    def report(self, attempts: int) -> PrivacyReport:
        """What may be said once this many attempts were sent."""
        config = self.config
        if not config.is_private:
            return PrivacyReport(attempts=attempts, aggregation=self.aggregation, statements=None)
        settings = RunSettings(
            unit=config.unit,
            delta=config.delta,
            institutions=self.institutions,
            noise_multiplier=self.noise_multiplier,
            sampling_rate=config.sampling_rate,
            rounds=max(1, attempts),
            colluders=config.colluders,
            spare=config.colluders,
            population=config.population,
            slack=self.slack,
            lost=self.lost,
        )
        return PrivacyReport(attempts=attempts, aggregation=self.aggregation, statements=_state(settings))


@dataclass(frozen=True, kw_only=True)
class PrivacyReport:
    """The four statements of a run, or that there are none."""

    attempts: int
    aggregation: Aggregation
    statements: Statements | None

    @property
    def private(self) -> bool:
        """Whether anything is promised."""
        return self.statements is not None

    def as_text(self) -> str:
        """What is promised, in words."""
        if self.statements is None:
            return NO_PRIVACY
        text = self.statements.as_text()
        return text if self.aggregation == "secure" else f"{text}\n{_in_the_clear(self.statements)}"

    def as_values(self) -> dict[str, Any]:
        """The same as plain values for JSON."""
        return {
            "private": self.private,
            "secure_aggregation": self.aggregation == "secure",
            "attempts": self.attempts,
            "statements": None if self.statements is None else asdict(self.statements),
            "text": self.as_text().splitlines(),
        }


def _in_the_clear(statements: Statements) -> str:
    return (
        "This run has no secure aggregation: the coordinator sees each institution's noised share alone. Against it "
        f"the last of the four holds (epsilon = {figure(statements.fallback.epsilon)}), not the first."
    )


def private_plan(config: RunConfig) -> PrivatePlan | None:
    """The run's privacy, worked out once per process; None for a run without.

    Raises:
        AccountingError: Settings for which no noise gives the wanted (ε, δ).

    """
    if config.privacy == "none":
        return None
    aggregation: Aggregation = "secure" if config.is_secure else "clear"
    return _plan(config.privacy, config.rounds, config.server.minimum_institutions, aggregation)


@lru_cache(maxsize=64)
def _plan(config: PrivacyConfig, rounds: int, institutions: int, aggregation: Aggregation) -> PrivatePlan:
    attempts = rounds + config.repeats
    largest = config.largest_site or config.population
    rate = config.sampling_rate
    cap = smallest_cap(largest, rate=rate, probability=LOST_SHARE * config.delta / (attempts * institutions))
    lost = attempts * institutions * overflow_probability(largest, rate=rate, cap=cap)
    z = calibrate(
        config.epsilon,
        delta=config.delta,
        sampling_rate=rate,
        rounds=attempts,
        slack=_slack_allowed(config),
        lost=lost,
        population=config.population,
    )
    return PrivatePlan(
        config=config,
        aggregation=aggregation,
        institutions=institutions,
        attempts=attempts,
        cap=cap,
        lost=lost,
        noise_multiplier=z,
    )


def _slack_allowed(config: PrivacyConfig) -> float:
    return SLACK_SHARE * config.delta / (1 + math.exp(min(config.epsilon, 600.0)))


@lru_cache(maxsize=64)
def _state(settings: RunSettings) -> Statements:
    return state(settings)
