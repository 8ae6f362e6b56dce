"""Run a scenario on this machine and leave everything worth looking at in one directory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import msgspec
import torch

from client.app import make_client_app
from client.trainer import build_trainer
from common.adapter.export import save_adapter
from common.adapter.model import open_base
from common.adapter.vector import initial_vector, write_vector
from server.checkpoint import load_checkpoint
from server.coordinator import CHECKPOINTS, Coordinator
from server.reports import Observers
from server.run_directory import RunDirectory
from simulations.engines.inprocess import run_inprocess
from simulations.engines.ray import run_ray
from simulations.institution_store import WorkerPlan
from simulations.observers import Curves, Gallery, Progress
from simulations.prepare import prepare_store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from flwr.app import Context

    from client.trainer import Trainer
    from common.config import RunConfig
    from common.port import StewardPort
    from server.reports import RunObserver
    from server.transport import Transport
    from server.vectors import Vector
    from simulations.institution_store import InstitutionStore
    from simulations.scenario import Scenario

Engine = Literal["inprocess", "ray"]
ADAPTER: Final = "adapter"
STORE: Final = "store"


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """Where and how a scenario runs."""

    scenario: Scenario
    directory: Path
    cache: Path
    engine: Engine
    resume: bool
    threads: int
    pictures: bool = True
    """Whether sample sheets are drawn; they take a second or two each."""


def run_scenario(plan: RunPlan, say: Callable[[str], None]) -> Path:
    """Run the scenario to its end; returns the run's directory.

    Raises:
        DarkroomError: Anything wrong with the configuration, base, pictures or checkpoint.

    """
    torch.set_num_threads(plan.threads)
    config = plan.scenario.run_config()
    base = open_base(plan.scenario.base_path(), digest=config.base.digest, family=config.base.family)
    store = prepare_store(plan.scenario, base, plan.cache, say)
    trainer = build_trainer(base, config)
    final = _coordinate(plan, config, trainer, store)
    write_vector(trainer.unet, trainer.spec, final)
    save_adapter(plan.directory / ADAPTER, trainer.unet, trainer.spec)
    return plan.directory


def _coordinate(plan: RunPlan, config: RunConfig, trainer: Trainer, store: InstitutionStore) -> Vector:
    """The federated run itself, under the plan's engine; the final adapter, float32 [d]."""
    members: tuple[RunObserver, ...] = (RunDirectory(plan.directory), Progress(), Curves(plan.directory))
    if plan.pictures:
        members += (Gallery(trainer, config, plan.directory),)

    def coordinate(transport: Transport) -> None:
        Coordinator(
            config=config,
            spec=trainer.spec,
            initial=initial_vector(trainer.spec),
            transport=transport,
            observer=Observers(members),
            directory=plan.directory,
        ).run(resume=plan.resume)

    count = len(store.institutions)
    if plan.engine == "inprocess":
        run_inprocess(coordinate, make_client_app(_SharedStewards(config, trainer, store).connect), count)
    else:
        _on_ray(plan, config, trainer, store, coordinate)
    return load_checkpoint(plan.directory / CHECKPOINTS).adapter


def _on_ray(
    plan: RunPlan,
    config: RunConfig,
    trainer: Trainer,
    store: InstitutionStore,
    coordinate: Callable[[Transport], None],
) -> None:
    """Worker processes read base and store from disk; only paths and configuration travel."""
    store.save(plan.directory / STORE)
    worker = WorkerPlan(
        run_config=msgspec.json.encode(config),
        base=str(trainer.base.directory.resolve()),
        store=(plan.directory / STORE).resolve(),
        threads=1,
    )
    run_ray(coordinate, worker.connect, len(store.institutions))


@dataclass(frozen=True)
class _SharedStewards:
    """Every institution's steward in this process, on one frozen base."""

    config: RunConfig
    trainer: Trainer
    store: InstitutionStore

    def connect(self, context: Context) -> StewardPort:
        """The steward of the institution that Flower's node plays."""
        return self.store.steward(int(context.node_config["partition-id"]), self.config, self.trainer)
