"""What a simulation shows of a private run beyond what the run itself tells anybody.

A real coordinator learns no loss. Here all pictures are in one process, so the hold-out loss is measured past the
protocol, for the curves: it is no release, no part of the training, and no institution is asked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tqdm import tqdm

from server.rounds.reports import InstitutionLoss

if TYPE_CHECKING:
    from client.training.trainer import Trainer
    from common.config import RunConfig
    from server.rounds.reports import EvaluationReport, RoundReport, RunFinish, RunObserver, RunStart, VoidReport
    from simulations.scenario.store import InstitutionStore


@dataclass(frozen=True)
class MeasuredHoldout:
    """Passes everything on, and adds to each evaluation the hold-out losses that nobody was asked for."""

    inner: RunObserver
    trainer: Trainer
    store: InstitutionStore
    config: RunConfig

    def on_start(self, start: RunStart) -> None:
        """Pass on."""
        self.inner.on_start(start)

    def on_round(self, report: RoundReport) -> None:
        """Pass on."""
        self.inner.on_round(report)

    def on_void(self, report: VoidReport) -> None:
        """Pass on."""
        self.inner.on_void(report)

    def on_evaluation(self, report: EvaluationReport) -> None:
        """Measure, and pass on; what institutions answered themselves stays."""
        self.inner.on_evaluation(report if report.asked else replace(report, losses=self._measure(report)))

    def on_finish(self, finish: RunFinish) -> None:
        """Pass on."""
        self.inner.on_finish(finish)

    def _measure(self, report: EvaluationReport) -> tuple[InstitutionLoss, ...]:
        self.trainer.set_adapter(report.adapter)
        rows = []
        for node, institution in enumerate(self.store.institutions):
            shard = self.store.holdout_of(node)
            if shard is not None:
                loss = self.trainer.holdout_loss(shard, self.config.evaluation.draws)
                rows.append(InstitutionLoss(node=node, institution=institution.name, loss=loss, pictures=len(shard)))
        return tuple(rows)


class PrivacyNotice:
    """Says at the start what a private run promises, and at the end what holds for the attempts that were sent."""

    def on_start(self, start: RunStart) -> None:
        """Say what is promised."""
        if start.privacy is not None:
            tqdm.write(
                f"What this run promises, all {start.privacy.attempts} attempts used:\n{start.privacy.as_text()}\n"
            )

    def on_round(self, report: RoundReport) -> None:
        """Rounds change nothing about it."""

    def on_void(self, report: VoidReport) -> None:
        """An attempt counts, whatever came of it."""

    def on_evaluation(self, report: EvaluationReport) -> None:
        """Nor do evaluations."""

    def on_finish(self, finish: RunFinish) -> None:
        """Say what holds."""
        if finish.privacy is not None:
            tqdm.write(f"\nWhat holds after {finish.privacy.attempts} attempts:\n{finish.privacy.as_text()}")
