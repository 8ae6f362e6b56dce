"""Errors of the coordinator's loop; they are kinds of those in :mod:`common.errors`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.errors import CheckpointError, RoundFailed

if TYPE_CHECKING:
    from server.rounds.sum_norm import MeanNorm


class TooFewInstitutions(RoundFailed):
    """Fewer institutions are there, or take part, than a round needs; it was not begun, so it cost nothing."""


class SumTooLong(RoundFailed):
    """A decoded mean longer than noise and cap allow: some institution sent what no honest steward sends.

    It ends the run's start, because a further attempt would cost every institution's budget and most likely meet the
    same institution again; it can be resumed, with the round's next attempt.
    """

    def __init__(self, message: str, norm: MeanNorm) -> None:
        """Keep the lengths, for the run's books."""
        super().__init__(message)
        self.norm = norm


class RunBusy(CheckpointError):
    """Another process leads the run in this directory."""
