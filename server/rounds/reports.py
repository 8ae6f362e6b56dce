"""What a run tells about itself: one report per round and evaluation, and who listens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from common.config import RunConfig
    from common.privacy.run_plan import PrivacyReport
    from server.rounds.optimizer import Vector


@dataclass(frozen=True, kw_only=True)
class RunStart:
    """A run begins, or goes on after ``round`` completed rounds."""

    config: RunConfig
    spec_digest: str
    dimension: int
    round: int
    """Completed rounds: 0 for a new run."""
    resumed: bool
    adapter_digest: str
    privacy: PrivacyReport | None = None
    """What is promised if all attempts are used; None for a run without privacy."""


@dataclass(frozen=True, kw_only=True)
class RoundReport:
    """A round that counted; nodes are named as the transport names them."""

    round: int
    """1 … ``rounds``"""
    attempt: int
    """Attempts that were given up before this one."""
    participants: tuple[int, ...]
    answered: tuple[int, ...]
    failures: Mapping[int, str]
    """Reason by node, of this attempt."""
    train_loss: float | None
    """Mean over the answers, weighted as the update is; None where none had a loss, as with privacy."""
    step_norm: float
    """Euclidean norm of the adapter's change, which the optimizer made of the mean."""
    decoded_mean_norm: float
    """Euclidean norm of the mean that was decoded, with privacy its noise included."""
    noise_norm_expected: float | None
    """What the noise alone gives on average; None without privacy, like the next."""
    mean_norm_limit: float | None
    """Longest mean that noise and the cap on units allow; beyond it the attempt is void."""
    learning_rate: float
    seconds: float
    """Wall-clock time of the round, all its attempts included."""
    seconds_waiting: float
    """The part of it that was spent waiting for institutions."""


@dataclass(frozen=True, kw_only=True)
class VoidReport:
    """An attempt whose mean is longer than honest institutions can make it; the adapter stayed as it was."""

    round: int
    attempt: int
    participants: tuple[int, ...]
    """Nodes that answered; nobody can see which of them it was."""
    decoded_mean_norm: float
    noise_norm_expected: float | None
    mean_norm_limit: float | None
    """As in :class:`RoundReport`."""


@dataclass(frozen=True, kw_only=True)
class InstitutionLoss:
    """One institution's hold-out loss."""

    node: int
    institution: str
    """The institution's own name for itself, unchecked."""
    loss: float
    pictures: int


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """Hold-out losses after ``round`` rounds; 0 is before training."""

    round: int
    losses: tuple[InstitutionLoss, ...]
    """By node."""
    failures: Mapping[int, str]
    seconds: float
    adapter: Vector
    """float32[d]: what was evaluated."""
    asked: bool = True
    """False with privacy: institutions are not asked, because a loss would be a release of its own."""

    @property
    def loss(self) -> float | None:
        """Mean over hold-out pictures; None if there are none."""
        pictures = sum(row.pictures for row in self.losses)
        return sum(row.loss * row.pictures for row in self.losses) / pictures if pictures else None

    @property
    def pictures(self) -> int:
        """Hold-out pictures behind the loss."""
        return sum(row.pictures for row in self.losses)


@dataclass(frozen=True, kw_only=True)
class RunFinish:
    """The run is over; ``adapter`` is float32[d]."""

    round: int
    adapter: Vector
    adapter_digest: str
    seconds: float
    """Wall-clock time since this start."""
    privacy: PrivacyReport | None = None
    """What holds for the attempts that were sent; None for a run without privacy."""


class RunObserver:
    """Listens to a run, and does nothing: the run directory, a progress display or a test takes what it needs of it."""

    def on_start(self, start: RunStart) -> None:
        """Before the first request of this start."""

    def on_round(self, report: RoundReport) -> None:
        """After each round that counted, before its checkpoint."""

    def on_void(self, report: VoidReport) -> None:
        """After an attempt whose mean no honest institutions make; then the run stops."""

    def on_evaluation(self, report: EvaluationReport) -> None:
        """After each evaluation, before the checkpoint of its round."""

    def on_finish(self, finish: RunFinish) -> None:
        """After the last round's checkpoint."""


@dataclass(frozen=True)
class Observers(RunObserver):
    """Several observers as one, told in order."""

    members: tuple[RunObserver, ...]

    def on_start(self, start: RunStart) -> None:
        """Tell each of them."""
        for member in self.members:
            member.on_start(start)

    def on_round(self, report: RoundReport) -> None:
        """Tell each of them."""
        for member in self.members:
            member.on_round(report)

    def on_void(self, report: VoidReport) -> None:
        """Tell each of them."""
        for member in self.members:
            member.on_void(report)

    def on_evaluation(self, report: EvaluationReport) -> None:
        """Tell each of them."""
        for member in self.members:
            member.on_evaluation(report)

    def on_finish(self, finish: RunFinish) -> None:
        """Tell each of them."""
        for member in self.members:
            member.on_finish(finish)
