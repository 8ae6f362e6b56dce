from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from common.adapter.spec import vector_digest
from common.errors import CheckpointError, ProtocolError, RoundFailed
from server.rounds.reports import Observers
from server.run import leadership
from server.run.checkpoint import load_checkpoint
from server.run.coordinator import CHECKPOINTS
from server.run.directory import RunDirectory, read_metrics
from simulations.engines.inprocess import Fault, run_inprocess
from tests.server.toy import (
    DIMENSION,
    Recorder,
    ToySpec,
    centre,
    toy_client_app,
    toy_config,
    toy_coordinator,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from common.config import RunConfig
    from server.rounds.optimizer import Vector
    from server.rounds.reports import RoundReport

ROOT = Path(__file__).parents[3]
Faults = dict[tuple[int, int], Fault]


def run(
    directory: Path,
    config: RunConfig,
    *,
    count: int = 5,
    resume: bool = False,
    faults: Callable[[int, int], Fault | None] | None = None,
    observer: Any = None,
    weighted: bool = False,
) -> Vector:
    return run_inprocess(
        lambda transport: toy_coordinator(transport, directory, config=config, observer=observer).run(resume=resume),
        toy_client_app(config.training.mode, weighted=weighted),
        count,
        faults=faults,
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_fedsgd_converges_to_the_mean_of_the_centres(tmp_path: Path, optimizer: str) -> None:
    server = {"optimizer": optimizer, "momentum": 0.5, "learning_rate": 0.3, "schedule": "cosine"}
    final = run(tmp_path, toy_config(60, server=server))
    np.testing.assert_allclose(final, np.mean([centre(i) for i in range(5)], axis=0), atol=1e-3)


def test_one_round_of_plain_fedavg_is_the_weighted_mean_of_local_models(tmp_path: Path) -> None:
    config = toy_config(
        1, training={"mode": "fedavg"}, server={"optimizer": "sgd", "momentum": 0.0, "learning_rate": 1.0}
    )
    final = run(tmp_path, config, weighted=True)
    centres = [centre(i).astype(np.float64) for i in range(5)]
    np.testing.assert_allclose(final, np.average(centres, axis=0, weights=[1, 2, 3, 4, 5]), rtol=1e-6, atol=1e-7)


def test_evaluates_before_training_then_every_so_many_rounds_and_at_the_end(tmp_path: Path) -> None:
    recorder = Recorder()
    run(tmp_path, toy_config(7, evaluation={"every": 3}), observer=recorder)
    assert [report.round for report in recorder.evaluations] == [0, 3, 6, 7]
    first = recorder.evaluations[0]
    assert [(row.node, row.institution) for row in first.losses] == [(i, f"site-{i}") for i in range(5)]
    assert first.loss == pytest.approx(np.mean([0.5 * np.sum(centre(i).astype(np.float64) ** 2) for i in range(5)]))
    assert first.pictures == 5


def test_reports_of_a_round(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    with caplog.at_level(logging.INFO, logger="server"):
        final = run(tmp_path, toy_config(2), observer=recorder)
    assert [report.round for report in recorder.rounds] == [1, 2]
    first = recorder.rounds[0]
    assert (first.participants, first.answered, dict(first.failures)) == ((0, 1, 2, 3, 4), (0, 1, 2, 3, 4), {})
    mean = np.mean([centre(i) for i in range(5)], axis=0)
    assert first.step_norm == pytest.approx(0.5 * np.linalg.norm(mean), rel=1e-5)
    assert first.decoded_mean_norm == pytest.approx(np.linalg.norm(mean), rel=1e-5)
    assert (first.noise_norm_expected, first.mean_norm_limit) == (None, None)
    assert first.train_loss == pytest.approx(recorder.evaluations[0].loss)
    assert (first.learning_rate, first.attempt) == (0.5, 0)
    assert 0 <= first.seconds_waiting <= first.seconds
    (finish,) = recorder.finishes
    assert (finish.round, finish.adapter_digest) == (2, vector_digest(final))
    lines = [record.message for record in caplog.records if record.message.startswith("round=")]
    assert len(lines) == 2
    assert lines[0].startswith("round=1 attempt=0 participants=5 answered=5 failures=0 train_loss=")


def test_a_draw_of_institutions_answers_each_round(tmp_path: Path) -> None:
    recorder = Recorder()
    run(tmp_path, toy_config(6, server={"institutions_per_round": 2}), observer=recorder)
    drawn = [report.participants for report in recorder.rounds]
    assert {len(participants) for participants in drawn} == {2}
    assert len(set(drawn)) > 1


# message 0 of each institution is the first evaluation, message 1 the first round
REASONS = {
    Fault.LOST: "unreachable",
    Fault.SILENT: "timeout",
    Fault.CRASH: "client_error",
    Fault.GARBAGE: "protocol",
}


@pytest.mark.parametrize("fault", REASONS)
def test_a_failing_institution_is_left_out_and_named(tmp_path: Path, fault: Fault) -> None:
    recorder = Recorder()
    final = run(tmp_path, toy_config(1), faults=lambda i, n: fault if (i, n) == (3, 1) else None, observer=recorder)
    assert dict(recorder.rounds[0].failures) == {3: REASONS[fault]}
    assert recorder.rounds[0].answered == (0, 1, 2, 4)
    expected = 0.5 * np.mean([centre(i) for i in (0, 1, 2, 4)], axis=0)
    np.testing.assert_allclose(final, expected, rtol=1e-5)


def test_a_doubled_reply_counts_once(tmp_path: Path) -> None:
    plain = run(tmp_path / "a", toy_config(3))
    assert run(tmp_path / "b", toy_config(3), faults=lambda _i, _n: Fault.TWICE).tobytes() == plain.tobytes()


def test_failed_evaluations_are_named_and_do_not_stop_the_run(tmp_path: Path) -> None:
    recorder = Recorder()
    run(tmp_path, toy_config(1), faults=lambda _i, n: Fault.LOST if n == 0 else None, observer=recorder)
    assert not recorder.evaluations[0].losses
    assert recorder.evaluations[0].loss is None
    assert set(recorder.evaluations[0].failures.values()) == {"unreachable"}
    assert len(recorder.rounds) == 1


def test_a_round_with_too_few_answers_is_repeated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    config = toy_config(1, server={"minimum_institutions": 4})
    with caplog.at_level(logging.WARNING):
        final = run(tmp_path, config, faults=lambda i, n: Fault.LOST if n == 1 and i < 2 else None, observer=recorder)
    assert (recorder.rounds[0].attempt, recorder.rounds[0].answered) == (1, (0, 1, 2, 3, 4))
    assert "round=1 attempt=0 given up" in caplog.text
    assert final.tobytes() == run(tmp_path / "calm", config).tobytes()


def test_a_run_that_failed_can_be_resumed(tmp_path: Path) -> None:
    config = toy_config(6, server={"minimum_institutions": 4, "attempts": 2, "optimizer": "adam"})
    with pytest.raises(RoundFailed, match="round 4"):
        run(tmp_path, config, faults=lambda i, n: Fault.LOST if i < 2 and n > 3 else None)
    assert load_checkpoint(tmp_path / CHECKPOINTS).round == 3
    resumed = run(tmp_path, config, resume=True)
    assert resumed.tobytes() == run(tmp_path / "calm", config).tobytes()


def test_a_finished_run_resumed_gives_its_result_again(tmp_path: Path) -> None:
    recorder = Recorder()
    final = run(tmp_path, toy_config(3))
    assert run(tmp_path, toy_config(3), resume=True, observer=recorder).tobytes() == final.tobytes()
    assert not recorder.rounds
    assert not recorder.evaluations


def test_more_rounds_continue_a_finished_run(tmp_path: Path) -> None:
    run(tmp_path, toy_config(3))
    longer = run(tmp_path, toy_config(5), resume=True)
    assert longer.tobytes() == run(tmp_path / "at-once", toy_config(5)).tobytes()


def test_an_old_run_is_not_overwritten_and_a_missing_one_not_resumed(tmp_path: Path) -> None:
    run(tmp_path, toy_config(1))
    with pytest.raises(CheckpointError, match="resume it"):
        run(tmp_path, toy_config(1))
    with pytest.raises(CheckpointError, match="start the run without"):
        run(tmp_path / "nowhere", toy_config(1), resume=True)
    with pytest.raises(CheckpointError, match="seed"):
        run(tmp_path, toy_config(1, seed=1), resume=True)


def test_an_initial_adapter_of_another_length_is_refused(tmp_path: Path) -> None:
    from server.run.coordinator import Coordinator  # noqa: PLC0415 - for this test alone

    with pytest.raises(ProtocolError, match=r"\(8,\)"):
        Coordinator(
            config=toy_config(),
            spec=ToySpec(),
            initial=np.zeros(DIMENSION + 1, dtype=np.float32),
            transport=None,  # type: ignore[arg-type]
            observer=Recorder(),
            directory=tmp_path,
        )


KILLED_RUN = """
import sys, time
from pathlib import Path
from client.app import make_client_app
from server.run.directory import RunDirectory
from simulations.engines.inprocess import run_inprocess
from tests.server.toy import ToyConnect, toy_config, toy_coordinator

class Slow(ToyConnect):
    def __call__(self, context):
        time.sleep(0.01)
        return super().__call__(context)

directory = Path(sys.argv[1])
config = toy_config(12, server={"optimizer": "adam", "institutions_per_round": 3}, evaluation={"every": 4})
run_inprocess(
    lambda transport: toy_coordinator(
        transport, directory, config=config, observer=RunDirectory(directory)
    ).run(resume=sys.argv[2] == "resume"),
    make_client_app(Slow()),
    5,
)
"""


def killed_run(directory: Path, how: str, *, kill_at_round: int | None = None) -> int:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_RUN, str(directory), how],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    while kill_at_round is not None and process.poll() is None:
        if any(row["round"] >= kill_at_round for row in read_metrics(directory)):
            # in the middle of the round after it: institutions take 10 ms each
            time.sleep(0.015)
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    return process.wait(timeout=60)


def test_a_run_killed_twice_ends_with_the_same_bits_and_each_row_once(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert killed_run(whole, "start") == 0
    assert killed_run(broken, "start", kill_at_round=3) == -signal.SIGKILL
    assert killed_run(broken, "resume", kill_at_round=8) == -signal.SIGKILL
    assert load_checkpoint(broken / CHECKPOINTS).round < 12
    assert killed_run(broken, "resume") == 0

    digests = [vector_digest(load_checkpoint(path / CHECKPOINTS).adapter) for path in (whole, broken)]
    assert digests[0] == digests[1]
    timed = {"seconds", "seconds_waiting"}
    rows = [
        [{key: value for key, value in row.items() if key not in timed} for row in read_metrics(path)]
        for path in (whole, broken)
    ]
    assert rows[0] == rows[1]
    assert [row["round"] for row in rows[0] if row["kind"] == "round"] == list(range(1, 13))


def test_observers_are_told_in_order(tmp_path: Path) -> None:
    one, other = Recorder(), Recorder()
    run(tmp_path, toy_config(2), observer=Observers((one, RunDirectory(tmp_path), other)))
    assert len(one.starts) == len(one.finishes) == 1
    assert len(one.rounds) == 2
    assert len(one.evaluations) == 2
    assert (one.starts, one.rounds, one.finishes) == (other.starts, other.rounds, other.finishes)
    assert [row["kind"] for row in read_metrics(tmp_path)] == ["evaluation", "round", "round", "evaluation"]


def test_a_round_costs_milliseconds_beside_training(tmp_path: Path) -> None:
    """With 100 institutions; the bound is loose, because machines that test are busy."""
    recorder = Recorder()
    run(tmp_path, toy_config(5), count=100, observer=recorder)
    assert sorted(report.seconds for report in recorder.rounds)[2] < 0.5


def test_a_paused_run_finishes_its_round_and_starts_no_other_until_it_goes_on(tmp_path: Path) -> None:
    counted: list[int] = []

    class PauseAfterTwo(Recorder):
        def on_round(self, report: RoundReport) -> None:
            counted.append(report.round)
            if report.round == 2:
                leadership.pause(tmp_path)
                threading.Timer(0.5, let_it_go).start()

    seen: list[int] = []

    def let_it_go() -> None:
        seen.extend(counted)
        leadership.resume(tmp_path)

    run(tmp_path, toy_config(4), observer=PauseAfterTwo())
    assert seen == [1, 2]
    assert counted == [1, 2, 3, 4]
