from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from client.training.trainer import build_trainer
from common.adapter.export import read_adapter_vector
from common.adapter.generate import SamplePlan, generate
from common.adapter.model import open_base
from common.adapter.vector import write_vector
from common.errors import CheckpointError, ConfigError, DataError, RoundFailed, SumTooLong
from server.run.coordinator import Coordinator
from simulations.experiments.run import RunPlan, run_scenario
from simulations.scenario.prepare import sites_of
from simulations.scenario.scenario import load_scenario
from tests.simulations.worlds import write_world

if TYPE_CHECKING:
    from common.adapter.model import BaseModel

ROOT = Path(__file__).parents[3]


def plan_for(scenario: Path, directory: Path, *, resume: bool = False, rounds: int | None = None) -> RunPlan:
    return RunPlan(
        scenario=load_scenario(str(scenario), rounds=rounds),
        directory=directory,
        cache=scenario.parent / "cache",
        engine="inprocess",
        resume=resume,
        threads=1,
    )


def digest_of(directory: Path) -> str:
    found: str = json.loads((directory / "run.json").read_text())["finish"]["adapter_digest"]
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def finished(world: Path) -> Path:
    directory = world.parent / "run"
    run_scenario(plan_for(world, directory), print)
    return directory


def test_a_run_leaves_everything_worth_looking_at(finished: Path) -> None:
    names = {path.relative_to(finished).as_posix() for path in finished.rglob("*") if path.is_file()}
    assert {
        "adapter/pytorch_lora_weights.safetensors",
        "metrics.jsonl",
        "curves.png",
        "run.json",
        "samples/round_0000.png",
        "samples/round_0002.png",
        "samples/round_0004.png",
    } <= names
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows if row["kind"] == "round"] == [1, 2, 3, 4]
    assert {one["institution"] for row in rows if row["kind"] == "evaluation" for one in row["institutions"]} == {
        "red",
        "green",
        "blue",
    }
    with Image.open(finished / "samples" / "round_0004.png") as sheet:
        assert sheet.height > 2 * 144


def test_training_lowers_the_holdout_loss(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "evaluation"]
    assert losses[-1] < losses[0]


def test_stock_diffusers_draws_what_our_pipeline_draws(world: Path, finished: Path) -> None:
    scenario = load_scenario(str(world))
    base: BaseModel = open_base(scenario.base_path())
    stock = StableDiffusionPipeline.from_pretrained(base.directory, safety_checker=None)
    stock.load_lora_weights(finished / "adapter")
    trainer = build_trainer(base, scenario.run_config())
    vector = read_adapter_vector(finished / "adapter", trainer.spec)
    write_vector(trainer.unet, trainer.spec, vector)
    plan = SamplePlan(prompts=("red noise",), seed=5, steps=3, guidance_scale=3.0, resolution=base.resolution)
    ours, theirs = generate(base.pipeline(trainer.unet), plan)[0], generate(stock, plan)[0]
    difference = np.abs(np.asarray(ours, dtype=int) - np.asarray(theirs, dtype=int))
    assert difference.max() <= 1  # one step of 8 bits is the rounding of a float error
    assert np.any(vector)


def test_the_same_scenario_gives_the_same_adapter(world: Path, finished: Path, tmp_path: Path) -> None:
    run_scenario(plan_for(world, tmp_path / "again"), print)
    assert digest_of(tmp_path / "again") == digest_of(finished)


def test_a_killed_run_resumes_to_the_same_adapter(world: Path, finished: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "simulations.cli", "run", str(world), "--runs", str(tmp_path), "--threads", "1"]
    command += ["--cache", str(world.parent / "cache")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    metrics = tmp_path / "world" / "metrics.jsonl"
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (metrics.exists() and '"round", "round": 2' in metrics.read_text()):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "finish" not in json.loads((tmp_path / "world" / "run.json").read_text())
    done = subprocess.run(
        [*command, "--resume"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert digest_of(tmp_path / "world") == digest_of(finished)


def test_a_run_killed_before_its_first_checkpoint_resumes(
    world: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Coordinator, "_evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            run_scenario(plan_for(world, tmp_path), print)
    run_scenario(plan_for(world, tmp_path, resume=True), print)
    assert digest_of(tmp_path) == digest_of(finished)


def test_rounds_without_a_checkpoint_are_not_thrown_away(world: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(CheckpointError, match="no checkpoint to resume from"):
        run_scenario(plan_for(world, tmp_path / "run", resume=True), print)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()


def test_more_institutions_wanted_than_there_are(tmp_path: Path) -> None:
    scenario = write_world(tmp_path, more="[server]\nminimum_institutions = 4")
    with pytest.raises(ConfigError, match=r"minimum_institutions: 4 are wanted, the scenario has 3"):
        run_scenario(plan_for(scenario, tmp_path / "run"), print)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "fault",
    [RoundFailed("node=1: timeout"), SumTooLong("node=1: too long", decoded=2.0, noise_expected=1.0, limit=1.5)],
)
def test_a_run_that_fails_names_the_sites(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: RoundFailed
) -> None:
    def fail(*_parts: object) -> None:
        raise fault

    monkeypatch.setattr("simulations.experiments.run._federate", fail)
    with pytest.raises(type(fault), match=r"node=1 \(\w+\): t"):
        run_scenario(plan_for(world, tmp_path / "run"), print)


def test_bad_pictures_of_all_sites_are_named_at_once(tmp_path: Path) -> None:
    scenario = write_world(tmp_path)
    bad = [tmp_path / "pictures" / colour / "3.png" for colour in ("red", "blue")]
    for path in bad:
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"(?s)blue/3\.png.*red/3\.png"):
        run_scenario(plan_for(scenario, tmp_path / "run"), print)


def test_sites_are_sub_folders_whatever_the_labels(tmp_path: Path) -> None:
    scenario = write_world(tmp_path)
    metadata = tmp_path / "pictures" / "metadata.jsonl"
    rows = [json.loads(line) for line in metadata.read_text().splitlines()]
    labelled = [{**row, "label": "even" if place % 2 else "odd"} for place, row in enumerate(rows)]
    metadata.write_text("\n".join(json.dumps(row) for row in labelled))
    loaded = load_scenario(str(scenario))
    sites = sites_of(loaded, open_base(loaded.base_path()), tmp_path)
    assert [site.name for site in sites] == ["blue", "green", "red"]


def test_many_virtual_institutions_share_one_base(tmp_path: Path) -> None:
    scenario = write_world(tmp_path, rounds=2, institutions='scheme = "iid"\ncount = 18')
    directory = tmp_path / "run"
    run_scenario(plan_for(scenario, directory), print)
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [len(row["answered"]) for row in rows if row["kind"] == "round"] == [18, 18]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.slow
def test_a_thousand_virtual_institutions_a_hundred_of_them_a_round(tmp_path: Path) -> None:
    scenario = write_world(
        tmp_path,
        rounds=3,
        pictures=450,
        institutions='scheme = "dirichlet"\ncount = 1000\nalpha = 0.3',
        more="[server]\ninstitutions_per_round = 100\nminimum_institutions = 90",
    )
    directory = tmp_path / "run"
    run_scenario(plan_for(scenario, directory), print)
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    rounds = [row for row in rows if row["kind"] == "round"]
    assert [len(row["answered"]) for row in rounds] == [100, 100, 100]
    assert len({node for row in rounds for node in row["answered"]}) > 200  # drawn afresh each round
