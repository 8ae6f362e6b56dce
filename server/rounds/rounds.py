"""The rounds of a run as a state machine without I/O.

::

    ReadyForRound ──create_requests──▶ Collecting ──handle_reply, handle_failure──▶ Collecting ──close──▶ ReadyForRound

One frozen dataclass per state; with masked sums :class:`MaskedCollecting` stands in the middle. ``close`` gives the
next round, or the next attempt at this one: in the clear where too few institutions answered, with masks where anybody
did not. A reply that does not fit is refused with an error and never summed.
"""

from __future__ import annotations

import hashlib
import logging
import math
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from common.errors import MasksDidNotCancel, OutOfOrder, ProtocolError, RoundFailed, SumTooLong, TooFewInstitutions
from common.privacy.run_plan import private_plan
from common.wire.messages import Contribute, MaskedAnswer, encode
from common.wire.replies import NoisedContribution, PlainContribution
from server.rounds.dropouts import failure_words
from server.rounds.optimizer import OptimizerState, learning_rate, moving_average, step, to_bytes
from server.rounds.sums import PartialSum, RingSum

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from common.config import RunConfig
    from common.secagg import aggregator
    from common.secagg.ring import VectorSum
    from common.wire.replies import Contribution, Reply
    from server.rounds.optimizer import Precise, Vector
    from server.rounds.sum_norm import MeanNorm
    from server.rounds.sums import RoundSum

MASKS: Final = "masks_did_not_cancel"
"""Reason of a void attempt: the sum's check coordinates are wrong, and nobody knows because of whom."""
_log = logging.getLogger(__name__)


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

    @property
    def asked(self) -> int | None:
        """Institutions asked for a round, None for all: with privacy exactly those that the noise is sized for."""
        return self.config.server.institutions_per_round if self.config.privacy == "none" else self.minimum

    def empty_sum(self) -> RoundSum:
        """The sum over nobody."""
        plan = private_plan(self.config)
        if plan is None:
            return PartialSum.empty(self.dimension)
        return RingSum.empty(plan.noise(self.dimension), plan.config.expected_batch)

    def noise_variance(self) -> float:
        """Known variance of the noise in each coordinate of the mean update; 0 without privacy."""
        plan = private_plan(self.config)
        return 0.0 if plan is None else (plan.noise(self.dimension).total_deviation / plan.config.expected_batch) ** 2


