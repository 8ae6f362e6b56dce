"""What privacy costs, without training: the ε of given settings, or the noise for a wanted ε."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from common import bounds  # noqa: TC001 - msgspec reads annotations at run time
from common.config import Config, parse_config
from common.errors import AccountingError, ConfigError, ConfigErrors
from common.host.progress import told_when_slow
from common.privacy.accounting import calibrate
from common.privacy.run_plan import private_plan
from common.privacy.statements import RunSettings, state

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from common.privacy.statements import Statements
    from simulations.scenario.scenario import Scenario


class Settings(Config, frozen=True, kw_only=True, rename="kebab"):
    """Public settings of a run; exactly one of ``noise_multiplier`` and ``epsilon`` is asked for and None.

    Attributes:
        noise_multiplier: z without the colluders' shares.
        epsilon: ε against the coordinator with its colluders.
        delta: δ.
        sampling_rate: q.
        rounds: T, attempts that were repeated included.
        population: units of all institutions together; absent: not known, and δ not checked against it.
        institutions: n; 1 is training in one place.
        colluders: t.

    """

    noise_multiplier: bounds.NoiseMultiplier | None = None
    epsilon: bounds.Epsilon | None = None
    delta: bounds.Delta
    sampling_rate: bounds.SamplingRate
    rounds: bounds.Rounds
    population: bounds.Population | None = None
    institutions: bounds.Institutions = 1
    colluders: bounds.Colluders = 0

    def faults(self) -> Iterator[str]:
        """Rules that types cannot say."""
        if (self.noise_multiplier is None) == (self.epsilon is None):
            yield "give noise-multiplier to learn epsilon, or epsilon to learn the noise: one of them"
        if self.colluders >= self.institutions:
            yield f"colluders: wanted fewer than institutions ({self.institutions}); got {self.colluders}"


def checked_settings(given: Mapping[str, object]) -> Settings:
    """The settings of command-line options, by their names without dashes in front; None: not given.

    Raises:
        ConfigErrors: Every option that is missing or out of its range: the accountant would not end, or lack memory.

    """
    table = {name: value for name, value in given.items() if value is not None}
    return parse_config(table, Settings, source="darkroom-sim budget")


def budget_of(settings: Settings) -> str:
    """The settings, and ε against each adversary, as text.

    Raises:
        AccountingError: Settings for which no (ε, δ) can be stated, or not in the memory there is.

    """
    with _accounting():
        return _budget_of(settings)


@contextmanager
def _accounting() -> Iterator[None]:
    try:
        with told_when_slow("the accountant works on it"):
            yield
    except MemoryError as error:
        raise AccountingError(
            "the accountant would need more memory than there is: give more noise, fewer rounds or a larger delta"
        ) from error


def _budget_of(settings: Settings) -> str:
    z = settings.noise_multiplier
    if settings.epsilon is not None:
        z = calibrate(
            settings.epsilon,
            delta=settings.delta,
            sampling_rate=settings.sampling_rate,
            rounds=settings.rounds,
            population=settings.population,
        )
    stated = state(
        RunSettings(
            unit="image",
            delta=settings.delta,
            institutions=settings.institutions,
            noise_multiplier=z or 0.0,
            sampling_rate=settings.sampling_rate,
            rounds=settings.rounds,
            colluders=settings.colluders,
            spare=settings.colluders,
            population=settings.population,
        )
    )
    return _table(stated, ["not counted: a cap on sampled units and rounding, a thousandth of delta in a run"])


def budget_of_scenario(scenario: Scenario, *, epsilon: float | None) -> str:
    """The same for a scenario's settings, or for them at another ε; everything that its run would count is counted.

    Raises:
        ConfigError: A scenario without privacy, or one that the other ε does not fit.
        AccountingError: Settings for which no (ε, δ) can be stated.

    """
    config = scenario.run_config()
    if config.privacy == "none":
        raise ConfigError(f'{config.name}: privacy = "none", so nothing is promised; name a scenario with privacy')
    if epsilon is not None:
        config = msgspec.structs.replace(config, privacy=msgspec.structs.replace(config.privacy, epsilon=epsilon))
    if faults := tuple(config.faults()):
        raise ConfigErrors(config.name, faults)
    with _accounting():
        plan = private_plan(config)
        report = None if plan is None else plan.report(plan.attempts)
    if plan is None or report is None or report.statements is None:
        raise ConfigError(f"{config.name}: its noise is repeatable, so nothing is promised")
    more = [
        f"{config.rounds} rounds and {plan.config.repeats} repeated attempts",
        f"at most {plan.cap} units of one institution in a sample, which fails with probability {plan.lost:.1g} in all",
        f"each unit's gradient clipped to {plan.config.clip:g}, mean of {plan.config.draws} draws",
    ]
    return _table(report.statements, more)


def _table(stated: Statements, more: list[str]) -> str:
    s = stated.settings
    share = f"{s.sampling_rate:g}"
    if s.population is not None:
        share += f", {s.sampling_rate * s.population:.4g} of {s.population} units expected in a round"
    facts = [
        ("unit", s.unit),
        ("delta", f"{s.delta:g}"),
        ("sampling rate", share),
        ("rounds", str(s.rounds)),
        ("institutions", f"{s.institutions}, of whom {s.colluders} may collude"),
        ("noise multiplier", f"{s.noise_multiplier:.4g}" + (" without the colluders' shares" if s.colluders else "")),
    ]
    rows = [(str(one.adversary), f"{one.noise_multiplier:.4g}", _figure(one.epsilon)) for one in stated.all]
    if s.institutions == 1:  # nobody else adds noise, so there is one adversary
        rows = [("whoever sees every noised sum", *rows[2][1:])]
    width = max(len(row[0]) for row in rows)
    lines = [f"{name:17} {value}" for name, value in facts] + [f"{'':17} {line}" for line in more]
    lines += ["", f"{'against':{width}}  {'z':>8}  {'epsilon':>8}"]
    lines += [f"{who:{width}}  {z:>8}  {found:>8}" for who, z, found in rows]
    return "\n".join([*lines, "", f"accountant: {stated.accountant}"])


def _figure(value: float | None) -> str:
    """ε to 4 digits, rounded up."""
    if value is None:
        return "none"
    step = 10.0 ** (math.floor(math.log10(value)) - 3) if value > 0 else 1.0
    return f"{math.ceil(value / step - 1e-9) * step:#.4g}"
