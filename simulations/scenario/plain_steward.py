"""The steward that answers in the clear, for runs without secure aggregation: no institution's package has one.

Every request is parsed, checked against the run that the institution agreed to, and answered with a reply or with a
refusal that carries a code and no text. Details of a refusal stay in the institution's own log.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from client.training.private_update import PrivateUpdate, TrainingSide, adapter_vector, contribution_randomness
from client.training.trainer import Draws, training_draws
from common.adapter.vector import gradient_vector, trained_parameters
from common.errors import DarkroomError, PrivacyError, ProtocolError
from common.privacy.run_plan import private_plan
from common.wire.messages import Contribute, Evaluate, Refusal, RefusalCode, Request, decode_request, encode
from common.wire.replies import NoisedContribution, PlainContribution, PlainEvaluation, Reply

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from client.training.latents import LatentShard
    from client.training.trainer import Trainer
    from common.config import RunConfig
    from common.privacy.run_plan import PrivatePlan

HOLDOUT_SEED: Final = 20_260_101
"""Seed of the hold-out draws: the same (timestep, noise) for every adapter, so that losses can be compared."""
_LOG: Final = logging.getLogger(__name__)


class _Refused(DarkroomError):
    """A request that is answered with a refusal of this code."""

    def __init__(self, code: RefusalCode, reason: str) -> None:
        self.code = code
        super().__init__(reason)


@dataclass(frozen=True)
class _Update:
    """A weighted update: float32 [d], its weight, and the mean training loss it was made at."""

    vector: NDArray[np.float32]
    weight: float
    train_loss: float


@dataclass(frozen=True)
class Steward:
    """One institution in one run.

    Args:
        name: The institution's name in the run.
        config: The run's public configuration, as the institution agreed to it.
        trainer: The frozen base with the adapter; institutions in one process may share it.
        train: Encoded training pictures.
        holdout: Encoded hold-out pictures, or None.
        units: Training pictures of each privacy unit; None: each picture is one.

    """

    name: str
    config: RunConfig
    trainer: Trainer = field(repr=False)
    train: LatentShard = field(repr=False)
    holdout: LatentShard | None = field(repr=False, default=None)
    units: tuple[tuple[int, ...], ...] | None = field(repr=False, default=None)

    def answer(self, request: bytes) -> bytes:
        """Reply bytes to request bytes; never raises for anything the request does."""
        try:
            return encode(self._reply(decode_request(request)))
        except _Refused as refused:
            _LOG.warning("%s refused a request: %s", self.name, refused)
            return encode(Refusal(code=refused.code))
        except ProtocolError as error:
            _LOG.warning("%s could not read a request: %s", self.name, error)
            return encode(Refusal(code=RefusalCode.MALFORMED))

    def _reply(self, request: Request) -> Reply:
        if not isinstance(request, Contribute | Evaluate) or self.config.is_secure:
            # a share alone has less noise than the run promises, so it leaves masked or not at all
            raise _Refused(
                RefusalCode.NOT_ALLOWED, f"asked for {type(request).__name__}, which this run has no use for"
            )
        vector = self._checked_adapter(request)
        plan = private_plan(self.config)
        if isinstance(request, Contribute):
            return self._contribute(request, vector) if plan is None else self._contribute_noised(request, vector, plan)
        if plan is not None:
            raise _Refused(RefusalCode.NOT_ALLOWED, "asked for a hold-out loss, which is no private release")
        return self._evaluate(request, vector)

    def _checked_adapter(self, request: Contribute | Evaluate) -> NDArray[np.float32]:
        spec = self.trainer.spec
        if request.spec_digest != spec.digest:
            raise _Refused(RefusalCode.WRONG_SPEC, f"adapter spec {request.spec_digest}, agreed {spec.digest}")
        try:
            return adapter_vector(request.adapter, spec.dimension)
        except ProtocolError as error:
            is_whole = len(request.adapter) == 4 * spec.dimension
            raise _Refused(RefusalCode.NOT_FINITE if is_whole else RefusalCode.WRONG_SIZE, str(error)) from error

    def _contribute(self, request: Contribute, vector: NDArray[np.float32]) -> PlainContribution:
        self.trainer.set_adapter(vector)
        fedavg = self.config.training.mode == "fedavg"
        update = self._local_training(request) if fedavg else self._one_gradient(request)
        return PlainContribution(
            round=request.round,
            attempt=request.attempt,
            vector=update.vector.astype("<f4").tobytes(),
            weight=update.weight,
            train_loss=update.train_loss,
        )

    def _contribute_noised(
        self, request: Contribute, vector: NDArray[np.float32], plan: PrivatePlan
    ) -> NoisedContribution:
        self.trainer.set_adapter(vector)
        units = tuple((row,) for row in range(len(self.train))) if self.units is None else self.units
        try:
            side = TrainingSide(name=self.name, trainer=self.trainer, shard=self.train, units=units)
            update = PrivateUpdate(side=side, plan=plan)
            stream = f"{self.name}/{request.round}/{request.attempt}"
            values = update.share(contribution_randomness(plan, stream, seed=self.config.seed)).ring()
        except PrivacyError as error:
            raise _Refused(RefusalCode.NOT_ALLOWED, str(error)) from error
        return NoisedContribution(
            round=request.round,
            attempt=request.attempt,
            values=values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes(),
        )

    def _one_gradient(self, request: Contribute) -> _Update:
        """FedSGD: the sum of per-picture gradients at the global adapter; the weight is the public batch size."""
        batch = self.config.training.batch_size
        total = gradient_sum(self.trainer, self.train, self._draws(self._stream(request), batch))
        return _Update(total.vector, float(batch), total.loss_sum / batch)

    def _local_training(self, request: Contribute) -> _Update:
        """FedAvg (McMahan et al. 2017, arXiv:1602.05629): local Adam steps; the weight is the number of pictures."""
        training, rng = self.config.training, self._stream(request)
        start = self.trainer.adapter()
        batches = (self._draws(rng, training.batch_size) for _ in range(training.local_steps))
        loss = train_locally(self.trainer, self.train, batches, training.local_learning_rate)
        weight = float(len(self.train))
        return _Update((self.trainer.adapter() - start) * np.float32(weight), weight, loss)

    def _draws(self, rng: np.random.Generator, batch: int) -> Draws:
        """A batch of distinct pictures; a site with fewer sees each of them equally often."""
        count = len(self.train)
        rounds = -(-batch // count)
        rows = np.concatenate([rng.permutation(count) for _ in range(rounds)])[:batch]
        return training_draws(self.train, rows, self.config.training, self.trainer.schedule_steps, rng)

    def _stream(self, request: Contribute) -> np.random.Generator:
        """A stream named by run seed, institution, round and attempt: a resumed plain run repeats itself exactly."""
        name = f"{self.config.seed}\0{self.name}\0{request.round}\0{request.attempt}"
        return np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "big"))

    def _evaluate(self, request: Evaluate, vector: NDArray[np.float32]) -> PlainEvaluation:
        if self.holdout is None:
            raise _Refused(RefusalCode.NO_DATA, "asked for a hold-out loss, but there is no hold-out set")
        self.trainer.set_adapter(vector)
        loss = holdout_loss(self.trainer, self.holdout, self.config.evaluation.draws)
        return PlainEvaluation(round=request.round, institution=self.name, loss=loss, pictures=len(self.holdout))


@dataclass(frozen=True)
class GradientSum:
    """Sum over draws of the loss's gradient, float32 [d], and the sum of the losses."""

    vector: NDArray[np.float32]
    loss_sum: float


