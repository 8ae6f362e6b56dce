"""A sweep as one picture: a panel for each axis, the hold-out loss of each setting, every seed a dot."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Final

import numpy as np
from matplotlib.figure import Figure

from simulations.sweep.trial import Axis

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from simulations.sweep.trial import Trial
    from simulations.sweep.workers import Outcome

_TITLES: Final = {
    Axis.EPSILON: "ε for the whole run",
    Axis.UNIT: "privacy unit",
    Axis.TRAIN: "trained factors, and learning rate",
    Axis.RANK: "rank",
    Axis.DRAWS: "draws a unit, K",
    Axis.PICTURES: "share of the pictures",
    Axis.PLACE: "where the pictures are",
}


_ORDERED: Final = frozenset({Axis.EPSILON, Axis.RANK, Axis.DRAWS, Axis.PICTURES})
"""Axes whose settings are more or less of one thing, so that a line between them means something."""


def setting_label(trial: Trial, axis: Axis) -> str:
    """How a setting is called on its axis."""
    labels = {
        Axis.EPSILON: "∞" if math.isinf(trial.epsilon) else f"{trial.epsilon:g}",
        Axis.UNIT: trial.unit if trial.grouped == 1 else f"{trial.unit} of {trial.grouped}",
        Axis.TRAIN: f"{trial.train} r{trial.rank}, {trial.learning_rate:g}",
        Axis.RANK: str(trial.rank),
        Axis.DRAWS: str(trial.draws),
        Axis.PICTURES: f"{trial.kept:g}",
        Axis.PLACE: trial.place,
    }
    return labels[axis]


def by_setting(outcomes: Sequence[Outcome], axis: Axis) -> dict[str, list[Outcome]]:
    """The axis' outcomes by setting, in the order of the axis."""
    groups: dict[str, list[Outcome]] = defaultdict(list)
    ours = [outcome for outcome in outcomes if outcome.trial.axis == axis.value]
    for outcome in sorted(ours, key=lambda one: _place(one.trial)):
        groups[setting_label(outcome.trial, axis)].append(outcome)
    return dict(groups)


def draw_sweep(outcomes: Sequence[Outcome], path: Path, *, title: str) -> None:
    """Write the picture."""
    shown = [axis for axis in Axis if any(one.trial.axis == axis.value for one in outcomes)]
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axis, panel in zip(shown, panels, strict=False):
        _draw_axis(panel, by_setting(outcomes, axis), _title(outcomes, axis))
        if axis in _ORDERED:
            _join_means(panel, by_setting(outcomes, axis))
    for panel in panels[len(shown) :]:
        panel.set_axis_off()
    base = float(np.mean([one.base_loss for one in outcomes]))
    figure.suptitle(f"{title}: mean hold-out loss (lower is better; the base has {base:.3f})", fontsize=10)
    figure.savefig(path, dpi=110)


def _title(outcomes: Sequence[Outcome], axis: Axis) -> str:
    rounds = {one.trial.rounds for one in outcomes if one.trial.axis == axis.value}
    return f"{_TITLES[axis]} ({', '.join(map(str, sorted(rounds)))} rounds)"


def _draw_axis(panel: Axes, groups: dict[str, list[Outcome]], title: str) -> None:
    for place, group in enumerate(groups.values()):
        panel.scatter([place] * len(group), [one.loss for one in group], s=14, zorder=2)
    panel.set_xticks(range(len(groups)), [label.replace(", ", "\n") for label in groups], fontsize=7)
    panel.set_title(title, fontsize=9)
    panel.grid(axis="y", alpha=0.3)


def _join_means(panel: Axes, groups: dict[str, list[Outcome]]) -> None:
    means = [float(np.mean([one.loss for one in group])) for group in groups.values()]
    panel.plot(range(len(groups)), means, color="0.6", linewidth=1, zorder=1)


def _place(trial: Trial) -> tuple[float | str | int, ...]:
    return (
        trial.epsilon,
        trial.unit,
        trial.train,
        trial.rank,
        trial.draws,
        trial.kept,
        trial.place != "federated",
        trial.learning_rate,
    )
