"""One institution's private contribution: sample units in secret, clip each one's gradient, sum, round, add noise.

Nothing else of the data leaves: no loss, no count. Noise is added whether or not anybody was sampled.

What can fail for reasons of its own does so before anybody is sampled: settings, adapter, device. After that, an error
that reached the coordinator would tell of the sample, so there is none:

* Where a micro-batch fails, each of its units is tried alone, and one that fails alone counts as zero, as one whose
  gradient is not finite does. It is the failing unit's own data that decides, so it moves the sum by no more than C; to
  drop the whole sample for it would move the sum by what all others add up to. Memory that runs out counts alike: every
  micro-batch has one shape, so whom it hits does not depend on what they are, and to be away instead would say that
  there was somebody.
* Where anything else fails up to the noise (draws, scaling), the answer is noise alone.

Either way the contribution stays charged, looks as any other, and this institution's own log says what failed and
where, without a word of the data. It takes longer, by as many micro-batches as one holds units. What fails for
everybody alike (the noise cannot be drawn, the audit log cannot be written) is an error, which the coordinator sees as
a refusal.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np
import torch

from client.governance.policy import check_size
from client.governance.refusals import place_of
from client.training.trainer import Draws, training_draws
from common.adapter.vector import trained_parameters
from common.crypto.randomness import SystemRandomness, repeatable_randomness
from common.errors import AccountingError, ProtocolError
from common.privacy.clipping import ClippedSum, clipped_sum
from common.privacy.mechanisms import QuantisedSum, add_noise, quantise
from common.privacy.sampling import draw_images, sample_units

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from client.training.latents import LatentShard
    from client.training.trainer import Trainer
    from common.crypto.randomness import Randomness
    from common.privacy.mechanisms import NoisedShare, NoisePlan
    from common.privacy.run_plan import PrivatePlan

AnswerTimes: TypeAlias = Literal["even", "as_computed"]
"""``even``: as many micro-batches whatever the sample, those of the largest that there can be. ``as_computed``: as many
as the sample needs, so that the time shows its size in steps of one micro-batch."""

_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class WeightedDraws:
    """Draws of whole units, a unit's K draws side by side; ``weights``, float32 [n], are 0 for padding, else 1."""

    draws: Draws
    weights: torch.Tensor

    def alone(self, unit: int, draws: int) -> WeightedDraws:
        """One unit in a micro-batch of the same shape, filled up with copies of itself of weight 0."""
        own = torch.arange(unit * draws, (unit + 1) * draws).repeat(len(self.weights) // draws)
        weights = torch.zeros_like(self.weights)
        weights[:draws] = self.weights[own[:draws]]
        return WeightedDraws(self.draws.at(own), weights)


@dataclass(frozen=True, kw_only=True)
class TrainingSide:
    """What an institution trains with in one run.

    Attributes:
        name: names the streams of repeatable runs; nothing else depends on it.
        trainer: the frozen base with the adapter; institutions in one process may share it.
        shard: encoded training pictures.
        units: training pictures of each privacy unit.
        answer_times: whether what it computes follows the size of a round's sample.

    """

    name: str
    trainer: Trainer = field(repr=False)
    shard: LatentShard = field(repr=False)
    units: tuple[tuple[int, ...], ...] = field(repr=False)
    answer_times: AnswerTimes = "as_computed"

    def private_update(self, plan: PrivatePlan) -> PrivateUpdate:
        """What makes this institution's shares.

        Raises:
            TooManyUnits: More units than the run's settings allow one institution.

        """
        return PrivateUpdate(side=self, plan=plan)


@dataclass(frozen=True, kw_only=True)
class PrivateUpdate:
    """Makes private contributions from one institution's pictures at the trainer's present adapter.

    Args:
        side: What it trains with.
        plan: The run's privacy.

    Raises:
        TooManyUnits: More units than the run's settings allow one institution.
        AccountingError: A unit without pictures.

    """

    side: TrainingSide
    plan: PrivatePlan

    def __post_init__(self) -> None:
        check_size(len(self.side.units), self.plan.config)  # the cap's overflow probability was worked out for so many
        if not all(self.side.units):  # found out here, because whoever is sampled must not be told by an error
            raise AccountingError("this institution has a privacy unit without pictures: ingest its pictures anew")

    def share(self, randomness: Randomness) -> NoisedShare:
        """A noised share for one attempt, from a fresh secret sample.

        Guarantee: it is made of clipped gradients of whole units and of noise, and is noise alone where the sample is
        empty. With secret ``randomness``, what it tells is what the run's statements say. Nothing that depends on the
        sample raises.

        Raises:
            MechanismError: No scale carries the run's noise.

        """
        noise = self.plan.noise(self.side.trainer.spec.dimension)
        chosen = sample_units(
            len(self.side.units), rate=self.plan.config.sampling_rate, cap=self.plan.cap, randomness=randomness
        )
        return add_noise(self._quantised(chosen, noise, randomness), randomness)

    def _quantised(self, chosen: NDArray[np.int64], noise: NoisePlan, randomness: Randomness) -> QuantisedSum:
        try:
            rows = self.picture_rows(chosen, randomness)
            # timesteps and diffusion noise are part of the query and hide nothing; a fast generator may draw them
            rng = np.random.default_rng(int.from_bytes(randomness.take(32), "little"))
            return quantise(self.clipped(rows, rng), noise)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not tell that somebody was sampled
            _LOG.error("a contribution is noise alone, because it could not be computed: %s", place_of(error))
            return QuantisedSum(values=np.zeros(noise.coordinates, dtype=np.int64), plan=noise)

    def picture_rows(self, chosen: NDArray[np.int64], randomness: Randomness) -> NDArray[np.int64]:
        """Pictures of the chosen units' K draws, [units·K], unit by unit."""
        draws = self.plan.config.draws
        parts = [draw_images(self.side.units[unit], draws=draws, randomness=randomness) for unit in chosen]
        return np.concatenate([np.zeros(0, dtype=np.int64), *parts])

    def clipped(self, rows: NDArray[np.int64], rng: np.random.Generator) -> ClippedSum:
        """Sum of the clipped gradients of units given by their pictures' rows, [units·K]; secret."""
        total = np.zeros(self.side.trainer.spec.dimension)
        for batch in self._batches(rows, rng):
            for part in self._parts(batch):
                total += part
        return ClippedSum(vector=total, sensitivity=self.plan.config.clip)

    def _parts(self, batch: WeightedDraws) -> Iterator[NDArray[np.float64]]:
        """The micro-batch's clipped sum; where it fails, that of each of its units that does not fail alone."""
        if (whole := self._attempt(batch)) is not None:
            yield whole
            return
        draws = self.plan.config.draws
        for unit in range(len(batch.weights) // draws):  # those of weight 0 too: the time does not tell how many
            if (one := self._attempt(batch.alone(unit, draws))) is not None:
                yield one

    def _attempt(self, batch: WeightedDraws) -> NDArray[np.float64] | None:
        trainer = self.side.trainer
        try:
            return clipped_sum(
                trainer.unet,
                trained_parameters(trainer.unet, trainer.spec),
                [batch],
                lambda each: trainer.losses(self.side.shard, each.draws) * each.weights.to(trainer.device),
                clip=self.plan.config.clip,
                draws=self.plan.config.draws,
            ).vector
        except Exception as error:  # noqa: BLE001 - as above
            _LOG.error(
                "a part of a contribution could not be computed; what fails alone is left out: %s", place_of(error)
            )
            return None

    def _batches(self, rows: NDArray[np.int64], rng: np.random.Generator) -> Iterator[WeightedDraws]:
        """Micro-batches of one size, filled up with draws of weight 0, whose gradient is zero.

        So neither shapes nor, within a micro-batch, time tell the size of the sample; with even answer times, the
        number of micro-batches does not either, since no sample has more units than the cap. Draws are made for one
        micro-batch at a time: made at once, they would need memory that grows with the sample.
        """
        side, draws = self.side, self.plan.config.draws
        size = max(1, side.trainer.microbatch // draws) * draws
        most = max(len(rows), self.plan.cap * draws if side.answer_times == "even" else 0)
        if not len(side.shard):  # nothing to compute with
            return
        filler = rows[0] if rows.size else 0
        for start in range(0, most, size):
            own = rows[start : start + size]
            filled = np.concatenate([own, np.full(size - len(own), filler, dtype=np.int64)])
            weights = torch.zeros(size)
            weights[: len(own)] = 1
            made = training_draws(side.shard, filled, side.trainer.config, side.trainer.schedule_steps, rng)
            yield WeightedDraws(made, weights)


def adapter_vector(data: bytes, dimension: int) -> NDArray[np.float32]:
    """The global adapter that a coordinator sent, float32 [d].

    Raises:
        ProtocolError: Another size, or values that are not finite.

    """
    if len(data) != 4 * dimension:
        raise ProtocolError(f"adapter of {len(data)} bytes, d = {dimension}")
    vector = np.frombuffer(data, dtype="<f4").astype(np.float32)
    if not np.isfinite(vector).all():
        raise ProtocolError("the adapter holds values that are not finite")
    return vector


def contribution_randomness(plan: PrivatePlan, stream: str, *, seed: int) -> Randomness:
    """Secret, but in a run that says aloud that it is not private: there ``stream`` names institution and attempt."""
    if plan.config.is_private:
        return SystemRandomness()
    return repeatable_randomness(stream, seed=seed, acknowledge=plan.config.repeatable)
