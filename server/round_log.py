"""What the coordinator reports and logs of a round and of an evaluation: one canonical line each."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import numpy as np

from server.absentees import failure_words
from server.reports import RoundReport

if TYPE_CHECKING:
    from server.answers import Clock
    from server.reports import EvaluationReport
    from server.rounds import Collecting, ReadyForRound
    from server.secure_rounds import MaskedCollecting

_log = logging.getLogger("server.coordinator")


def report_round(collecting: Collecting | MaskedCollecting, following: ReadyForRound, clock: Clock) -> RoundReport:
    """The report of a round that counted."""
    before = collecting.ready
    change = following.adapter.astype(np.float64) - before.adapter
    return RoundReport(
        round=before.round,
        attempt=before.attempt,
        participants=collecting.participants,
        answered=tuple(node for node in collecting.participants if node in collecting.answered),
        failures=collecting.failures,
        train_loss=collecting.train_loss if math.isfinite(collecting.train_loss) else None,
        update_norm=float(np.linalg.norm(change)),
        learning_rate=before.rate,
        seconds=clock.seconds,
        seconds_waiting=clock.waiting,
    )


def log_round(report: RoundReport) -> None:
    """One line; of a loss only where one was sent."""
    _log.info(
        "round=%d attempt=%d participants=%d answered=%d failures=%d%s update_norm=%.6g "
        "learning_rate=%.6g seconds=%.3f waiting=%.3f",
        *(report.round, report.attempt, len(report.participants), len(report.answered), len(report.failures)),
        "" if report.train_loss is None else f" train_loss={report.train_loss:.6g}",
        *(report.update_norm, report.learning_rate, report.seconds, report.seconds_waiting),
    )


def log_evaluation(report: EvaluationReport) -> None:
    """One line; a warning where everybody was asked and nobody answered."""
    if not report.asked:
        _log.info(
            "evaluation round=%d: hold-out loss not sent, by design: it would tell of private pictures", report.round
        )
    elif report.loss is None:
        _log.warning("evaluation round=%d: no hold-out loss; %s", report.round, failure_words(report.failures))
    else:
        _log.info(
            "evaluation round=%d institutions=%d failures=%d pictures=%d loss=%.6g seconds=%.3f",
            *(report.round, len(report.losses), len(report.failures), report.pictures, report.loss, report.seconds),
        )
