"""The rounds of a run as a state machine without I/O.

::

    ReadyForRound ──create_requests──▶ Collecting ──handle_reply, handle_failure──▶ Collecting ──close──▶ ReadyForRound

One frozen dataclass per state. ``close`` gives the next round, or the next attempt at this one where too few
institutions answered. A reply that does not fit is refused with an error and never summed.

Guarantee: the sum is taken in float64 and in the order of the participants, whatever order the answers arrive in, so
equal answers give equal bits. No more than the answers that overtook a slower participant are held in memory.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from common.errors import OutOfOrder, ProtocolError, RoundFailed
from common.messages import Contribute, encode
from server.optimizer import OptimizerState, learning_rate, step
from server.vectors import Precise, Vector, to_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from common.config import RunConfig
    from common.messages import PlainContribution

_LARGEST: Final = float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What stays the same for all rounds of a run."""

    config: RunConfig
    spec_digest: str
    dimension: int

    @property
    def minimum(self) -> int:
        """Answers that a round needs."""
        return self.config.server.minimum_institutions


@dataclass(frozen=True, kw_only=True)
class ReadyForRound:
    """Before a round in 1 … ``rounds``, or after the last one; ``adapter`` is float32[d]."""

    rules: Rules
    round: int
    adapter: Vector
    optimizer: OptimizerState
    attempt: int = 0
    failed: frozenset[int] = frozenset()
    """Nodes that failed an earlier attempt at this round: asked again only where no other is left."""

    @property
    def is_over(self) -> bool:
        """Whether no round is left."""
        return self.round > self.rules.config.rounds

    def create_requests(self, nodes: Iterable[int]) -> tuple[Collecting, dict[int, bytes]]:
        """Draw the participants among the nodes at hand; the encoded request for each of them.

        Raises:
            RoundFailed: Fewer nodes than a round needs answers.
            OutOfOrder: The run is over.

        """
        if self.is_over:
            raise OutOfOrder(expected="the end of the run", got=f"round {self.round}")
        at_hand = sorted(set(nodes))
        if len(at_hand) < self.rules.minimum:
            raise RoundFailed(
                f"round {self.round}: {len(at_hand)} institutions can be reached, {self.rules.minimum} are needed; "
                "resume the run when enough of them are back"
            )
        participants = draw_participants(
            at_hand,
            count=self.rules.config.server.institutions_per_round,
            seed=self.rules.config.seed,
            round_number=self.round,
            last=self.failed,
        )
        request = Contribute(
            round=self.round,
            attempt=self.attempt,
            spec_digest=self.rules.spec_digest,
            adapter=to_bytes(self.adapter),
        )
        collecting = Collecting(ready=self, participants=participants, sum=PartialSum.empty(self.rules.dimension))
        return collecting, dict.fromkeys(participants, encode(request))


@dataclass(frozen=True, kw_only=True)
class PartialSum:
    """The sum over the first ``settled`` participants in their order."""

    settled: int
    vector: Precise
    """float64[d]"""
    weight: float
    loss: float
    """Weighted sum of the finite training losses."""
    loss_weight: float

    @classmethod
    def empty(cls, dimension: int) -> PartialSum:
        """The sum over nobody."""
        return cls(settled=0, vector=np.zeros(dimension), weight=0.0, loss=0.0, loss_weight=0.0)

    def plus(self, answer: PlainContribution | None) -> PartialSum:
        """The sum over one participant more; None stands for one that failed."""
        if answer is None:
            return replace(self, settled=self.settled + 1)
        # an institution whose Poisson batch was empty has no loss
        finite = math.isfinite(answer.train_loss)
        return PartialSum(
            settled=self.settled + 1,
            vector=self.vector + np.frombuffer(answer.vector, dtype="<f4"),
            weight=self.weight + answer.weight,
            loss=self.loss + (answer.weight * answer.train_loss if finite else 0.0),
            loss_weight=self.loss_weight + (answer.weight if finite else 0.0),
        )


