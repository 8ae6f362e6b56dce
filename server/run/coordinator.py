"""The coordinator's loop: rounds, evaluations, checkpoints, and one canonical log line for each of them."""

from __future__ import annotations

import contextlib
import logging
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from common.adapter.spec import vector_digest
from common.errors import (
    CheckpointError,
    ConfigError,
    ManifestError,
    OutOfOrder,
    ProtocolError,
    SumTooLong,
    TooFewInstitutions,
)
from common.manifest.words import describe_changes
from common.privacy.run_plan import private_plan
from common.wire.messages import Evaluate, encode
from server.rounds.answers import Clock, evaluation_row, take_answer, timed_answers
from server.rounds.dropouts import failure_words
from server.rounds.optimizer import Vector, frozen_copy, initial_state, to_bytes
from server.rounds.reports import EvaluationReport, InstitutionLoss, RoundReport, RunFinish, RunStart, VoidReport
from server.rounds.rounds import ReadyForRound, Rules
from server.rounds.secagg_session import SecAggSession
from server.run import attempts
from server.run.checkpoint import Checkpoint, checkpoint_files, load_checkpoint, plain_values, save_checkpoint
from server.run.leadership import wait_while_paused

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from common.adapter.spec import AdapterSpec
    from common.config import RunConfig
    from common.manifest.manifest import Manifest
    from common.privacy.run_plan import PrivacyReport
    from server.rounds.answers import Answer
    from server.rounds.reports import RunObserver
    from server.rounds.rounds import Collecting, MaskedCollecting
    from server.rounds.secagg_session import SecureRun
    from server.rounds.transport import Transport
    from server.run.waiting import WaitsForInstitutions

CHECKPOINTS: Final = "checkpoints"
"""Folder of checkpoints in a run's directory."""
_log = logging.getLogger(__name__)


