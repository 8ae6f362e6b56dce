"""Which trials a sweep holds: the scenario's own settings, and one axis at a time moved away from them.

A full factorial of seven axes would take days and answer little more: what is compared is always one column.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from simulations.sweep.trial import Trial, scenario_trial

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from simulations.scenario.scenario import Scenario


class Axis(StrEnum):
    """One question that a sweep answers."""

    EPSILON = "epsilon"
    """What each ε costs, up to no privacy with the same settings."""
    UNIT = "unit"
    """A picture, or a made-up subject of four neighbouring pictures."""
    TRAIN = "train"
    """Which factors are trained, each at the learning rates that suit it."""
    RANK = "rank"
    DRAWS = "draws"
    """K, the draws whose mean is a unit's gradient."""
    PICTURES = "pictures"
    """Fewer pictures: what more of them would bring."""
    PLACE = "place"
    """Three institutions against one that holds everything, with the same noise."""


Change: TypeAlias = "Mapping[str, Any]"

_CHANGES: Final[Mapping[Axis, Sequence[Change]]] = {
    Axis.EPSILON: [{"epsilon": value} for value in (1.0, 2.0, 4.0, 8.0, math.inf)],
    Axis.UNIT: [{"unit": "image"}, {"unit": "subject", "grouped": 4, "draws": 4}],
    Axis.TRAIN: [
        *({"train": "B", "rank": 4, "learning_rate": rate} for rate in (5e-3, 1e-2, 2e-2)),
        *({"train": "AB", "rank": 4, "learning_rate": rate} for rate in (5e-3, 1e-2, 2e-2)),
        *({"train": "core", "rank": 16, "learning_rate": rate} for rate in (1e-2, 2e-2, 4e-2)),
    ],
    Axis.RANK: [{"rank": value} for value in (8, 16, 32)],
    Axis.DRAWS: [{"draws": value} for value in (1, 2, 4)],
    Axis.PICTURES: [{"kept": value} for value in (0.25, 0.5, 1.0)],
    Axis.PLACE: [{"place": place, "colluders": 0} for place in ("federated", "central")],
}


def trials(scenario: Scenario, axes: Sequence[Axis], *, seeds: Sequence[int]) -> tuple[Trial, ...]:
    """Every trial of the axes, seed by seed, so that a sweep that is stopped has whole seeds.

    Raises:
        ConfigError: A scenario without privacy.

    """
    return tuple(trial for seed in seeds for axis in axes for trial in _axis_trials(scenario, axis, seed))


def _axis_trials(scenario: Scenario, axis: Axis, seed: int) -> Iterator[Trial]:
    start = scenario_trial(scenario, axis=axis.value, seed=seed)
    for change in _CHANGES[axis]:
        yield msgspec.structs.replace(start, **change)