def holdout_draws(shard: LatentShard, draws_per_picture: int, steps: int) -> Draws:
    """Fixed draws for every picture: timesteps spread evenly over the schedule, the latent at its mean."""
    rng = np.random.default_rng(HOLDOUT_SEED)
    rows = torch.arange(len(shard)).repeat_interleave(draws_per_picture)
    strata = np.tile(np.arange(draws_per_picture), len(shard))
    timesteps = ((strata + rng.random(len(rows))) / draws_per_picture * steps).astype(np.int64)
    shape = (len(rows), *shard.mean.shape[2:])
    return Draws(
        rows=rows,
        views=torch.zeros_like(rows),
        timesteps=torch.from_numpy(timesteps),
        caption_rows=shard.caption_rows[rows],
        latent_noise=torch.zeros(shape),
        noise=torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)),
    )


def gradient_sum(trainer: Trainer, shard: LatentShard, draws: Draws) -> GradientSum:
    """Sum of the draws' gradients at the present adapter."""
    parameters = trained_parameters(trainer.unet, trainer.spec)
    for parameter in parameters:
        parameter.grad = None
    total = 0.0
    for part in draws.split(trainer.microbatch):
        loss = trainer.losses(shard, part).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return GradientSum(gradient_vector(trainer.unet, trainer.spec), total)


def train_locally(trainer: Trainer, shard: LatentShard, batches: Iterable[Draws], learning_rate: float) -> float:
    """Adam steps from the present adapter, one per batch; returns the mean training loss. Moments are not kept."""
    parameters = trained_parameters(trainer.unet, trainer.spec)
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    losses = []
    for draws in batches:
        losses.append(gradient_sum(trainer, shard, draws).loss_sum / len(draws))
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad /= len(draws)
        optimizer.step()
    return float(np.mean(losses))


def holdout_loss(trainer: Trainer, shard: LatentShard, draws_per_picture: int) -> float:
    """Mean unweighted denoising loss over the fixed hold-out draws."""
    draws = holdout_draws(shard, draws_per_picture, trainer.schedule_steps)
    with torch.no_grad():
        parts = [trainer.squared_errors(shard, part).double() for part in draws.split(2 * trainer.microbatch)]
    return float(torch.cat(parts).mean())
