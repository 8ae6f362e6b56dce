"""A masked round under way, as a state machine without I/O: everybody answers, or the attempt is void."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from common.errors import MasksDidNotCancel, OutOfOrder, ProtocolError
from common.privacy.mechanisms import dequantise
from common.privacy.run_plan import private_plan
from server.rounds.rounds import apply_update, next_attempt
from server.rounds.sum_norm import mean_norm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from common.secagg import aggregator
    from common.secagg.ring import VectorSum
    from common.wire.messages import MaskedAnswer
    from server.rounds.rounds import ReadyForRound

_log = logging.getLogger(__name__)

MASKS: Final = "masks_did_not_cancel"
"""Reason of a void attempt: the sum's check coordinates are wrong, and nobody knows because of whom."""


@dataclass(frozen=True, kw_only=True)
class MaskedCollecting:
    """Requests are out, masked vectors come in; what is held is one running total, uniform until it is complete.

    Guarantee: the update is made from the sum over every participant or not at all, and divided by the public expected
    batch; memory does not grow with the number of participants.
    """

    ready: ReadyForRound
    places: Mapping[int, int]
    """Place in the roster of each node that was asked."""
    state: aggregator.Collecting
    answered: frozenset[int] = frozenset()
    failures: Mapping[int, str] = field(default_factory=dict)

    @property
    def participants(self) -> tuple[int, ...]:
        """Nodes asked, sorted."""
        return tuple(sorted(self.places))

    @property
    def outstanding(self) -> tuple[int, ...]:
        """Participants that neither answered nor failed."""
        return tuple(node for node in self.participants if self.is_outstanding(node))

    def is_outstanding(self, node: int) -> bool:
        """Whether the node was asked and neither answered nor failed."""
        return node in self.places and node not in self.answered and node not in self.failures

    @property
    def train_loss(self) -> float:
        """NaN: no institution tells its loss."""
        return math.nan

    def handle_reply(self, node: int, reply: MaskedAnswer) -> MaskedCollecting:
        """Add one masked vector.

        Raises:
            OutOfOrder: From a node that was not asked, or has answered or failed.
            ProtocolError: Whatever :meth:`common.secagg.aggregator.Collecting.handle_contribution` refuses.

        """
        if not self.is_outstanding(node):
            raise OutOfOrder(expected="one answer per node that was asked", got=f"a masked answer from node {node}")
        before = set(self.state.missing())
        state = self.state.handle_contribution(reply.message)
        if self.places[node] not in before - set(state.missing()):
            raise ProtocolError(f"node {node} sent the answer of another institution than its session key's")
        return replace(self, state=state, answered=self.answered | {node})

    def handle_failure(self, node: int, reason: str) -> MaskedCollecting:
        """Note that a participant will not answer; the attempt is void.

        Raises:
            OutOfOrder: It was not asked, or has answered or failed already.

        """
        if not self.is_outstanding(node):
            raise OutOfOrder(expected="a node that was asked", got=f"a failure of node {node} ({reason})")
        return replace(self, failures={**self.failures, node: reason})

    def close(self) -> tuple[ReadyForRound, aggregator.Open]:
        """The next round with the new adapter, or this round's next attempt; and the protocol's state after it.

        Raises:
            OutOfOrder: Participants are outstanding.
            RoundFailed: It was the last attempt, or the step gave values that are not finite.
            SumTooLong: Noise and cap cannot explain the mean.

        """
        if self.outstanding:
            raise OutOfOrder(expected=f"answers of {len(self.outstanding)} participants", got="the end of the round")
        if self.failures:
            return self._void(self.failures), self.state.abort()
        try:
            opened, total = self.state.create_sum()
        except MasksDidNotCancel as error:
            _log.warning("round=%d attempt=%d: %s", self.ready.round, self.ready.attempt, error)
            # nobody knows whose fault it was, so nobody is passed over in the next attempt
            return self._void({-1: MASKS}), self.state.abort()
        return self._step(total), opened

    def _void(self, failures: Mapping[int, str]) -> ReadyForRound:
        answered = len(self.answered)
        return next_attempt(self.ready, answered=answered, asked=len(self.places), failures=failures)

    def _step(self, total: VectorSum) -> ReadyForRound:
        """The step with the sum in units of the gradient over the public expected batch."""
        plan = private_plan(self.ready.rules.config)
        if plan is None:
            raise ProtocolError("wanted a run with differential privacy")
        noise, expected = plan.noise(self.ready.rules.dimension), plan.config.expected_batch
        mean = dequantise(total.words, noise) / expected
        return apply_update(self.ready, mean, mean_norm(mean, noise, expected_batch=expected))
