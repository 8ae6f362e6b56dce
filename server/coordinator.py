"""The coordinator's loop: rounds, evaluations, checkpoints, and one log line for each round."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from common.errors import CheckpointError, ProtocolError
from common.messages import Evaluate, encode
from common.privacy.run_plan import private_plan
from server import attempts
from server.answers import Clock, evaluation_row, take_contribution, timed_answers
from server.checkpoint import Checkpoint, checkpoint_files, load_checkpoint, plain_values, save_checkpoint
from server.optimizer import initial_state
from server.reports import EvaluationReport, InstitutionLoss, RoundReport, RunFinish, RunStart
from server.rounds import ReadyForRound, Rules
from server.vectors import Vector, frozen_copy, to_bytes, vector_digest

if TYPE_CHECKING:
    from pathlib import Path

    from common.config import RunConfig
    from common.privacy.run_plan import PrivacyReport
    from server.reports import RunObserver
    from server.rounds import Collecting
    from server.transport import Transport

_log = logging.getLogger(__name__)

CHECKPOINTS: Final = "checkpoints"
"""Folder of checkpoints in a run's directory."""


class VectorSpec(Protocol):
    """What the coordinator needs of an adapter's spec."""

    @property
    def dimension(self) -> int:
        """Coordinates of the adapter vector."""
        ...

    @property
    def digest(self) -> str:
        """``sha256:`` and 64 hexadecimal digits."""
        ...


class Coordinator:
    """Leads one run to its end.

    Guarantee: a run that is killed at any moment and resumed with :meth:`run` gives the same adapter, bit for bit, as
    one that was not, given institutions that answer the same request with the same bytes and the same nodes at hand.
    With privacy they never do: instead no round and attempt is sent twice, whatever crashes, and no more attempts are
    sent than the noise is sized for. A checkpoint stands for a whole round, its evaluation included; what came after
    it is done again.
    """

    def __init__(
        self,
        *,
        config: RunConfig,
        spec: VectorSpec,
        initial: Vector,
        transport: Transport,
        observer: RunObserver,
        directory: Path,
    ) -> None:
        """Put the parts together; ``initial`` is float32[d], ``directory`` the run's directory."""
        if initial.shape != (spec.dimension,):
            raise ProtocolError(f"initial adapter of shape {initial.shape}; the spec wants ({spec.dimension},)")
        self._rules = Rules(config=config, spec_digest=spec.digest, dimension=spec.dimension)
        self._config = config
        self._initial = initial
        self._transport = transport
        self._observer = observer
        self._checkpoints = directory / CHECKPOINTS
        self._privacy = private_plan(config)
        self._journal: attempts.AttemptJournal | None = None
        if self._privacy is not None:
            self._privacy.noise(spec.dimension)  # noise that no scale carries is a fault now, not in the first round
            self._journal = attempts.AttemptJournal(directory / attempts.FILE, most=self._privacy.attempts)

    def run(self, *, resume: bool) -> Vector:
        """Run to the last round; the final adapter vector, float32[d].

        Raises:
            CheckpointError: ``resume`` without a usable checkpoint of this run, or no ``resume`` where there is one.
            RoundFailed: Too few institutions, or values out of range; the run can be resumed.

        """
        clock = Clock()
        ready = self._restore() if resume else self._create_start()
        self._observer.on_start(
            RunStart(
                config=self._config,
                spec_digest=self._rules.spec_digest,
                dimension=self._rules.dimension,
                round=ready.round - 1,
                resumed=resume,
                adapter_digest=vector_digest(ready.released),
                privacy=None if self._privacy is None else self._privacy.report(self._privacy.attempts),
            )
        )
        if not resume:
            self._evaluate(ready)
            self._save(ready)
        while not ready.is_over:
            ready = self._run_round(ready)
            if self._is_evaluated(ready.round - 1):
                self._evaluate(ready)
            self._save(ready)
        digest = vector_digest(ready.released)
        self._observer.on_finish(
            RunFinish(
                round=ready.round - 1,
                adapter=ready.released,
                adapter_digest=digest,
                seconds=clock.seconds,
                privacy=self._spent(),
            )
        )
        _log.info("finished rounds=%d adapter=%s seconds=%.3f", ready.round - 1, digest, clock.seconds)
        return ready.released

    def _spent(self) -> PrivacyReport | None:
        if self._privacy is None or self._journal is None:
            return None
        return self._privacy.report(self._journal.sent)

    def _create_start(self) -> ReadyForRound:
        if checkpoint_files(self._checkpoints):
            raise CheckpointError(
                f"{self._checkpoints}: holds checkpoints of a run; resume it, or start in another directory"
            )
        return ReadyForRound(
            rules=self._rules,
            round=1,
            adapter=frozen_copy(self._initial, np.float32),
            optimizer=initial_state(self._config.server, self._rules.dimension),
        )

    def _restore(self) -> ReadyForRound:
        checkpoint = load_checkpoint(self._checkpoints)
        checkpoint.check_belongs(self._config, spec_digest=self._rules.spec_digest)
        return ReadyForRound(
            rules=self._rules,
            round=checkpoint.round + 1,
            adapter=checkpoint.adapter,
            optimizer=checkpoint.optimizer,
            average=checkpoint.average,
        )

    def _save(self, ready: ReadyForRound) -> None:
        save_checkpoint(
            self._checkpoints,
            Checkpoint(
                round=ready.round - 1,
                adapter=ready.adapter,
                optimizer=ready.optimizer,
                config=plain_values(self._config),
                spec_digest=self._rules.spec_digest,
                average=ready.average,
            ),
        )

    def _is_evaluated(self, round_number: int) -> bool:
        return round_number == self._config.rounds or round_number % self._config.evaluation.every == 0

    def _run_round(self, ready: ReadyForRound) -> ReadyForRound:
        """Attempts at one round until one counts."""
        clock = Clock()
        current = ready
        if self._journal is not None:
            free = self._journal.free_attempt(ready.round)
            current = replace(ready, attempt=free, first_attempt=free)
        while True:
            collecting = self._collect(current, clock)
            following = collecting.close()
            if following.round > current.round:
                break
            _log.warning(
                "round=%d attempt=%d given up: participants=%d answered=%d failures=%s",
                *(current.round, current.attempt, len(collecting.participants), len(collecting.answered)),
                sorted(set(collecting.failures.values())),
            )
            current = following
        report = _report(collecting, following, clock)
        _log_round(report)
        self._observer.on_round(report)
        return following

    def _collect(self, ready: ReadyForRound, clock: Clock) -> Collecting:
        """One attempt: every participant has answered or failed."""
        collecting, requests = ready.create_requests(self._nodes(self._rules.minimum))
        if self._journal is not None:
            self._journal.record(ready.round, ready.attempt)
        outcomes = self._transport.exchange(requests, timeout_s=self._config.server.round_timeout_s)
        for node, answer in timed_answers(outcomes, clock):
            collecting = take_contribution(collecting, node, answer)
        return collecting

    def _nodes(self, at_least: int) -> tuple[int, ...]:
        return self._transport.nodes(at_least=at_least, timeout_s=self._config.server.round_timeout_s)

    def _evaluate(self, ready: ReadyForRound) -> None:
        """Ask every node for its hold-out loss, with privacy none; without a single answer the run goes on."""
        clock = Clock()
        number = ready.round - 1
        request = Evaluate(round=number, spec_digest=self._rules.spec_digest, adapter=to_bytes(ready.released))
        asked = self._privacy is None
        requests = dict.fromkeys(self._nodes(1), encode(request)) if asked else {}
        outcomes = self._transport.exchange(requests, timeout_s=self._config.server.round_timeout_s)
        rows: list[InstitutionLoss] = []
        failures: dict[int, str] = {}
        for node, answer in timed_answers(outcomes, clock):
            row = evaluation_row(node, answer, round_number=number)
            if isinstance(row, str):
                failures[node] = row
            else:
                rows.append(row)
        report = EvaluationReport(
            round=number,
            losses=tuple(sorted(rows, key=lambda row: row.node)),
            failures=failures,
            seconds=clock.seconds,
            adapter=ready.released,
            asked=asked,
        )
        _log_evaluation(report)
        self._observer.on_evaluation(report)


