"""Institutions whose data is one point each: institution i wants the adapter to be c_i."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from client.app import make_client_app
from common.config import PLAIN_WORDS, RunConfig
from common.wire.messages import Contribute, decode_request, encode
from common.wire.replies import PlainContribution, PlainEvaluation
from server.rounds.reports import RunObserver
from server.run.coordinator import Coordinator

if TYPE_CHECKING:
    from pathlib import Path

    from flwr.app import Context
    from flwr.clientapp import ClientApp

    from server.rounds.optimizer import Vector
    from server.rounds.reports import EvaluationReport, RoundReport, RunFinish, RunStart, VoidReport
    from server.rounds.transport import Transport

DIMENSION = 7


@dataclass(frozen=True)
class ToySpec:
    dimension: int = DIMENSION
    digest: str = "sha256:" + "ab" * 32


def toy_config(rounds: int = 5, **changes: Any) -> RunConfig:
    """A configuration; ``changes`` are nested tables that replace default values."""
    table = {
        "name": "toy",
        "rounds": rounds,
        "privacy": "none",
        "acknowledge": PLAIN_WORDS,
        "base": {"path": "bundled"},
        "server": {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.5, "schedule": "constant"},
    }
    for key, value in changes.items():
        table[key] = {**table[key], **value} if isinstance(value, dict) and isinstance(table.get(key), dict) else value
    return msgspec.convert(table, RunConfig)


PRIVACY = {
    "epsilon": 1.0,
    "delta": 1e-3,
    "clip": 10.0,
    "population": 20,
    "sampling_rate": 0.5,
    "colluders": 1,
    "repeats": 2,
}
"""Settings of a private run of three institutions."""


def private_config(rounds: int = 3, *, privacy: dict[str, Any] | None = None, **changes: Any) -> RunConfig:
    """A configuration of a private run in the clear; exactly three institutions answer."""
    changes.setdefault("aggregation", "clear")
    server = {"minimum_institutions": 3, **changes.pop("server", {})}
    table = {**PRIVACY, **(privacy or {})}
    return toy_config(rounds, privacy=table, acknowledge="", server=server, **changes)


def centre(institution: int, dimension: int = DIMENSION) -> Vector:
    return np.random.default_rng(1000 + institution).normal(size=dimension).astype(np.float32)


@dataclass(frozen=True)
class QuadraticSteward:
    """Loss ½‖x − c_i‖²; in fedavg it walks all the way to c_i. A weight of its own shows that means are weighted."""

    institution: int
    mode: str = "fedsgd"
    weighted: bool = False

    def answer(self, request: bytes) -> bytes:
        asked = decode_request(request)
        adapter = np.frombuffer(asked.adapter, dtype="<f4")
        gap = adapter - centre(self.institution, len(adapter))
        loss = 0.5 * float(np.sum(np.square(gap, dtype=np.float64)))
        if not isinstance(asked, Contribute):
            return encode(
                PlainEvaluation(round=asked.round, institution=f"site-{self.institution}", loss=loss, pictures=1)
            )
        weight = float(1 + self.institution) if self.weighted else 1.0
        vector = weight * (gap if self.mode == "fedsgd" else -gap)
        return encode(
            PlainContribution(
                round=asked.round,
                attempt=asked.attempt,
                vector=vector.astype("<f4").tobytes(),
                weight=weight,
                train_loss=loss,
            )
        )


@dataclass(frozen=True)
class ToyConnect:
    """Finds the steward of a simulated institution; picklable."""

    mode: str = "fedsgd"
    weighted: bool = False

    def __call__(self, context: Context) -> QuadraticSteward:
        return QuadraticSteward(int(context.node_config["partition-id"]), self.mode, self.weighted)


def toy_client_app(mode: str = "fedsgd", *, weighted: bool = False) -> ClientApp:
    return make_client_app(ToyConnect(mode, weighted))


@dataclass
class Recorder(RunObserver):
    """An observer that remembers what it was told."""

    starts: list[RunStart] = field(default_factory=list)
    rounds: list[RoundReport] = field(default_factory=list)
    evaluations: list[EvaluationReport] = field(default_factory=list)
    voids: list[VoidReport] = field(default_factory=list)
    finishes: list[RunFinish] = field(default_factory=list)

    def on_start(self, start: RunStart) -> None:
        self.starts.append(start)

    def on_round(self, report: RoundReport) -> None:
        self.rounds.append(report)

    def on_void(self, report: VoidReport) -> None:
        self.voids.append(report)

    def on_evaluation(self, report: EvaluationReport) -> None:
        self.evaluations.append(report)

    def on_finish(self, finish: RunFinish) -> None:
        self.finishes.append(finish)


def toy_coordinator(
    transport: Transport, directory: Path, *, config: RunConfig | None = None, observer: Any = None
) -> Coordinator:
    return Coordinator(
        config=config or toy_config(),
        spec=ToySpec(),
        initial=np.zeros(DIMENSION, dtype=np.float32),
        transport=transport,
        observer=observer or Recorder(),
        directory=directory,
    )
