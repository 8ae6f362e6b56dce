"""Errors of the coordinator's loop; they are kinds of those in :mod:`common.errors`."""

from __future__ import annotations

from common.errors import CheckpointError, RoundFailed


class TooFewInstitutions(RoundFailed):
    """Fewer institutions are there, or take part, than a round needs; it was not begun, so it cost nothing."""


class RunBusy(CheckpointError):
    """Another process leads the run in this directory."""
