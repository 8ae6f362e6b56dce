"""A whole sweep: run what is missing, then write the table, the picture and a summary for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from tqdm import tqdm

from simulations.sweep.plot import by_setting, draw_sweep
from simulations.sweep.trial import Axis, trials
from simulations.sweep.workers import Outcome, TrialPool, append_outcome, read_outcomes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from simulations.scenario.scenario import Scenario
    from simulations.sweep.trial import Trial


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """What is swept, and where its results lie; trials that are there already are not run again."""

    scenario: Scenario
    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]
    directory: Path
    cache: Path
    workers: int

    @property
    def table(self) -> Path:
        """The CSV file."""
        return self.directory / "sweep.csv"


def planned(plan: StudyPlan) -> tuple[tuple[Trial, ...], tuple[Trial, ...]]:
    """All trials, and those of them to be run: one for each distinct setting that has no row yet."""
    wanted = trials(plan.scenario, plan.axes, seeds=plan.seeds)
    done = {outcome.trial.key for outcome in read_outcomes(plan.table)}
    missing = {trial.key: trial for trial in reversed(wanted) if trial.key not in done}
    return wanted, tuple(reversed(missing.values()))


def run_study(plan: StudyPlan) -> str:
    """Run the sweep to its end; the summary.

    Raises:
        ConfigError: A scenario without privacy, or another file in the table's place.
        DarkroomError: A trial that cannot be run.

    """
    plan.directory.mkdir(parents=True, exist_ok=True)
    wanted, todo = planned(plan)
    pool = TrialPool(scenario=plan.scenario, cache=plan.cache, workers=plan.workers)
    for outcome in tqdm(pool.run(todo), total=len(todo), desc="trainings", unit="training", disable=not todo):
        append_outcome(plan.table, outcome)
        tqdm.write(f"{_settings(outcome.trial)}: {outcome.loss:.4f}")
    outcomes = _answers(wanted, read_outcomes(plan.table))
    draw_sweep(outcomes, plan.directory / "sweep.png", title=plan.scenario.name)
    text = summary(outcomes)
    (plan.directory / "summary.md").write_text(text, encoding="utf-8")
    return text


def _settings(trial: Trial) -> str:
    return " ".join(part for part in trial.key.split(" ") if part.split("=")[0] not in {"rounds", "colluders"})


def _answers(wanted: Iterable[Trial], outcomes: Sequence[Outcome]) -> tuple[Outcome, ...]:
    """An outcome for every wanted trial, under its own axis."""
    known = {outcome.trial.key: outcome for outcome in outcomes}
    return tuple(msgspec.structs.replace(known[trial.key], trial=trial) for trial in wanted if trial.key in known)


def summary(outcomes: Sequence[Outcome]) -> str:
    """A Markdown table: each setting's mean and spread over seeds, and its share of the way from base to no privacy."""
    best = _unhindered(outcomes)
    lines = [
        "| axis | setting | seeds | units | d | z | mean loss | spread | kept |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for axis in Axis:
        for label, group in by_setting(outcomes, axis).items():
            losses = np.array([one.loss for one in group])
            spread = f"{losses.std(ddof=1):.3f}" if len(group) > 1 else ""
            kept = "" if best is None else f"{100 * _share(group, best):.0f} %"
            first = group[0]
            lines.append(
                f"| {axis} | {label} | {len(group)} | {first.units} | {first.trained} "
                f"| {first.noise_multiplier:.3g} | {losses.mean():.3f} | {spread} | {kept} |"
            )
    return "\n".join([*lines, "", _kept_line(best), ""])


def _unhindered(outcomes: Sequence[Outcome]) -> float | None:
    found = [one.loss for one in outcomes if one.noise_multiplier == 0 and one.trial.kept == 1]
    return float(np.mean(found)) if found else None


def _share(group: Sequence[Outcome], best: float) -> float:
    return float(np.mean([(one.base_loss - one.loss) / (one.base_loss - best) for one in group]))


def _kept_line(best: float | None) -> str:
    if best is None:
        return "No training without privacy is among these, so no share of its improvement is given."
    return f"kept: share of the improvement over the base that the same settings reach without privacy ({best:.3f})."
