"""Sums over a round's answers: of plain vectors in float64, or of noised integers modulo 2^bits."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from common.errors import ProtocolError
from common.privacy.mechanisms import dequantise
from common.wire.replies import NoisedContribution, PlainContribution
from server.rounds.sum_norm import mean_norm

if TYPE_CHECKING:
    import numpy.typing as npt

    from common.privacy.mechanisms import NoisePlan
    from common.wire.replies import Contribution
    from server.rounds.optimizer import Precise
    from server.rounds.sum_norm import MeanNorm

_LARGEST: Final = float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True)
class PartialSum:
    """A weighted sum of plain vectors."""

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

    @property
    def train_loss(self) -> float:
        """Mean training loss so far, weighted as the update is; NaN if nobody reported one."""
        return self.loss / self.loss_weight if self.loss_weight else math.nan

    def check(self, reply: Contribution) -> None:
        """Raise ProtocolError for another kind, length or weight, or for values that are not finite."""
        if not isinstance(reply, PlainContribution):
            raise ProtocolError("wanted a plain contribution, got a noised one")
        if len(reply.vector) != 4 * len(self.vector):
            raise ProtocolError(f"contribution of {len(reply.vector)} bytes; wanted {len(self.vector)} float32 values")
        if not (math.isfinite(reply.weight) and reply.weight > 0.0):
            raise ProtocolError(f"contribution of weight {reply.weight}; wanted a positive, finite one")
        largest = float(np.abs(np.frombuffer(reply.vector, dtype="<f4")).max(initial=0.0))
        # also false for NaN; the bound keeps one institution's tiny weight from making the mean infinite
        if not largest <= _LARGEST * min(reply.weight, 1.0):
            raise ProtocolError("contribution with values that are not finite, by themselves or per weight")

    def plus(self, answer: Contribution | None) -> PartialSum:
        """The sum over one participant more; None stands for one that failed."""
        if not isinstance(answer, PlainContribution):
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

    def mean(self) -> Precise:
        """sum(vector) / sum(weight)."""
        return self.vector / self.weight

    def norm(self, mean: Precise) -> MeanNorm:
        """How long it is; nothing bounds it."""
        return mean_norm(mean, None)


@dataclass(frozen=True, kw_only=True)
class RingSum:
    """A sum of noised integers modulo 2^bits.

    Guarantee: :meth:`mean` divides by the public expected batch, whatever was sampled or answered; the size of a sample
    is secret, and a quotient by it would tell it and have another sensitivity.
    """

    settled: int
    values: npt.NDArray[np.unsignedinteger[Any]]
    """uint32[d] or uint64[d], as the plan says."""
    plan: NoisePlan
    expected_batch: float

    @classmethod
    def empty(cls, plan: NoisePlan, expected_batch: float) -> RingSum:
        """The sum over nobody."""
        kind = np.uint32 if plan.bits == 32 else np.uint64
        return cls(settled=0, values=np.zeros(plan.coordinates, dtype=kind), plan=plan, expected_batch=expected_batch)

    @property
    def train_loss(self) -> float:
        """NaN: no institution tells its loss."""
        return math.nan

    def check(self, reply: Contribution) -> None:
        """Raise ProtocolError for another kind or length; every integer is a value of the ring."""
        if not isinstance(reply, NoisedContribution):
            raise ProtocolError("wanted a noised contribution, got a plain one")
        if len(reply.values) != self.values.nbytes:
            raise ProtocolError(f"contribution of {len(reply.values)} bytes; wanted {self.values.nbytes}")

    def plus(self, answer: Contribution | None) -> RingSum:
        """The sum over one participant more; None stands for one that failed."""
        if not isinstance(answer, NoisedContribution):
            return replace(self, settled=self.settled + 1)
        share = np.frombuffer(answer.values, dtype=self.values.dtype.newbyteorder("<"))
        return replace(self, settled=self.settled + 1, values=self.values + share)

    def mean(self) -> Precise:
        """The sum in units of the gradient over the public expected batch."""
        return dequantise(self.values, self.plan) / self.expected_batch

    def norm(self, mean: Precise) -> MeanNorm:
        """How long it is, and may be."""
        return mean_norm(mean, self.plan, expected_batch=self.expected_batch)


RoundSum: TypeAlias = PartialSum | RingSum
"""The sum over the first ``settled`` participants in their order, failed ones included; immutable."""
