"""What a person sees of a run whose institutions send no loss."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from server.rounds.reports import EvaluationReport, RoundReport
from server.run.coordinator import log_evaluation, log_round
from simulations.experiments.observers import CURVES, draw_curves

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

MEASURED = [{"kind": "evaluation", "round": n, "institutions": [{"institution": "a", "loss": 2.0 - n}]} for n in (0, 1)]


def drawn(folder: Path, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """The panels of ``curves.png``, each of which must show a line."""
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k)))
    draw_curves(folder)
    assert (folder / CURVES).exists() == bool(figures)
    axes = [axes for figure in figures for axes in figure.axes]
    assert all(line.get_xydata().size for each in axes for line in each.lines)  # type: ignore[union-attr]
    assert all(each.lines for each in axes)
    return axes


@pytest.mark.parametrize(
    ("train", "evaluations", "panels"),
    [
        (None, MEASURED, ["hold-out loss"]),
        (None, MEASURED[:1], ["hold-out loss"]),
        (0.5, MEASURED, ["training loss", "hold-out loss"]),
        (0.5, [], ["training loss"]),
        (None, [], []),
    ],
)
def test_no_panel_of_the_curves_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: float | None, evaluations: list[Any], panels: list[str]
) -> None:
    rounds = [{"kind": "round", "round": 1, "train_loss": train}]
    assert [each.get_title() for each in drawn(tmp_path, rounds + evaluations, monkeypatch)] == panels


def test_the_curves_axis_has_whole_rounds_and_the_legend_hides_no_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"kind": "round", "round": n, "train_loss": 1.0} for n in (1, 2, 3, 4)]
    panels = drawn(tmp_path, rows + MEASURED, monkeypatch)
    assert len(panels) == 2
    for axes in panels:
        assert all(float(tick).is_integer() for tick in axes.get_xticks())
        if (legend := axes.get_legend()) is not None:
            assert not legend.get_window_extent().overlaps(axes.get_window_extent())


def test_a_loss_that_nobody_sent_is_no_number(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "server.run.coordinator")
    log_round(
        RoundReport(
            round=1,
            attempt=0,
            participants=(0, 1),
            answered=(0, 1),
            failures={},
            train_loss=None,
            step_norm=1.0,
            decoded_mean_norm=1.0,
            noise_norm_expected=None,
            mean_norm_limit=None,
            learning_rate=0.1,
            seconds=1.0,
            seconds_waiting=0.5,
        )
    )
    asked = EvaluationReport(round=2, losses=(), failures={3: "timeout"}, seconds=0.1, adapter=np.zeros(1, np.float32))
    unasked = EvaluationReport(
        round=1, losses=(), failures={}, seconds=0.0, adapter=np.zeros(1, np.float32), asked=False
    )
    log_evaluation(unasked)
    log_evaluation(asked)
    assert unasked.loss is None
    said = "\n".join(caplog.messages)
    assert "nan" not in said
    assert "institutions=0" not in said
    assert "evaluation round=1: hold-out loss not sent, by design" in said
    assert "no hold-out loss; node=3: did not answer in time" in said
