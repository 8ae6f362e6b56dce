from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
import torch

from client.training.trainer import build_trainer
from common.adapter.export import read_adapter_vector
from common.adapter.model import open_base
from common.crypto.randomness import REPEATABLE_WORDS
from common.errors import ConfigError
from server.run.checkpoint import load_checkpoint
from simulations.experiments.compare import compare_scenario
from simulations.experiments.run import RunPlan, run_scenario
from simulations.scenario.plain_steward import holdout_loss
from simulations.scenario.prepare import prepare_store
from simulations.scenario.scenario import load_scenario
from simulations.scenario.store import deal
from tests.simulations.worlds import write_world

if TYPE_CHECKING:
    from pathlib import Path


PRIVATE = """
[privacy]
unit = "subject"
epsilon = 1.0
delta = 1e-3
clip = 0.05
draws = 2
population = 18
largest_site = 8
sampling_rate = 0.5
"""
SERVER = "[server]\nminimum_institutions = 3\nsubtract_noise = true\naverage = 0.9"


def plan_for(scenario: Path, directory: Path) -> RunPlan:
    return RunPlan(
        scenario=load_scenario(str(scenario)),
        directory=directory,
        cache=scenario.parent / "cache",
        engine="inprocess",
        resume=False,
        threads=1,
    )


def rows_of(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_world(tmp_path_factory.mktemp("world"), rounds=2, privacy=PRIVATE, more=SERVER)


@pytest.fixture(scope="module")
def finished(world: Path) -> Path:
    directory = world.parent / "run"
    run_scenario(plan_for(world, directory), print)
    return directory


def test_a_private_run_leaves_pictures_curves_and_its_statements(finished: Path) -> None:
    names = {path.relative_to(finished).as_posix() for path in finished.rglob("*") if path.is_file()}
    assert {"attempts.json", "curves.png", "samples/round_0000.png", "samples/round_0002.png"} <= names
    privacy = json.loads((finished / "run.json").read_text())["privacy"]
    assert (privacy["planned"]["attempts"], privacy["spent"]["attempts"]) == (4, 2)
    assert privacy["spent"]["private"] is True
    assert privacy["spent"]["statements"]["settings"]["unit"] == "subject"
    assert 0 < privacy["spent"]["statements"]["server"]["epsilon"] < 1.0


def test_holdout_losses_are_measured_past_the_protocol(world: Path, finished: Path) -> None:
    evaluations = [row for row in rows_of(finished) if row["kind"] == "evaluation"]
    assert [(row["round"], row["asked"]) for row in evaluations] == [(0, False), (2, False)]
    assert all("tells these losses and counts to nobody" in row["note"] for row in evaluations)
    assert all(row["train_loss"] is None for row in rows_of(finished) if row["kind"] == "round")
    scenario = load_scenario(str(world))
    base = open_base(scenario.base_path())
    store = prepare_store(scenario, base, world.parent / "cache", print)
    trainer = build_trainer(base, scenario.run_config())
    released = load_checkpoint(finished / "checkpoints").released
    trainer.set_adapter(released)
    for row in evaluations[-1]["institutions"]:
        shard = store.holdout_of(row["node"])
        assert shard is not None
        assert row["loss"] == pytest.approx(holdout_loss(trainer, shard, 2), rel=1e-5)


def test_the_adapter_on_disk_is_the_released_average(world: Path, finished: Path) -> None:
    scenario = load_scenario(str(world))
    spec = build_trainer(open_base(scenario.base_path()), scenario.run_config()).spec
    checkpoint = load_checkpoint(finished / "checkpoints")
    np.testing.assert_array_equal(read_adapter_vector(finished / "adapter", spec), checkpoint.released)
    assert checkpoint.released.tobytes() != checkpoint.adapter.tobytes()


def test_two_private_runs_differ_and_repeatable_ones_do_not(world: Path, finished: Path, tmp_path: Path) -> None:
    run_scenario(plan_for(world, tmp_path / "again"), print)
    first, again = (load_checkpoint(path / "checkpoints").adapter for path in (finished, tmp_path / "again"))
    assert first.tobytes() != again.tobytes()
    text = world.read_text().replace('unit = "subject"', f'unit = "subject"\nrepeatable = "{REPEATABLE_WORDS}"')
    repeatable = world.with_name("repeatable.toml")
    repeatable.write_text(text)
    for name in ("a", "b"):
        run_scenario(plan_for(repeatable, tmp_path / name), print)
        privacy = json.loads((tmp_path / name / "run.json").read_text())["privacy"]
        assert (privacy["planned"]["private"], privacy["spent"]["private"]) == (False, False)
    one, other = (load_checkpoint(tmp_path / name / "checkpoints").adapter for name in ("a", "b"))
    assert one.tobytes() == other.tobytes()


def test_a_subjects_pictures_are_one_unit() -> None:
    first, second = deal(["a", "b"], [[0, 2, 3], [1, 4]], [[], []], subjects=[7, 8, 9, 7, 8])
    assert (first.units(), second.units()) == (((0, 2), (1,)), ((0, 1),))
    (images,) = deal(["a"], [[0, 1]], [[]])
    assert images.units() == ((0,), (1,))
    assert msgspec.json.decode(msgspec.json.encode(first), type=type(first)) == first


def test_a_comparison_wants_a_plain_scenario(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="without noise"):
        compare_scenario(load_scenario(str(world)), tmp_path, tmp_path, print)
