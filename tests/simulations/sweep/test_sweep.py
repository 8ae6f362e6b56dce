"""Sweeps: which trainings, from which settings, and that a stopped one goes on."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from common.config import PrivacyConfig
from common.errors import ConfigError
from common.privacy.run_plan import private_plan
from simulations.experiments.run import open_scenario_base
from simulations.scenario.prepare import prepare_store
from simulations.scenario.scenario import load_scenario
from simulations.sweep.settings import trial_config, trial_store
from simulations.sweep.study import StudyPlan, planned, run_study, summary
from simulations.sweep.trial import Axis, scenario_trial, trials
from simulations.sweep.workers import Outcome, append_outcome, read_outcomes, run_trial
from tests.simulations.worlds import write_world

if TYPE_CHECKING:
    from common.adapter.model import BaseModel
    from simulations.scenario.scenario import Scenario
    from simulations.scenario.store import InstitutionStore
    from simulations.sweep.trial import Trial

ROOT = Path(__file__).parents[3]
PRIVATE = """
[privacy]
unit = "image"
epsilon = 8.0
delta = 1e-3
clip = 0.5
draws = 2
population = 18
sampling_rate = 0.5
"""
SERVER = "[server]\nminimum_institutions = 3\nsubtract_noise = true\n"


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    root = tmp_path_factory.mktemp("sweep")
    return load_scenario(str(write_world(root, rounds=2, more=SERVER + PRIVATE, privacy="")))


@pytest.fixture(scope="module")
def world(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> tuple[BaseModel, InstitutionStore]:
    base, _ = open_scenario_base(scenario)
    return base, prepare_store(scenario, base, tmp_path_factory.mktemp("cache"), lambda _: None)


def outcome(trial: Trial, *, loss: float = 0.5, noise: float = 1.0) -> Outcome:
    return Outcome(trial=trial, noise_multiplier=noise, units=9, trained=5, base_loss=1.0, loss=loss, seconds=1.0)


def test_one_training_answers_every_axis_that_asks_for_it(scenario: Scenario, tmp_path: Path) -> None:
    plan = StudyPlan(
        scenario=scenario, axes=(Axis.EPSILON, Axis.DRAWS), seeds=(0, 1), directory=tmp_path, cache=tmp_path, workers=1
    )
    wanted, todo = planned(plan)
    assert len(wanted) == 2 * (5 + 3)
    assert len(todo) == 2 * (5 + 3 - 1)  # ε = 8 with K = 2 are the scenario's own settings
    assert len({trial.key for trial in todo}) == len(todo)


def test_what_is_in_the_table_is_not_run_again(scenario: Scenario, tmp_path: Path) -> None:
    plan = StudyPlan(scenario=scenario, axes=(Axis.EPSILON,), seeds=(0,), directory=tmp_path, cache=tmp_path, workers=1)
    for trial in planned(plan)[1]:
        append_outcome(plan.table, outcome(trial, noise=0.0 if math.isinf(trial.epsilon) else 1.0))
    assert planned(plan)[1] == ()
    with plan.table.open("a") as file:
        file.write("epsilon,8.0,image,1")  # torn by a crash
    assert len(read_outcomes(plan.table)) == 5
    text = run_study(plan)
    assert "100 %" in text
    assert (tmp_path / "sweep.png").exists()


def test_another_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sweep.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="not a sweep"):
        read_outcomes(tmp_path / "sweep.csv")


def test_without_privacy_there_is_nothing_to_vary(scenario: Scenario) -> None:
    with pytest.raises(ConfigError, match="table privacy"):
        trials(msgspec.structs.replace(scenario, privacy="none"), [Axis.EPSILON], seeds=[0])


def test_units_are_counted_where_they_are_made(scenario: Scenario, world: tuple[BaseModel, InstitutionStore]) -> None:
    store = world[1]
    pictures = [len(rows.train) for rows in store.institutions]
    grouped = msgspec.structs.replace(scenario_trial(scenario, axis="unit", seed=0), unit="subject", grouped=4)
    chosen = trial_store(grouped, store)
    privacy = trial_config(grouped, scenario, chosen).privacy
    assert isinstance(privacy, PrivacyConfig)
    assert privacy.population == sum(math.ceil(count / 4) for count in pictures)
    half = msgspec.structs.replace(scenario_trial(scenario, axis="pictures", seed=0), kept=0.5)
    privacy = trial_config(half, scenario, trial_store(half, store)).privacy
    assert isinstance(privacy, PrivacyConfig)
    assert privacy.population == sum(round(count / 2) for count in pictures)


def test_made_up_subjects_of_the_union_stay_apart(
    scenario: Scenario, world: tuple[BaseModel, InstitutionStore]
) -> None:
    trial = msgspec.structs.replace(scenario_trial(scenario, axis="unit", seed=0), unit="subject", grouped=4)
    apart = trial_store(trial, world[1])
    (union,) = trial_store(msgspec.structs.replace(trial, place="central"), world[1]).institutions
    assert len(union.units()) == sum(len(rows.units()) for rows in apart.institutions)


def test_federated_and_central_noise_have_one_multiplier(
    scenario: Scenario, world: tuple[BaseModel, InstitutionStore]
) -> None:
    totals, clips = [], []
    for trial in trials(scenario, [Axis.PLACE], seeds=[0]):
        plan = private_plan(trial_config(trial, scenario, trial_store(trial, world[1])))
        assert plan is not None
        noise = plan.noise(1000)
        totals.append(noise.total_deviation / plan.config.expected_batch)
        clips.append(plan.config.clip)
    # all but what three caps, three roundings and three overflow chances come to
    assert totals[0] == pytest.approx(totals[1], rel=2e-3)
    assert clips[0] == clips[1]


def test_a_trial_trains_and_is_measured_past_the_protocol(
    scenario: Scenario, world: tuple[BaseModel, InstitutionStore]
) -> None:
    trial = msgspec.structs.replace(scenario_trial(scenario, axis="epsilon", seed=3), train="B", rank=2)
    made = run_trial(trial, scenario, *world)
    assert made.noise_multiplier > 0
    assert made.loss != made.base_loss
    assert made.units == sum(len(rows.train) for rows in world[1].institutions)
    assert "No training without privacy" in summary([made])


def test_workers_end_with_a_sweep_that_is_killed(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    code = (
        "import pathlib, sys, time\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "import multiprocessing\n"
        "from simulations.sweep.workers import _end_with_parent\n"
        "def work(path):\n"
        "    pathlib.Path(path).write_text(str(__import__('os').getpid()))\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    pool = ProcessPoolExecutor(1, mp_context=context, initializer=_end_with_parent)\n"
        "    pool.submit(work, sys.argv[1]).result()\n"
    )
    script = tmp_path / "sweeping.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, str(script), str(ready)], env=environment)
    while not (ready.exists() and ready.read_text()):
        assert parent.poll() is None
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    worker = Path("/proc") / ready.read_text()
    deadline = time.monotonic() + 60
    while worker.exists() and "Z" not in (worker / "stat").read_text().split()[2] and time.monotonic() < deadline:
        time.sleep(0.1)
    assert time.monotonic() < deadline
