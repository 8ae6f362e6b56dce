from __future__ import annotations

import json
import logging
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from server.rounds.reports import EvaluationReport, InstitutionLoss, RoundReport, RunFinish, RunStart
from server.run.checkpoint import plain_values
from server.run.directory import RunDirectory, config_digest, read_metrics
from tests.server.toy import DIMENSION, ToySpec, toy_config

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

ADAPTER = np.zeros(DIMENSION, dtype=np.float32)


def start(round_number: int = 0, *, resumed: bool = False) -> RunStart:
    return RunStart(
        config=toy_config(5, seed=12),
        spec_digest=ToySpec().digest,
        dimension=DIMENSION,
        round=round_number,
        resumed=resumed,
        adapter_digest="sha256:start",
    )


def round_report(number: int, **changes: Any) -> RoundReport:
    values: dict[str, Any] = {
        "round": number,
        "attempt": 0,
        "participants": (0, 1, 2),
        "answered": (0, 2),
        "failures": {1: "timeout"},
        "train_loss": 0.25,
        "step_norm": 1.5,
        "decoded_mean_norm": 3.0,
        "noise_norm_expected": None,
        "mean_norm_limit": None,
        "learning_rate": 0.1,
        "seconds": 2.0,
        "seconds_waiting": 1.5,
    }
    return RoundReport(**(values | changes))


def evaluation_report(number: int) -> EvaluationReport:
    rows = (
        InstitutionLoss(node=0, institution='a "strange"\nname', loss=1.0, pictures=1),
        InstitutionLoss(node=2, institution="b", loss=3.0, pictures=3),
    )
    return EvaluationReport(round=number, losses=rows, failures={1: "refused_no_data"}, seconds=0.5, adapter=ADAPTER)


def described(path: Path) -> Any:
    return json.loads((path / "run.json").read_text())


def test_one_row_per_report(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.on_start(start())
    directory.on_evaluation(evaluation_report(0))
    directory.on_round(round_report(1))
    evaluation, round_row = read_metrics(tmp_path / "run")
    assert (evaluation["kind"], evaluation["round"], evaluation["loss"], evaluation["pictures"]) == (
        "evaluation",
        0,
        2.5,
        4,
    )
    assert evaluation["institutions"][0] == {
        "node": 0,
        "institution": 'a "strange"\nname',
        "loss": 1.0,
        "pictures": 1,
    }
    assert evaluation["failures"] == {"1": "refused_no_data"}
    assert (round_row["kind"], round_row["participants"], round_row["failures"]) == (
        "round",
        [0, 1, 2],
        {"1": "timeout"},
    )


def test_a_number_that_is_not_finite_is_null(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.on_start(start())
    directory.on_round(round_report(1, train_loss=math.nan, step_norm=math.inf))
    (row,) = read_metrics(tmp_path)
    assert (row["train_loss"], row["step_norm"]) == (None, None)


def test_a_resumed_run_has_each_round_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = RunDirectory(tmp_path)
    directory.on_start(start())
    for number in (1, 2, 3):
        directory.on_round(round_report(number))
    directory.on_evaluation(evaluation_report(3))
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_bytes(b"no row at all\n" + metrics.read_bytes() + b'{"kind": "round", "round": 2, "torn')

    again = RunDirectory(tmp_path)
    with caplog.at_level(logging.WARNING):
        again.on_start(start(2, resumed=True))
    assert [row["round"] for row in read_metrics(tmp_path)] == [1, 2]
    assert "no row of metrics" in caplog.text
    again.on_round(round_report(3))
    assert [row["round"] for row in read_metrics(tmp_path)] == [1, 2, 3]


def test_a_new_run_starts_with_empty_metrics(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "round", "round": 0}\n')
    RunDirectory(tmp_path).on_start(start())
    assert read_metrics(tmp_path) == []


def test_the_description_says_what_ran_where_and_how_often_it_started(tmp_path: Path) -> None:
    RunDirectory(tmp_path).on_start(start())
    directory = RunDirectory(tmp_path)
    directory.on_start(start(2, resumed=True))
    directory.on_finish(RunFinish(round=5, adapter=ADAPTER, adapter_digest="sha256:end", seconds=3.0))
    found = described(tmp_path)
    assert found["config"] == plain_values(start().config)
    assert found["config_digest"] == config_digest(start().config)
    assert (found["spec_digest"], found["dimension"]) == (ToySpec().digest, DIMENSION)
    assert found["seeds"] == {"run": 12, "adapter": 0, "samples": 0}
    assert [(one["round"], one["resumed"]) for one in found["starts"]] == [(0, False), (2, True)]
    assert {"torch", "diffusers", "peft", "flwr", "darkroom"} <= set(found["starts"][0]["versions"])
    assert (found["finish"]["round"], found["finish"]["adapter_digest"]) == (5, "sha256:end")


def test_a_damaged_description_is_written_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        RunDirectory(tmp_path).on_start(start(2, resumed=True))
    assert "written anew" in caplog.text
    assert len(described(tmp_path)["starts"]) == 1


def test_the_digest_follows_the_configuration() -> None:
    assert config_digest(toy_config(5)) == config_digest(toy_config(5))
    assert config_digest(toy_config(5)) != config_digest(toy_config(6))