class Coordinator:
    """Leads one run to its end.

    Guarantee: a run that is killed at any moment and resumed with :meth:`run` gives the same adapter, bit for bit, as
    one that was not, given institutions that answer the same request with the same bytes and the same nodes at hand.
    With privacy they never do: instead no round and attempt is sent twice, whatever crashes, and no more attempts are
    sent than the noise is sized for. A checkpoint stands for a whole round, its evaluation included; what came after
    it is done again.
    """

    def __init__(  # noqa: PLR0913 - the parts of a run
        self,
        *,
        config: RunConfig,
        spec: AdapterSpec,
        initial: Vector,
        transport: Transport,
        observer: RunObserver,
        directory: Path,
        secure: SecureRun | None = None,
        waiting: WaitsForInstitutions | None = None,
    ) -> None:
        """Put the parts together; ``initial`` is float32[d], ``directory`` the run's directory.

        ``waiting`` waits below the minimum; absent, as in a simulation, the run ends there: whoever is missing will
        not come back.

        Raises:
            ConfigError: A run with masked sums needs ``secure``, and no other may have it.
            ManifestError: The manifest in it is not of this run.

        """
        if config.is_secure != (secure is not None):
            raise ConfigError("a manifest and the coordinator's key are wanted with secure aggregation, and only there")
        if initial.shape != (spec.dimension,):
            raise ProtocolError(f"initial adapter of shape {initial.shape}; the spec wants ({spec.dimension},)")
        self._rules = Rules(config=config, spec_digest=spec.digest, dimension=spec.dimension)
        self._config = config
        self._initial = initial
        self._transport = transport
        self._observer = observer
        self._directory = directory
        self._waiting = waiting
        self._checkpoints = directory / CHECKPOINTS
        self._privacy = private_plan(config)
        self._journal: attempts.AttemptJournal | None = None
        if self._privacy is not None:
            self._privacy.noise(spec.dimension)  # noise that no scale carries is a fault now, not in the first round
            self._journal = attempts.AttemptJournal(directory / attempts.FILE, most=self._privacy.attempts)
        self._session: SecAggSession | None = None
        if secure is not None:
            self._session = SecAggSession(secure, transport, directory, timeout_s=config.server.round_timeout_s)
            _check_manifest(self._session.manifest, config, spec)
        self._manifest = "" if self._session is None else self._session.digest

    def run(self, *, resume: bool) -> Vector:
        """Run to the last round; the final adapter vector, float32[d].

        Raises:
            CheckpointError: ``resume`` without a usable checkpoint of this run, or no ``resume`` where there is one.
            RoundFailed: Too few institutions, or values out of range; the run can be resumed.
            SumTooLong: An attempt's mean is longer than honest institutions can make it; the same.

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
            wait_while_paused(self._directory)
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
        checkpoint.check_belongs(self._config, spec_digest=self._rules.spec_digest, manifest=self._manifest)
        following = checkpoint.round + 1
        if self._session is not None and self._journal is not None:
            following = self._journal.next_round(checkpoint.round)
        return ReadyForRound(
            rules=self._rules,
            round=following,
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
                manifest=self._manifest,
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
            try:
                collecting, following = self._attempt(current, clock)
            except TooFewInstitutions as shortage:
                if self._waiting is None:
                    raise
                self._waiting.wait(shortage)
                continue
            if following.round > current.round:
                break
            _log.warning(
                "round=%d attempt=%d given up: participants=%d answered=%d; %s",
                *(current.round, current.attempt, len(collecting.participants), len(collecting.answered)),
                failure_words(collecting.failures) or "masks did not cancel",
            )
            current = following
        report = _report_round(collecting, following, clock)
        log_round(report)
        self._observer.on_round(report)
        return following

    def _attempt(self, ready: ReadyForRound, clock: Clock) -> tuple[Collecting | MaskedCollecting, ReadyForRound]:
        """One attempt: every participant has answered or failed; and what follows."""
        nodes = self._nodes(self._rules.minimum)
        if self._session is not None:
            return self._masked_attempt(self._session, ready, nodes, clock)
        collecting, requests = ready.create_requests(nodes)
        self._record(ready)
        for node, answer in self._answers(requests, clock):
            collecting = take_answer(collecting, node, answer)
        with self._told_if_void(collecting):
            return collecting, collecting.close()

    def _masked_attempt(
        self, session: SecAggSession, ready: ReadyForRound, nodes: tuple[int, ...], clock: Clock
    ) -> tuple[MaskedCollecting, ReadyForRound]:
        session.ensure(nodes, minimum=self._rules.minimum)
        participants = ready.draw(session.members(nodes))
        self._record(ready)
        collecting, request = session.start_round(ready, participants)
        for node, answer in self._answers(dict.fromkeys(participants, request), clock):
            collecting = take_answer(collecting, node, answer)
        with self._told_if_void(collecting):
            return collecting, session.end_round(collecting)

    @contextlib.contextmanager
    def _told_if_void(self, collecting: Collecting | MaskedCollecting) -> Iterator[None]:
        """Have a sum that no honest institutions make logged and written down before it ends the run's start."""
        try:
            yield
        except SumTooLong as error:
            report = VoidReport(
                round=collecting.ready.round,
                attempt=collecting.ready.attempt,
                participants=collecting.participants,
                decoded_mean_norm=error.decoded,
                noise_norm_expected=error.noise_expected,
                mean_norm_limit=error.limit,
            )
            _log_void(report)
            self._observer.on_void(report)
            raise

    def _record(self, ready: ReadyForRound) -> None:
        """On disk before it is sent: no round and attempt is asked for twice. Enough are there, or it would not be."""
        if self._waiting is not None:
            self._waiting.over()  # now: a round may take an hour, and must not be said to wait meanwhile
        if self._journal is not None:
            self._journal.record(ready.round, ready.attempt)

    def _answers(self, requests: Mapping[int, bytes], clock: Clock) -> Iterator[tuple[int, Answer]]:
        outcomes = self._transport.exchange(requests, timeout_s=self._config.server.round_timeout_s)
        return timed_answers(outcomes, clock)

    def _nodes(self, at_least: int) -> tuple[int, ...]:
        seconds = self._config.server.round_timeout_s if self._waiting is None else self._waiting.nodes_s
        return self._transport.nodes(at_least=at_least, timeout_s=seconds)

    def _evaluate(self, ready: ReadyForRound) -> None:
        """Ask every node for its hold-out loss, with privacy none; without a single answer the run goes on."""
        clock = Clock()
        number = ready.round - 1
        request = Evaluate(round=number, spec_digest=self._rules.spec_digest, adapter=to_bytes(ready.released))
        asked = self._privacy is None
        requests = dict.fromkeys(self._nodes(1), encode(request)) if asked else {}
        rows: list[InstitutionLoss] = []
        failures: dict[int, str] = {}
        for node, answer in self._answers(requests, clock):
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
        log_evaluation(report)
        self._observer.on_evaluation(report)


