"""What a person sees of a run whose institutions send no loss."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from server.reports import EvaluationReport, RoundReport
from server.round_log import log_evaluation, log_round
from simulations.observers import CURVES, draw_curves

if TYPE_CHECKING:
    from pathlib import Path

MEASURED = [{"kind": "evaluation", "round": n, "institutions": [{"institution": "a", "loss": 2.0 - n}]} for n in (0, 1)]


def drawn(folder: Path, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Titles of the panels of ``curves.png``, each of which must show a line, and no rounds but whole ones."""
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k)))
    draw_curves(folder)
    assert (folder / CURVES).exists() == bool(figures)
    axes = [axes for figure in figures for axes in figure.axes]
    assert all(line.get_xydata().size for each in axes for line in each.lines)  # type: ignore[union-attr]
    assert all(each.lines for each in axes)
    assert all(float(tick).is_integer() for each in axes for tick in each.get_xticks())
    return [each.get_title() for each in axes]


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
    assert drawn(tmp_path, rounds + evaluations, monkeypatch) == panels


def test_a_loss_that_nobody_sent_is_no_number(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "server.coordinator")
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
