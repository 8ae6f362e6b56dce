"""One training of a sweep: which settings of the scenario differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from common.errors import ConfigError

if TYPE_CHECKING:
    from simulations.scenario.scenario import Scenario

Place = Literal["federated", "central"]
Train = Literal["B", "AB", "core"]


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
