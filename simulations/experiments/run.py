"""Run a scenario on this machine and leave everything worth looking at in one directory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import msgspec
import torch

from client.app import make_client_app
from client.training.trainer import build_trainer
from common.adapter.export import save_adapter
from common.adapter.model import open_base
from common.adapter.vector import initial_vector, write_vector
from common.errors import ConfigError, RoundFailed
from server.federation.node_names import with_names
from server.rounds.reports import Observers
from server.run.checkpoint import checkpoint_files, load_checkpoint
from server.run.coordinator import CHECKPOINTS, Coordinator
from server.run.directory import RunDirectory, read_metrics
from simulations.engines.inprocess import run_inprocess
from simulations.engines.ray import run_ray
from simulations.experiments.observers import Curves, Gallery, MeasuredHoldout, PrivacyNotice, Progress
from simulations.scenario.prepare import prepare_store
from simulations.scenario.secure_sites import SimulatedFederation
from simulations.scenario.store import WorkerPlan

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from flwr.app import Context

    from client.training.trainer import Trainer
    from common.adapter.model import BaseModel
    from common.config import RunConfig
    from common.wire.messages import StewardPort
    from server.rounds.optimizer import Vector
    from server.rounds.reports import RunObserver
    from server.rounds.transport import Transport
    from simulations.scenario.scenario import Scenario
    from simulations.scenario.store import InstitutionStore

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


def run_scenario(plan: RunPlan, warn: Callable[[str], None]) -> None:
    """Run the scenario to its end.

    Raises:
        DarkroomError: Anything wrong with the configuration, base, pictures or checkpoint.

    """
    torch.set_num_threads(plan.threads)
    base, config = open_scenario_base(plan.scenario)
    store = prepare_store(plan.scenario, base, plan.cache, warn)
    _check_enough(config, len(store.institutions))
    trainer = build_trainer(base, config)
    try:
        final = _federate(plan, config, trainer, store)
    except RoundFailed as error:
        names = {node: institution.name for node, institution in enumerate(store.institutions)}
        error.args = (with_names(str(error), names),)
        raise
    write_vector(trainer.unet, trainer.spec, final)
    save_adapter(plan.directory / ADAPTER, trainer.unet, trainer.spec)


def _federate(plan: RunPlan, config: RunConfig, trainer: Trainer, store: InstitutionStore) -> Vector:
    if plan.engine == "ray":
        return _federate_on_ray(plan, config, trainer, store)
    return federate(
        Federation(config, trainer, store, plan.directory),
        _observers(plan, config, trainer, store),
        resume=plan.resume and has_begun(plan.directory),
    )


def has_begun(directory: Path) -> bool:
    """Whether there is something to go on from, or to lose: a run killed before its first checkpoint starts anew."""
    if checkpoint_files(directory / CHECKPOINTS):
        return True
    return any(row["kind"] == "round" for row in read_metrics(directory))


def _check_enough(config: RunConfig, institutions: int) -> None:
    """A simulation's institutions do not grow in number: waiting for more would only end in the time limit."""
    wanted = config.server.minimum_institutions
    if wanted > institutions:
        raise ConfigError(
            f"server.minimum_institutions: {wanted} are wanted, the scenario has {institutions}; "
            "lower it, or deal the pictures out to more institutions"
        )


def open_scenario_base(scenario: Scenario) -> tuple[BaseModel, RunConfig]:
    """The scenario's base, and its run configuration with the base pinned to the content that was found.

    Raises:
        ModelError: The base cannot be used, or is not the one that the scenario names.

    """
    config = scenario.run_config()
    base = open_base(
        scenario.base_path(),
        digest=config.base.digest,
        family=config.base.family,
        allow_download=config.base.download,
    )
    pinned = msgspec.structs.replace(config.base, digest=base.digest)
    return base, msgspec.structs.replace(config, base=pinned)


def _observers(plan: RunPlan, config: RunConfig, trainer: Trainer, store: InstitutionStore) -> tuple[RunObserver, ...]:
    """In this order: the metrics are on disk before the curves are drawn from them."""
    listening = (
        RunDirectory(plan.directory),
        Progress(),
        Curves(plan.directory),
        Gallery(trainer, config, plan.directory),
    )
    if config.privacy == "none":
        return listening
    return (PrivacyNotice(), MeasuredHoldout(listening, trainer, store, config))


class Federation(SimulatedFederation):
    """Virtual institutions of one run in this process, on one frozen base; keys and records where sums are masked."""

    def connect(self, context: Context) -> StewardPort:
        """The steward of the institution that Flower's node plays."""
        index = int(context.node_config["partition-id"])
        if self.config.is_secure:
            return self.steward(index)
        return self.store.steward(index, self.config, self.trainer)

    def coordinator(self, transport: Transport, observers: tuple[RunObserver, ...]) -> Coordinator:
        """The run's coordinator on this transport."""
        spec = self.trainer.spec
        return Coordinator(
            config=self.config,
            spec=spec,
            initial=initial_vector(spec),
            transport=transport,
            observer=Observers(observers),
            directory=self.directory,
            secure=self.secure_run() if self.config.is_secure else None,
        )


def federate(federation: Federation, observers: tuple[RunObserver, ...], *, resume: bool) -> Vector:
    """Run in this process; the final adapter, float32 [d]."""
    return run_inprocess(
        lambda transport: federation.coordinator(transport, observers).run(resume=resume),
        make_client_app(federation.connect),
        len(federation.store.institutions),
    )


def _federate_on_ray(plan: RunPlan, config: RunConfig, trainer: Trainer, store: InstitutionStore) -> Vector:
    """Run with worker processes, which read base and store from disk: only paths and configuration travel.

    Raises:
        ConfigError: A run with secure aggregation: no worker process belongs to an institution, so none could keep its
            session keys.

    """
    if config.is_secure:
        raise ConfigError(
            "secure aggregation needs a process that keeps each institution's keys, which Ray's workers do not: use "
            'the engine inprocess, or aggregation = "clear" to simulate the statistics alone'
        )
    store.save(plan.directory / STORE)
    worker = WorkerPlan(
        run_config=msgspec.json.encode(config),
        base=str(trainer.base.directory.resolve()),
        store=(plan.directory / STORE).resolve(),
        threads=1,
    )
    federation = Federation(config, trainer, store, plan.directory)

    def coordinate(transport: Transport) -> None:
        observers = _observers(plan, config, trainer, store)
        federation.coordinator(transport, observers).run(resume=plan.resume and has_begun(plan.directory))

    run_ray(coordinate, worker.connect, len(store.institutions))
    return load_checkpoint(plan.directory / CHECKPOINTS).released