@dataclass(frozen=True, kw_only=True)
class ReadyForRound:
    """Before a round in 1 … ``rounds``, or after the last one; ``adapter`` is float32[d]."""

    rules: Rules
    round: int
    adapter: Vector
    optimizer: OptimizerState
    average: Vector | None = None
    """float32[d]: moving average of the adapters, where the run keeps one."""
    attempt: int = 0
    first_attempt: int = 0
    """Earlier attempts were sent before the run was resumed."""
    failed: frozenset[int] = frozenset()
    """Nodes that failed an earlier attempt at this round: asked again only where no other is left."""
    norm: MeanNorm | None = None
    """Of the mean that the last round's step was made with."""

    @property
    def released(self) -> Vector:
        """What is evaluated and released: the average where there is one."""
        return self.adapter if self.average is None else self.average

    @property
    def rate(self) -> float:
        """Learning rate of this round's step."""
        config = self.rules.config
        return learning_rate(config.server, round_number=self.round, rounds=config.rounds)

    @property
    def is_over(self) -> bool:
        """Whether no round is left."""
        return self.round > self.rules.config.rounds

    def draw(self, nodes: Iterable[int]) -> tuple[int, ...]:
        """The participants of this attempt among the nodes at hand, sorted.

        Raises:
            TooFewInstitutions: Fewer nodes than a round needs answers.
            OutOfOrder: The run is over.

        """
        if self.is_over:
            raise OutOfOrder(expected="the end of the run", got=f"round {self.round}")
        at_hand = sorted(set(nodes))
        if len(at_hand) < self.rules.minimum:
            raise TooFewInstitutions(
                f"round {self.round}: {len(at_hand)} institutions can be reached, {self.rules.minimum} are needed; "
                "the run can go on when enough of them are back"
            )
        return draw_participants(
            at_hand,
            count=self.rules.asked,
            seed=self.rules.config.seed,
            round_number=self.round,
            last=self.failed,
        )

    def create_requests(self, nodes: Iterable[int]) -> tuple[Collecting, dict[int, bytes]]:
        """Draw the participants among the nodes at hand; the encoded request for each of them.

        Raises:
            TooFewInstitutions: Fewer nodes than a round needs answers.
            OutOfOrder: The run is over.

        """
        participants = self.draw(nodes)
        request = Contribute(
            round=self.round,
            attempt=self.attempt,
            spec_digest=self.rules.spec_digest,
            adapter=to_bytes(self.adapter),
        )
        collecting = Collecting(ready=self, participants=participants, sum=self.rules.empty_sum())
        return collecting, dict.fromkeys(participants, encode(request))


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A round under way: requests are out, answers come in."""

    ready: ReadyForRound
    participants: tuple[int, ...]
    """Nodes asked, sorted."""
    answered: frozenset[int] = frozenset()
    failures: Mapping[int, str] = field(default_factory=dict)
    """Reason by node."""

    @property
    def outstanding(self) -> tuple[int, ...]:
        """Participants that neither answered nor failed."""
        return tuple(node for node in self.participants if self.is_outstanding(node))

    def is_outstanding(self, node: int) -> bool:
        """Whether the node was asked and neither answered nor failed."""
        return node in self.participants and node not in self.answered and node not in self.failures

    @property
    def train_loss(self) -> float:
        """Mean training loss so far, weighted as the update is; NaN if nobody reported one, as with masks."""
        return math.nan

    def handle_failure(self, node: int, reason: str) -> Self:
        """Note that a participant will not answer this attempt.

        Raises:
            OutOfOrder: It was not asked, or has answered or failed already.

        """
        self._check_expected(node, f"a failure ({reason})")
        return replace(self, failures={**self.failures, node: reason})

    def _check_expected(self, node: int, got: str) -> None:
        if node not in self.participants:
            raise OutOfOrder(expected="a node that was asked", got=f"{got} from node {node}")
        if not self.is_outstanding(node):
            raise OutOfOrder(
                expected="one answer per node", got=f"{got} from node {node}, which has answered or failed"
            )

    def _check_over(self) -> None:
        if self.outstanding:
            raise OutOfOrder(expected=f"answers of {len(self.outstanding)} participants", got="the end of the round")

    def _next_attempt(self, failures: Mapping[int, str]) -> ReadyForRound:
        return next_attempt(self.ready, answered=len(self.answered), asked=len(self.participants), failures=failures)


@dataclass(frozen=True, kw_only=True)
class Collecting(Attempt):
    """Contributions come in that can be read.

    Guarantee: the sum is taken in float64 and in the order of the participants, whatever order the answers arrive in,
    so equal answers give equal bits. No more than the answers that overtook a slower participant are held in memory.
    """

    sum: RoundSum
    held: Mapping[int, Contribution] = field(default_factory=dict)
    """Answers waiting for a participant before them."""

    @property
    def train_loss(self) -> float:
        """Mean training loss so far, weighted as the update is; NaN if nobody reported one."""
        return self.sum.train_loss

    def handle_reply(self, node: int, reply: Reply) -> Collecting:
        """Take one answer in.

        Raises:
            OutOfOrder: Of another round or attempt, from a node that was not asked, or its second answer.
            ProtocolError: Wrong kind or length, a value that is not finite, or a weight that is not above 0.

        """
        if not isinstance(reply, PlainContribution | NoisedContribution):
            raise ProtocolError(f"wanted a contribution, got {type(reply).__name__}")
        self._check_expected(node, f"a contribution to round {reply.round}, attempt {reply.attempt}")
        if (reply.round, reply.attempt) != (self.ready.round, self.ready.attempt):
            raise OutOfOrder(
                expected=f"a contribution to round {self.ready.round}, attempt {self.ready.attempt}",
                got=f"one to round {reply.round}, attempt {reply.attempt}",
            )
        self.sum.check(reply)
        return _settled(replace(self, answered=self.answered | {node}, held={**self.held, node: reply}))

    def handle_failure(self, node: int, reason: str) -> Collecting:
        """As :meth:`Attempt.handle_failure`; answers that waited for this one are summed."""
        return _settled(super().handle_failure(node, reason))

    def close(self) -> ReadyForRound:
        """The next round with the new adapter; or this round's next attempt where too few answered.

        Raises:
            OutOfOrder: Participants are outstanding.
            RoundFailed: It was the last attempt, or the step gave values that are not finite.
            SumTooLong: Noise and cap cannot explain the mean.

        """
        self._check_over()
        if len(self.answered) < self.ready.rules.minimum:
            return self._next_attempt(self.failures)
        mean = self.sum.mean()
        gradient = -mean if self.ready.rules.config.training.mode == "fedavg" else mean
        return apply_update(self.ready, gradient, self.sum.norm(mean))


def _settled(state: Collecting) -> Collecting:
    """Move answers into the sum as far as no earlier participant is outstanding."""
    total, held = state.sum, dict(state.held)
    while total.settled < len(state.participants):
        node = state.participants[total.settled]
        if node not in held and node not in state.failures:
            break
        total = total.plus(held.pop(node, None))
    return replace(state, sum=total, held=held)


@dataclass(frozen=True, kw_only=True)
class MaskedCollecting(Attempt):
    """Masked vectors come in; what is held is one running total, uniform until it is complete.

    Guarantee: the update is made from the sum over every participant or not at all, and divided by the public expected
    batch; memory does not grow with the number of participants.
    """

    places: Mapping[int, int]
    """Place in the roster of each node that was asked."""
    state: aggregator.Collecting

    def handle_reply(self, node: int, reply: Reply) -> MaskedCollecting:
        """Add one masked vector.

        Raises:
            OutOfOrder: From a node that was not asked, or has answered or failed.
            ProtocolError: Wrong kind, another institution's, or whatever
                :meth:`common.secagg.aggregator.Collecting.handle_contribution` refuses.

        """
        if not isinstance(reply, MaskedAnswer):
            raise ProtocolError(f"wanted a masked answer, got {type(reply).__name__}")
        self._check_expected(node, "a masked answer")
        before = set(self.state.missing())
        state = self.state.handle_contribution(reply.message)
        if self.places[node] not in before - set(state.missing()):
            raise ProtocolError(f"node {node} sent the answer of another institution than its session key's")
        return replace(self, state=state, answered=self.answered | {node})

    def close(self) -> tuple[ReadyForRound, aggregator.Open]:
        """The next round with the new adapter, or this round's next attempt; and the protocol's state after it.

        Raises:
            OutOfOrder: Participants are outstanding.
            RoundFailed: It was the last attempt, or the step gave values that are not finite.
            SumTooLong: Noise and cap cannot explain the mean.

        """
        self._check_over()
        if self.failures:
            return self._next_attempt(self.failures), self.state.abort()
        try:
            opened, total = self.state.create_sum()
        except MasksDidNotCancel as error:
            _log.warning("round=%d attempt=%d: %s", self.ready.round, self.ready.attempt, error)
            # nobody knows whose fault it was, so nobody is passed over in the next attempt
            return self._next_attempt({-1: MASKS}), self.state.abort()
        return self._step(total), opened

    def _step(self, total: VectorSum) -> ReadyForRound:
        """The step with the sum in units of the gradient over the public expected batch."""
        empty = self.ready.rules.empty_sum()
        if not isinstance(empty, RingSum):
            raise ProtocolError("wanted a run with differential privacy")
        complete = replace(empty, settled=len(self.participants), values=total.words)
        mean = complete.mean()
        return apply_update(self.ready, mean, complete.norm(mean))


def apply_update(ready: ReadyForRound, gradient: Precise, norm: MeanNorm) -> ReadyForRound:
    """The next round, after one optimiser step with this gradient, float64[d], of this length.

    Raises:
        SumTooLong: Noise and cap cannot explain the length; no step is made.
        RoundFailed: The step gave values that are not finite.

    """
    if not norm.is_honest:
        raise SumTooLong(
            f"round {ready.round}, attempt {ready.attempt} is void: the decoded mean is {norm.decoded:.4g} long, but "
            f"noise ({norm.noise_expected:.4g} expected) and the cap on units allow {norm.limit:.4g} at most. Some "
            "institution sent what no honest steward sends: changed or broken software, or an attempt to spoil the "
            "adapter; nobody can see whose it was. The adapter is as it was before; the attempt is paid for. "
            "Ask every institution of this attempt to look at its steward, draft a run without one that you cannot "
            "trust, or resume this one: it goes on with the round's next attempt",
            **asdict(norm),
        )
    config = ready.rules.config
    adapter, state = step(
        ready.adapter,
        gradient,
        ready.optimizer,
        config=config.server,
        rate=ready.rate,
        noise_variance=ready.rules.noise_variance(),
    )
    if not np.isfinite(adapter).all():
        raise RoundFailed(
            f"round {ready.round}: the step left the range of float32; lower server.learning_rate and resume"
        )
    return ReadyForRound(
        rules=ready.rules,
        round=ready.round + 1,
        adapter=adapter,
        optimizer=state,
        average=moving_average(ready.average, adapter, config=config.server, step_number=state.steps),
        norm=norm,
    )


def next_attempt(ready: ReadyForRound, *, answered: int, asked: int, failures: Mapping[int, str]) -> ReadyForRound:
    """The same round's next attempt.

    Raises:
        RoundFailed: It was the last one.

    """
    config = ready.rules.config.server
    tried = ready.attempt + 1 - ready.first_attempt
    if tried >= config.attempts:
        raise RoundFailed(
            f"round {ready.round}: {answered} of {asked} institutions answered, {ready.rules.minimum} are needed, at "
            f"attempt {tried} of {config.attempts} ({failure_words(failures)}); the run can be resumed"
        )
    return replace(ready, attempt=ready.attempt + 1, failed=ready.failed | frozenset(failures))


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
