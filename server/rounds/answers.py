"""From a transport's outcome to a message that can be used, or to the reason why there is none."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from common.errors import ProtocolError
from common.wire.messages import Refusal, SecureReply
from common.wire.replies import Contribution, PlainEvaluation, decode_reply
from server.rounds.dropouts import PROTOCOL, refused
from server.rounds.reports import InstitutionLoss
from server.rounds.transport import Failure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server.rounds.rounds import Collecting, MaskedCollecting

_log = logging.getLogger(__name__)

C = TypeVar("C", "Collecting", "MaskedCollecting")
Answer: TypeAlias = Contribution | PlainEvaluation | SecureReply | str
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
        came = next(outcomes, None)
        clock.waiting += time.monotonic() - asked
        if came is None:
            return
        node, outcome = came
        yield node, decode_answer(node, outcome)


def decode_answer(node: int, outcome: bytes | Failure) -> Answer:
    """The message in a node's reply, unless it is a refusal or cannot be read."""
    if isinstance(outcome, Failure):
        return outcome.kind.value
    try:
        reply = decode_reply(outcome)
    except ProtocolError as error:
        _log.warning("answer of node %d refused: %s", node, error)
        return PROTOCOL
    return refused(reply.code) if isinstance(reply, Refusal) else reply


def reason_of(answer: Answer) -> str:
    """Why there is no message, or that this one is not what was asked for."""
    return answer if isinstance(answer, str) else PROTOCOL


def take_answer(collecting: C, node: int, answer: Answer) -> C:
    """Count the answer in, or count its node as failed."""
    if not isinstance(answer, str):
        try:
            return collecting.handle_reply(node, answer)
        except ProtocolError as error:
            _log.warning("answer of node %d refused: %s", node, error)
    # a node that has answered already is none the worse for a second answer, nor is the round for a stranger's
    return collecting.handle_failure(node, reason_of(answer)) if collecting.is_outstanding(node) else collecting


def evaluation_row(node: int, answer: Answer, *, round_number: int) -> InstitutionLoss | str:
    """One institution's hold-out loss, or the reason why there is none."""
    if isinstance(answer, str):
        return answer
    if not isinstance(answer, PlainEvaluation) or answer.round != round_number or not math.isfinite(answer.loss):
        _log.warning("evaluation of node %d refused: wanted a finite loss of round %d", node, round_number)
        return PROTOCOL
    return InstitutionLoss(node=node, institution=answer.institution, loss=answer.loss, pictures=answer.pictures)
