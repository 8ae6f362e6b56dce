"""The run configuration and the pictures that follow from a trial."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from common.config import PLAIN_WORDS, PrivacyConfig
from common.errors import ConfigError, ConfigErrors
from simulations.scenario.store import InstitutionRows, InstitutionStore

if TYPE_CHECKING:
    from common.config import RunConfig
    from simulations.scenario.scenario import Scenario
    from simulations.sweep.trial import Trial


def trial_store(trial: Trial, store: InstitutionStore) -> InstitutionStore:
    """The pictures that the trial trains on."""
    apart = len(store.train)
    institutions = tuple(
        _grouped(_kept(rows, trial), trial, first=apart * index) for index, rows in enumerate(store.institutions)
    )
    chosen = InstitutionStore(institutions, store.train, store.holdout)
    return chosen.union() if trial.place == "central" else chosen


def trial_config(trial: Trial, scenario: Scenario, store: InstitutionStore) -> RunConfig:
    """The trial's run configuration; ``store`` is the trial's own, whose units are counted.

    Raises:
        ConfigErrors: The settings do not fit each other.

    """
    config = scenario.run_config()
    sizes = [len(rows.units()) for rows in store.institutions]
    adapter = msgspec.structs.replace(
        config.adapter, train=trial.train, rank=trial.rank, alpha=float(trial.rank), seed=trial.seed
    )
    privacy, acknowledge, training, subtract = config.privacy, "", config.training, config.server.subtract_noise
    if privacy == "none":
        raise ConfigError(f'{scenario.name}: wanted a table privacy to vary, got "none"')
    if math.isinf(trial.epsilon):
        batch = round(privacy.sampling_rate * sum(sizes) / len(sizes))
        training = msgspec.structs.replace(training, batch_size=max(1, batch))
        privacy, acknowledge, subtract = "none", PLAIN_WORDS, False
    else:
        privacy = _sized(privacy, trial, sizes)
    server = msgspec.structs.replace(
        config.server,
        learning_rate=trial.learning_rate,
        minimum_institutions=len(sizes),
        institutions_per_round=None,
        subtract_noise=subtract,
    )
    made = msgspec.structs.replace(
        config,
        rounds=trial.rounds,
        seed=trial.seed,
        adapter=adapter,
        privacy=privacy,
        acknowledge=acknowledge,
        aggregation="clear",
        training=training,
        server=server,
        evaluation=msgspec.structs.replace(config.evaluation, every=trial.rounds),
    )
    if faults := tuple(made.faults()):
        raise ConfigErrors(trial.key, faults)
    return made


def _sized(privacy: PrivacyConfig, trial: Trial, sizes: list[int]) -> PrivacyConfig:
    """The trial's privacy, with the units counted that there are."""
    return msgspec.structs.replace(
        privacy,
        unit=trial.unit,
        epsilon=trial.epsilon,
        draws=trial.draws,
        colluders=trial.colluders,
        population=sum(sizes),
        largest_site=max(sizes),
    )


def _kept(rows: InstitutionRows, trial: Trial) -> InstitutionRows:
    """The institution with a random share of its pictures."""
    count = max(1, round(trial.kept * len(rows.train)))
    places = sorted(np.random.default_rng(trial.seed).permutation(len(rows.train))[:count].tolist())
    subjects = None if rows.subjects is None else tuple(rows.subjects[place] for place in places)
    return msgspec.structs.replace(rows, train=tuple(rows.train[place] for place in places), subjects=subjects)


def _grouped(rows: InstitutionRows, trial: Trial, *, first: int) -> InstitutionRows:
    """The institution with made-up subjects of neighbouring pictures, which look alike as one patient's would.

    ``first`` numbers the subjects apart from those of other institutions.
    """
    if trial.unit == "image":
        return msgspec.structs.replace(rows, subjects=None)
    if trial.grouped == 1:
        return rows
    subjects = tuple(first + place // trial.grouped for place in range(len(rows.train)))
    return msgspec.structs.replace(rows, subjects=subjects)
