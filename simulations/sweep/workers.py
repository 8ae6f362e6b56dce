"""Runs trials in worker processes of one thread each; base and pictures are loaded once a process.

Sums are added in the clear: masks cancel exactly, so the same noised sums would come out, later. Outcomes are rows of a
CSV file, one appended and synced after each training, so that a stopped sweep goes on.
"""

from __future__ import annotations

import csv
import io
import logging
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import torch

from client.training.trainer import build_trainer
from common.command_line import quiet_libraries
from common.durable_files import sync
from common.errors import ConfigError
from common.privacy.run_plan import private_plan
from simulations.experiments.run import Federation, federate, open_scenario_base
from simulations.scenario.plain_steward import holdout_loss
from simulations.scenario.prepare import prepare_store
from simulations.sweep.settings import trial_config, trial_store
from simulations.sweep.trial import Trial

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from multiprocessing.process import BaseProcess

    from client.training.trainer import Trainer
    from common.adapter.model import BaseModel
    from simulations.scenario.scenario import Scenario
    from simulations.scenario.store import InstitutionStore


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a trial came to."""

    trial: Trial
    noise_multiplier: float
    """z without the colluders' shares; 0 without privacy."""
    units: int
    trained: int
    """Numbers that were trained, d."""
    base_loss: float
    """Mean over institutions of the hold-out loss before training."""
    loss: float
    """The same afterwards."""
    seconds: float


_TRIAL: Final = Trial.__struct_fields__
_RESULT: Final = tuple(name for name in Outcome.__struct_fields__ if name != "trial")
COLUMNS: Final = (*_TRIAL, *_RESULT)


@dataclass(frozen=True, kw_only=True)
class TrialPool:
    """Processes in which trials run."""

    scenario: Scenario
    cache: Path
    workers: int

    def run(self, todo: Sequence[Trial]) -> Iterator[Outcome]:
        """Outcomes as they come.

        Raises:
            DarkroomError: A trial's settings, or the scenario's base or pictures, cannot be used.

        """
        # spawn: a forked child of a process that has used torch's threads may hang
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.workers, mp_context=context, initializer=_end_with_parent) as pool:
            waiting = [pool.submit(_run, self.scenario, self.cache, trial) for trial in todo]
            try:
                for future in as_completed(waiting):
                    yield future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for worker in multiprocessing.active_children():  # else an interrupt waits minutes for their trials
                    worker.terminate()
                raise


def _end_with_parent() -> None:
    """End this worker when the sweep is killed, which would else train on for minutes and for nobody.

    Ctrl-C reaches every process of a terminal; the sweep's own answer to it is enough.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_wait_for, args=(parent,), daemon=True).start()


def _wait_for(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


@lru_cache(maxsize=1)
def _bench(scenario: Scenario, cache: Path) -> tuple[BaseModel, InstitutionStore]:
    """Kept between a worker's trials: base and pictures take longer to load than a short trial to train."""
    quiet_libraries()
    torch.set_num_threads(1)
    base, _ = open_scenario_base(scenario)
    return base, prepare_store(_with_subjects(scenario), base, cache, lambda _: None)


def _with_subjects(scenario: Scenario) -> Scenario:
    """The scenario with the pictures' subjects told apart, which trials may or may not use."""
    if scenario.privacy == "none":
        return scenario
    return msgspec.structs.replace(scenario, privacy=msgspec.structs.replace(scenario.privacy, unit="subject"))


def _run(scenario: Scenario, cache: Path, trial: Trial) -> Outcome:
    base, store = _bench(scenario, cache)
    logging.getLogger("server").setLevel(logging.WARNING)  # a line a round of every worker would drown the progress bar
    return run_trial(trial, scenario, base, store)


def run_trial(trial: Trial, scenario: Scenario, base: BaseModel, store: InstitutionStore) -> Outcome:
    """Train once and measure the hold-out loss before and after."""
    started = time.monotonic()
    chosen = trial_store(trial, store)
    config = trial_config(trial, scenario, chosen)
    trainer = build_trainer(base, config)
    before = mean_loss(trainer, store, config.evaluation.draws)
    with tempfile.TemporaryDirectory(prefix="darkroom-sweep-") as directory:
        final = federate(Federation(config, trainer, chosen, Path(directory)), (), resume=False)
    trainer.set_adapter(final)
    plan = private_plan(config)
    return Outcome(
        trial=trial,
        noise_multiplier=0.0 if plan is None else plan.noise_multiplier,
        units=sum(len(rows.units()) for rows in chosen.institutions),
        trained=trainer.spec.dimension,
        base_loss=before,
        loss=mean_loss(trainer, store, config.evaluation.draws),
        seconds=time.monotonic() - started,
    )


def mean_loss(trainer: Trainer, store: InstitutionStore, draws: int) -> float:
    """Mean over the institutions that hold pictures out of their hold-out losses, at the trainer's adapter."""
    shards = [store.holdout_of(node) for node in range(len(store.institutions))]
    return float(np.mean([holdout_loss(trainer, shard, draws) for shard in shards if shard is not None]))


def append_outcome(path: Path, outcome: Outcome) -> None:
    """Add a row, after the header where the file is new."""
    values = msgspec.structs.asdict(outcome.trial) | {name: getattr(outcome, name) for name in _RESULT}
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    if not path.exists():
        writer.writeheader()
    writer.writerow(values)
    with path.open("a", encoding="utf-8") as file:
        file.write(text.getvalue())
        sync(file)


def read_outcomes(path: Path) -> tuple[Outcome, ...]:
    """Every whole row; a last line that a crash left without its end is passed over.

    Raises:
        ConfigError: Not such a file.

    """
    if not path.exists():
        return ()
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    rows = csv.DictReader(lines)
    if lines and tuple(rows.fieldnames or ()) != COLUMNS:
        raise ConfigError(f"{path}: not a sweep of this version; move it away, or choose another --runs")
    return tuple(_outcome(row, path) for row in rows)


def _outcome(row: Mapping[str, Any], path: Path) -> Outcome:
    try:
        trial = msgspec.convert({name: row[name] for name in _TRIAL}, Trial, strict=False)
        return msgspec.convert({name: row[name] for name in _RESULT} | {"trial": trial}, Outcome, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: a row cannot be read ({error}); remove it, and its trial is run again") from error
