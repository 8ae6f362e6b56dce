"""The trainings of a sweep: the scenario's own settings, and one axis at a time moved away from them.

A full factorial of seven axes would take days and answer little more: what is compared is always one column.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from common.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from simulations.scenario.scenario import Scenario


Place = Literal["federated", "central"]
Train = Literal["B", "AB", "core"]


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


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one training; everything else is the scenario's."""

    axis: str
    """Which question it answers: the column that its row is compared in."""
    epsilon: Annotated[float, Meta(gt=0)]
    """``inf``: neither clipping nor noise, and batches of the same expected size."""
    unit: Literal["image", "subject"]
    grouped: Annotated[int, Meta(ge=1)] = 1
    """Neighbouring pictures that stand for one made-up subject; 1: the pictures' own subjects."""
    train: Train
    rank: Annotated[int, Meta(ge=1)]
    draws: Annotated[int, Meta(ge=1)]
    learning_rate: Annotated[float, Meta(gt=0)]
    rounds: Annotated[int, Meta(ge=1)]
    kept: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """Share of each institution's pictures that is trained on."""
    place: Place = "federated"
    """``central``: one institution holds the union."""
    colluders: Annotated[int, Meta(ge=0)] = 1
    """Institutions whose noise does not count; 0 where federated and central noise are to be the same."""
    seed: int

    @property
    def key(self) -> str:
        """Names the trial whatever axis asks for it, so that one training answers several questions."""
        values = msgspec.structs.asdict(self)
        del values["axis"]
        return " ".join(f"{name}={value}" for name, value in values.items())


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


def scenario_trial(scenario: Scenario, *, axis: str, seed: int) -> Trial:
    """The scenario's own settings as a trial.

    Raises:
        ConfigError: A scenario without privacy.

    """
    privacy = scenario.privacy
    if privacy == "none":
        raise ConfigError(f'{scenario.name}: wanted a table privacy to vary, got "none"')
    return Trial(
        axis=axis,
        epsilon=privacy.epsilon,
        unit=privacy.unit,
        train=scenario.adapter.train,
        rank=scenario.adapter.rank,
        draws=privacy.draws,
        learning_rate=scenario.server.learning_rate,
        rounds=scenario.rounds,
        colluders=privacy.colluders,
        seed=seed,
    )


def _axis_trials(scenario: Scenario, axis: Axis, seed: int) -> Iterator[Trial]:
    start = scenario_trial(scenario, axis=axis.value, seed=seed)
    for change in _CHANGES[axis]:
        yield msgspec.structs.replace(start, **change)
