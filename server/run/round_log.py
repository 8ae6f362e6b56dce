"""What the coordinator reports and logs of a round and of an evaluation: one canonical line each."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import numpy as np

from common.errors import OutOfOrder
from server.rounds.absentees import failure_words
from server.rounds.reports import RoundReport, VoidReport

if TYPE_CHECKING:
    from server.errors import SumTooLong
    from server.rounds.answers import Clock
    from server.rounds.reports import EvaluationReport
    from server.rounds.rounds import Collecting, ReadyForRound
    from server.rounds.secure_rounds import MaskedCollecting

_log = logging.getLogger("server.run.coordinator")


def report_round(collecting: Collecting | MaskedCollecting, following: ReadyForRound, clock: Clock) -> RoundReport:
    """The report of a round that counted."""
    before = collecting.ready
    change = following.adapter.astype(np.float64) - before.adapter
    norm = following.norm
    if norm is None:
        raise OutOfOrder(expected="the state that follows a round that counted", got="one that follows none")
    return RoundReport(
        round=before.round,
        attempt=before.attempt,
        participants=collecting.participants,
        answered=tuple(node for node in collecting.participants if node in collecting.answered),
        failures=collecting.failures,
        train_loss=collecting.train_loss if math.isfinite(collecting.train_loss) else None,
        step_norm=float(np.linalg.norm(change)),
        decoded_mean_norm=norm.decoded,
        noise_norm_expected=norm.noise_expected,
        mean_norm_limit=norm.limit,
        learning_rate=before.rate,
        seconds=clock.seconds,
        seconds_waiting=clock.waiting,
    )


def log_round(report: RoundReport) -> None:
    """One line; of a loss only where one was sent."""
    _log.info(
        "round=%d attempt=%d participants=%d answered=%d failures=%d%s step_norm=%.6g %s "
        "learning_rate=%.6g seconds=%.3f waiting=%.3f",
        *(report.round, report.attempt, len(report.participants), len(report.answered), len(report.failures)),
        "" if report.train_loss is None else f" train_loss={report.train_loss:.6g}",
        *(report.step_norm, _lengths(report), report.learning_rate, report.seconds, report.seconds_waiting),
    )


def report_void(ready: ReadyForRound, participants: tuple[int, ...], error: SumTooLong) -> VoidReport:
    """The report of an attempt that is void."""
    norm = error.norm
    return VoidReport(
        round=ready.round,
        attempt=ready.attempt,
        participants=participants,
        decoded_mean_norm=norm.decoded,
        noise_norm_expected=norm.noise_expected,
        mean_norm_limit=norm.limit,
    )


def log_void(report: VoidReport) -> None:
    """One line; what it means and what to do is in the error that follows."""
    _log.warning(
        "round=%d attempt=%d void: participants=%d %s",
        *(report.round, report.attempt, len(report.participants), _lengths(report)),
    )


def _lengths(report: RoundReport | VoidReport) -> str:
    """Of the mean, and of what bounds it where something does."""
    words = f"decoded_mean_norm={report.decoded_mean_norm:.6g}"
    if report.noise_norm_expected is not None and report.mean_norm_limit is not None:
        words += f" noise_norm_expected={report.noise_norm_expected:.6g} mean_norm_limit={report.mean_norm_limit:.6g}"
    return words


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