def _check_manifest(manifest: Manifest, config: RunConfig, spec: AdapterSpec) -> None:
    """The institutions hold the coordinator to the manifest, so it had better be of this run."""
    wanted = msgspec.structs.replace(manifest, config=config, adapter_digest=spec.digest, dimension=spec.dimension)
    if changes := describe_changes(manifest, wanted):
        listed = "\n".join(f"  - {change}" for change in changes)
        raise ManifestError(
            f"the run's signed manifest says otherwise; from the manifest to what is wanted now:\n{listed}\n"
            "restore these, or start a new run, which has a manifest of its own, in another directory"
        )


def _report_round(collecting: Collecting | MaskedCollecting, following: ReadyForRound, clock: Clock) -> RoundReport:
    """The report of a round that counted."""
    before = collecting.ready
    change = following.adapter.astype(np.float64) - before.adapter
    norm = following.norm
    if norm is None:
        raise OutOfOrder(expected="the state that follows a round that counted", got="one that follows none")
    return RoundReport(
        round=before.round,
        attempt=before.attempt,
        participants=collecting.participants,
        answered=tuple(node for node in collecting.participants if node in collecting.answered),
        failures=collecting.failures,
        train_loss=collecting.train_loss if math.isfinite(collecting.train_loss) else None,
        step_norm=float(np.linalg.norm(change)),
        decoded_mean_norm=norm.decoded,
        noise_norm_expected=norm.noise_expected,
        mean_norm_limit=norm.limit,
        learning_rate=before.rate,
        seconds=clock.seconds,
        seconds_waiting=clock.waiting,
    )


def log_round(report: RoundReport) -> None:
    """One line; of a loss only where one was sent."""
    _log.info(
        "round=%d attempt=%d participants=%d answered=%d failures=%d%s step_norm=%.6g %s "
        "learning_rate=%.6g seconds=%.3f waiting=%.3f",
        *(report.round, report.attempt, len(report.participants), len(report.answered), len(report.failures)),
        "" if report.train_loss is None else f" train_loss={report.train_loss:.6g}",
        *(report.step_norm, _lengths(report), report.learning_rate, report.seconds, report.seconds_waiting),
    )


def _log_void(report: VoidReport) -> None:
    """One line; what it means and what to do is in the error that follows."""
    _log.warning(
        "round=%d attempt=%d void: participants=%d %s",
        *(report.round, report.attempt, len(report.participants), _lengths(report)),
    )


def _lengths(report: RoundReport | VoidReport) -> str:
    """Of the mean, and of what bounds it where something does."""
    words = f"decoded_mean_norm={report.decoded_mean_norm:.6g}"
    if report.noise_norm_expected is not None and report.mean_norm_limit is not None:
        words += f" noise_norm_expected={report.noise_norm_expected:.6g} mean_norm_limit={report.mean_norm_limit:.6g}"
    return words


def log_evaluation(report: EvaluationReport) -> None:
    """One line; a warning where everybody was asked and nobody answered."""
    if not report.asked:
        _log.info(
            "evaluation round=%d: hold-out loss not sent, by design: it would tell of private pictures", report.round
        )
    elif report.loss is None:
        _log.warning("evaluation round=%d: no hold-out loss; %s", report.round, failure_words(report.failures))
    else:
        _log.info(
            "evaluation round=%d institutions=%d failures=%d pictures=%d loss=%.6g seconds=%.3f",
            *(report.round, len(report.losses), len(report.failures), report.pictures, report.loss, report.seconds),
        )
