"""From a transport's outcome to a message that can be used, or to the reason why there is none."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from common.errors import ProtocolError
from common.wire.messages import MaskedAnswer, Refusal, SecureReply
from common.wire.replies import NoisedContribution, PlainContribution, PlainEvaluation, decode_reply
from server.rounds.dropouts import PROTOCOL, refused
from server.rounds.reports import InstitutionLoss
from server.rounds.transport import Failure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server.rounds.rounds import Collecting, MaskedCollecting

_log = logging.getLogger(__name__)

Answer: TypeAlias = PlainContribution | NoisedContribution | PlainEvaluation | SecureReply | str
"""A message, or the reason why there is none."""


@dataclass
class Clock:
    """Seconds since it was made, and the part of them spent waiting for institutions."""

    started: float = field(default_factory=time.monotonic)
    waiting: float = 0.0

    @property
    def seconds(self) -> float:
        """Seconds since it was made."""
        return time.monotonic() - self.started


def timed_answers(outcomes: Iterator[tuple[int, bytes | Failure]], clock: Clock) -> Iterator[tuple[int, Answer]]:
    """Decode outcomes as they come, and add the time they take to come to the clock."""
    while True:
        asked = time.monotonic()
        outcome = next(outcomes, None)
        clock.waiting += time.monotonic() - asked
        if outcome is None:
            return
        node, body = outcome
        yield node, _decoded(node, body)


def take_contribution(collecting: Collecting, node: int, answer: Answer) -> Collecting:
    """Count the answer in, or count its node as failed."""
    if isinstance(answer, PlainContribution | NoisedContribution):
        try:
            return collecting.handle_reply(node, answer)
        except ProtocolError as error:
            _log.warning("answer of node %d refused: %s", node, error)
    reason = answer if isinstance(answer, str) else PROTOCOL
    # a node that has answered already is none the worse for a second answer, nor is the round for a stranger's
    return collecting.handle_failure(node, reason) if collecting.is_outstanding(node) else collecting


def take_masked(collecting: MaskedCollecting, node: int, answer: Answer) -> MaskedCollecting:
    """The same for a masked answer."""
    if isinstance(answer, MaskedAnswer):
        try:
            return collecting.handle_reply(node, answer)
        except ProtocolError as error:
            _log.warning("masked answer of node %d refused: %s", node, error)
    reason = answer if isinstance(answer, str) else PROTOCOL
    return collecting.handle_failure(node, reason) if collecting.is_outstanding(node) else collecting


def evaluation_row(node: int, answer: Answer, *, round_number: int) -> InstitutionLoss | str:
    """One institution's hold-out loss, or the reason why there is none."""
    if isinstance(answer, str):
        return answer
    if not isinstance(answer, PlainEvaluation) or answer.round != round_number or not math.isfinite(answer.loss):
        _log.warning("evaluation of node %d refused: wanted a finite loss of round %d", node, round_number)
        return PROTOCOL
    return InstitutionLoss(node=node, institution=answer.institution, loss=answer.loss, pictures=answer.pictures)


def _decoded(node: int, body: bytes | Failure) -> Answer:
    if isinstance(body, Failure):
        return body.kind.value
    try:
        reply = decode_reply(body)
    except ProtocolError as error:
        _log.warning("answer of node %d refused: %s", node, error)
        return PROTOCOL
    return refused(reply.code) if isinstance(reply, Refusal) else reply