def _report(collecting: Collecting, following: ReadyForRound, clock: Clock) -> RoundReport:
    before = collecting.ready
    change = following.adapter.astype(np.float64) - before.adapter
    return RoundReport(
        round=before.round,
        attempt=before.attempt,
        participants=collecting.participants,
        answered=tuple(node for node in collecting.participants if node in collecting.answered),
        failures=collecting.failures,
        train_loss=collecting.train_loss,
        update_norm=float(np.linalg.norm(change)),
        learning_rate=collecting.rate,
        seconds=clock.seconds,
        seconds_waiting=clock.waiting,
    )


def _log_round(report: RoundReport) -> None:
    _log.info(
        "round=%d attempt=%d participants=%d answered=%d failures=%d train_loss=%.6g update_norm=%.6g "
        "learning_rate=%.6g seconds=%.3f waiting=%.3f",
        *(report.round, report.attempt, len(report.participants), len(report.answered), len(report.failures)),
        *(report.train_loss, report.update_norm, report.learning_rate, report.seconds, report.seconds_waiting),
    )


def _log_evaluation(report: EvaluationReport) -> None:
    level = logging.INFO if report.losses or not report.asked else logging.WARNING
    _log.log(
        level,
        "evaluation round=%d institutions=%d failures=%d pictures=%d loss=%.6g seconds=%.3f",
        *(report.round, len(report.losses), len(report.failures), report.pictures, report.loss, report.seconds),
    )