@dataclass(frozen=True, kw_only=True)
class Collecting:
    """A round under way: requests are out, answers come in."""

    ready: ReadyForRound
    participants: tuple[int, ...]
    """Nodes asked, in the order of summation."""
    sum: PartialSum
    held: Mapping[int, PlainContribution] = field(default_factory=dict)
    """Answers waiting for a participant before them."""
    answered: frozenset[int] = frozenset()
    failures: Mapping[int, str] = field(default_factory=dict)
    """Reason by node."""

    @property
    def outstanding(self) -> tuple[int, ...]:
        """Participants that neither answered nor failed."""
        return tuple(node for node in self.participants if node not in self.answered and node not in self.failures)

    def is_outstanding(self, node: int) -> bool:
        """Whether the node was asked and neither answered nor failed."""
        return node in self.participants and node not in self.answered and node not in self.failures

    @property
    def train_loss(self) -> float:
        """Mean training loss so far, weighted as the update is; NaN if nobody reported one."""
        return self.sum.loss / self.sum.loss_weight if self.sum.loss_weight else math.nan

    @property
    def rate(self) -> float:
        """Learning rate of this round's step."""
        config = self.ready.rules.config
        return learning_rate(config.server, round_number=self.ready.round, rounds=config.rounds)

    def handle_reply(self, node: int, reply: PlainContribution) -> Collecting:
        """Take one answer in.

        Raises:
            OutOfOrder: Of another round or attempt, from a node that was not asked, or its second answer.
            ProtocolError: Wrong length, a value that is not finite, or a weight that is not positive and finite.

        """
        self._check_expected(node, f"a contribution to round {reply.round}, attempt {reply.attempt}")
        if (reply.round, reply.attempt) != (self.ready.round, self.ready.attempt):
            raise OutOfOrder(
                expected=f"a contribution to round {self.ready.round}, attempt {self.ready.attempt}",
                got=f"one to round {reply.round}, attempt {reply.attempt}",
            )
        _check_contribution(reply, self.ready.rules.dimension)
        return _settled(replace(self, answered=self.answered | {node}, held={**self.held, node: reply}))

    def handle_failure(self, node: int, reason: str) -> Collecting:
        """Note that a participant will not answer this attempt.

        Raises:
            OutOfOrder: It was not asked, or has answered or failed already.

        """
        self._check_expected(node, f"a failure ({reason})")
        return _settled(replace(self, failures={**self.failures, node: reason}))

    def close(self) -> ReadyForRound:
        """The next round with the new adapter; or this round's next attempt where too few answered.

        Raises:
            OutOfOrder: Participants are outstanding.
            RoundFailed: It was the last attempt, or the step gave values that are not finite.

        """
        if self.outstanding:
            raise OutOfOrder(expected=f"answers of {len(self.outstanding)} participants", got="the end of the round")
        if len(self.answered) < self.ready.rules.minimum:
            return self._create_next_attempt()
        config = self.ready.rules.config
        mean = self.sum.vector / self.sum.weight
        gradient = -mean if config.training.mode == "fedavg" else mean
        adapter, state = step(self.ready.adapter, gradient, self.ready.optimizer, config=config.server, rate=self.rate)
        if not np.isfinite(adapter).all():
            raise RoundFailed(
                f"round {self.ready.round}: the step left the range of float32; lower server.learning_rate and resume"
            )
        return ReadyForRound(rules=self.ready.rules, round=self.ready.round + 1, adapter=adapter, optimizer=state)

    def _check_expected(self, node: int, got: str) -> None:
        if node not in self.participants:
            raise OutOfOrder(expected="a node that was asked", got=f"{got} from node {node}")
        if node in self.answered or node in self.failures:
            raise OutOfOrder(
                expected="one answer per node", got=f"{got} from node {node}, which has answered or failed"
            )

    def _create_next_attempt(self) -> ReadyForRound:
        config = self.ready.rules.config.server
        if self.ready.attempt + 1 >= config.attempts:
            reasons = ", ".join(sorted(set(self.failures.values())))
            raise RoundFailed(
                f"round {self.ready.round}: {len(self.answered)} of {len(self.participants)} institutions answered, "
                f"{self.ready.rules.minimum} are needed, at attempt {self.ready.attempt + 1} of {config.attempts} "
                f"(failures: {reasons}); the run can be resumed"
            )
        failed = self.ready.failed | frozenset(self.failures)
        return replace(self.ready, attempt=self.ready.attempt + 1, failed=failed)


def _settled(state: Collecting) -> Collecting:
    """Move answers into the sum as far as no earlier participant is outstanding."""
    total, held = state.sum, dict(state.held)
    while total.settled < len(state.participants):
        node = state.participants[total.settled]
        if node not in held and node not in state.failures:
            break
        total = total.plus(held.pop(node, None))
    return replace(state, sum=total, held=held)


def draw_participants(
    nodes: Sequence[int], *, count: int | None, seed: int, round_number: int, last: frozenset[int] = frozenset()
) -> tuple[int, ...]:
    """Draw ``count`` of the sorted ``nodes`` (all if None or too few), in sorted order.

    Public and the same on every machine and version: positions are ranked by SHA-256 of seed, round and position. Nodes
    in ``last`` rank after all others.
    """
    ranked = sorted(range(len(nodes)), key=lambda place: (nodes[place] in last, _rank(seed, round_number, place)))
    return tuple(nodes[place] for place in sorted(ranked[:count]))


def _rank(seed: int, round_number: int, position: int) -> bytes:
    return hashlib.sha256(f"darkroom/participants/{seed}/{round_number}/{position}".encode()).digest()


def _check_contribution(reply: PlainContribution, dimension: int) -> None:
    if len(reply.vector) != 4 * dimension:
        raise ProtocolError(f"contribution of {len(reply.vector)} bytes; wanted {dimension} float32 values")
    if not (math.isfinite(reply.weight) and reply.weight > 0.0):
        raise ProtocolError(f"contribution of weight {reply.weight}; wanted a positive, finite one")
    largest = float(np.abs(np.frombuffer(reply.vector, dtype="<f4")).max(initial=0.0))
    # also false for NaN; the bound keeps one institution's tiny weight from making the mean infinite
    if not largest <= _LARGEST * min(reply.weight, 1.0):
        raise ProtocolError("contribution with values that are not finite, by themselves or per weight")
