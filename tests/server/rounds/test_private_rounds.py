from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from common.crypto.randomness import REPEATABLE_WORDS
from common.errors import CheckpointError, RoundFailed, SumTooLong
from common.privacy.run_plan import private_plan
from common.wire.messages import Contribute, Refusal, decode_request, encode
from common.wire.replies import NoisedContribution, PlainContribution
from server.rounds.reports import Observers
from server.rounds.sum_norm import longest_honest_sum
from server.rounds.transport import Failure, FailureKind
from server.run.checkpoint import load_checkpoint
from server.run.coordinator import CHECKPOINTS
from server.run.directory import RunDirectory, read_metrics
from tests.server.toy import DIMENSION, PRIVACY, Recorder, centre, private_config, toy_coordinator

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from common.config import RunConfig

EXPECTED = 10.0  # sampling rate times population
SGD = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 1.0, "schedule": "constant"}


class Killed(BaseException):
    """Stands for the end of the process."""


@dataclass
class Ward:
    """Three institutions that send their gaps as integers, without noise; keeps what was asked."""

    config: RunConfig
    kill_at: int = -1
    """Request number at which the process dies, after it was sent."""
    silent: frozenset[tuple[int, int]] = frozenset()
    """Rounds and attempts that node 1 does not answer."""
    count: int = 3
    asked: list[tuple[int, int, int]] = field(default_factory=list)
    evaluations: int = 0
    poisoned: frozenset[tuple[int, int]] = frozenset()
    """Rounds and attempts to which node 2 adds twice what honest institutions give together."""

    def nodes(self, *, at_least: int, timeout_s: float) -> tuple[int, ...]:
        del at_least, timeout_s
        return tuple(range(self.count))

    def exchange(self, requests: Mapping[int, bytes], *, timeout_s: float) -> Iterator[tuple[int, bytes | Failure]]:
        del timeout_s
        for node, body in requests.items():
            request = decode_request(body)
            if not isinstance(request, Contribute):
                self.evaluations += 1
                continue
            self.asked.append((node, request.round, request.attempt))
            if len(self.asked) - 1 == self.kill_at:
                raise Killed
            silent = node == 1 and (request.round, request.attempt) in self.silent
            yield node, Failure(FailureKind.TIMEOUT) if silent else encode(self.answer(node, request))

    def answer(self, node: int, request: Contribute) -> NoisedContribution:
        plan = private_plan(self.config)
        assert plan is not None
        noise = plan.noise(DIMENSION)
        gap = np.frombuffer(request.adapter, "<f4").astype(np.float64) - centre(node)
        if node == 2 and (request.round, request.attempt) in self.poisoned:
            gap = gap + 2 * longest_honest_sum(noise) / np.sqrt(DIMENSION)
        values = np.rint(gap * noise.scale).astype(np.int64).astype("<u4" if noise.bits == 32 else "<u8")
        return NoisedContribution(round=request.round, attempt=request.attempt, values=values.tobytes())


def run(directory: Path, ward: Ward, *, resume: bool = False, observer: Any = None) -> Any:
    return toy_coordinator(ward, directory, config=ward.config, observer=observer).run(resume=resume)  # type: ignore[arg-type]


def test_a_step_divides_by_the_public_expected_batch(tmp_path: Path) -> None:
    final = run(tmp_path, Ward(private_config(1, server=SGD)))
    total = np.sum([centre(i).astype(np.float64) for i in range(3)], axis=0)
    np.testing.assert_allclose(final, total / EXPECTED, rtol=1e-5, atol=1e-6)
    for realised in (3, 9, 11):
        assert not np.allclose(final, total / realised, rtol=1e-2)


def test_nobody_is_asked_for_a_loss_and_nobodys_is_reported(tmp_path: Path) -> None:
    recorder, ward = Recorder(), Ward(private_config(2, server=SGD))
    run(tmp_path, ward, observer=recorder)
    assert ward.evaluations == 0
    assert all(report.loss is None for report in recorder.evaluations)
    assert [(report.round, report.asked, report.losses) for report in recorder.evaluations] == [
        (0, False, ()),
        (2, False, ()),
    ]
    assert [report.train_loss for report in recorder.rounds] == [None, None]


def test_exactly_as_many_institutions_are_asked_as_the_noise_is_sized_for(tmp_path: Path) -> None:
    ward = Ward(private_config(4), count=5)
    run(tmp_path, ward)
    assert set(Counter((number, attempt) for _, number, attempt in ward.asked).values()) == {3}


def test_a_round_with_a_missing_institution_is_repeated_under_a_new_number(tmp_path: Path) -> None:
    recorder, ward = Recorder(), Ward(private_config(3, server=SGD), silent=frozenset({(2, 0)}))
    final = run(tmp_path, ward, observer=recorder)
    assert [(r.round, r.attempt) for r in recorder.rounds] == [(1, 0), (2, 1), (3, 0)]
    assert final.tobytes() == run(tmp_path / "other", Ward(private_config(3, server=SGD))).tobytes()


def test_the_run_ends_when_its_attempts_are_used_up(tmp_path: Path) -> None:
    config = private_config(3, privacy={"repeats": 1}, server={"attempts": 9})
    ward = Ward(config, silent=frozenset((2, attempt) for attempt in range(9)))
    with pytest.raises(RoundFailed, match="sized for 4 attempts"):
        run(tmp_path, ward)
    assert {(number, attempt) for _, number, attempt in ward.asked} == {(1, 0), (2, 0), (2, 1), (2, 2)}
    with pytest.raises(RoundFailed, match="sized for 4 attempts"):
        run(tmp_path, Ward(config), resume=True)


@pytest.mark.parametrize("kill_at", [0, 1, 3, 5, 8])
def test_a_resumed_run_never_sends_an_attempt_again(tmp_path: Path, kill_at: int) -> None:
    config = private_config(3, server=SGD)
    dying, going_on = Ward(config, kill_at=kill_at), Ward(config)
    with pytest.raises(Killed):
        run(tmp_path, dying)
    final = run(tmp_path, going_on, resume=True)
    assert not set(dying.asked) & set(going_on.asked)
    sent = {(number, attempt) for _, number, attempt in dying.asked + going_on.asked}
    assert sum(json.loads((tmp_path / "attempts.json").read_text()).values()) == len(sent) == 4
    assert final.tobytes() == run(tmp_path / "whole", Ward(config)).tobytes()


def test_a_lost_checkpoint_does_not_bring_attempts_back(tmp_path: Path) -> None:
    config = private_config(3, server=SGD)
    first, second = Ward(config), Ward(config)
    run(tmp_path, first)
    newest = max((tmp_path / CHECKPOINTS).iterdir())
    newest.unlink()
    run(tmp_path, second, resume=True)
    assert {(number, attempt) for _, number, attempt in second.asked} == {(3, 1)}


def test_a_poisoned_sum_stops_the_run_and_leaves_the_adapter_as_it_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, recorder = private_config(3, server=SGD), Recorder()
    with caplog.at_level("INFO"), pytest.raises(SumTooLong, match="no honest steward sends") as caught:
        run(
            tmp_path, Ward(config, poisoned=frozenset({(2, 0)})), observer=Observers((RunDirectory(tmp_path), recorder))
        )
    for said in ("round 2, attempt 0 is void", "nobody can see whose", "paid for", "resume"):
        assert said in str(caught.value)
    assert load_checkpoint(tmp_path / CHECKPOINTS).round == 1
    (void,) = recorder.voids
    assert (void.round, void.attempt, void.participants) == (2, 0, (0, 1, 2))
    assert void.noise_norm_expected < void.mean_norm_limit < void.decoded_mean_norm
    (line,) = [each.message for each in caplog.records if " void: " in each.message]
    assert f"decoded_mean_norm={void.decoded_mean_norm:.6g}" in line
    assert f"mean_norm_limit={void.mean_norm_limit:.6g}" in line
    # what was asked is paid for, what was void stays written down, and the next attempt gives what was due
    final = run(tmp_path, Ward(config), resume=True, observer=RunDirectory(tmp_path))
    kinds = [(row["kind"], row["round"], row.get("attempt")) for row in read_metrics(tmp_path)]
    rounds = [("round", 1, 0), ("void", 2, 0), ("round", 2, 1), ("round", 3, 0)]
    assert kinds == [("evaluation", 0, None), *rounds, ("evaluation", 3, None)]
    assert json.loads((tmp_path / "attempts.json").read_text()) == {"1": 1, "2": 2, "3": 1}
    assert final.tobytes() == run(tmp_path / "whole", Ward(config)).tobytes()


def test_a_poisoner_that_stays_uses_up_the_attempts_and_no_more(tmp_path: Path) -> None:
    config = private_config(3, privacy={"repeats": 1}, server=SGD)
    always = frozenset((2, attempt) for attempt in range(9))
    asked = []
    for resume in (False, True, True):
        ward = Ward(config, poisoned=always)
        with pytest.raises(SumTooLong):
            run(tmp_path, ward, resume=resume)
        asked += ward.asked
    with pytest.raises(RoundFailed, match="sized for 4 attempts"):
        run(tmp_path, Ward(config, poisoned=always), resume=True)
    assert {(number, attempt) for _, number, attempt in asked} == {(1, 0), (2, 0), (2, 1), (2, 2)}


def test_each_round_tells_how_long_its_mean_is_and_may_be(tmp_path: Path) -> None:
    recorder = Recorder()
    run(tmp_path, Ward(private_config(2, server=SGD)), observer=recorder)
    total = np.sum([centre(i).astype(np.float64) for i in range(3)], axis=0)
    first = recorder.rounds[0]
    assert first.decoded_mean_norm == pytest.approx(np.linalg.norm(total) / EXPECTED, rel=1e-5)
    assert first.step_norm == pytest.approx(first.decoded_mean_norm, rel=1e-5)  # plain SGD at rate 1
    assert 0 < first.noise_norm_expected < first.mean_norm_limit


def test_plain_answers_are_no_answers_in_a_private_run(tmp_path: Path) -> None:
    class Plain(Ward):
        def answer(self, node: int, request: Contribute) -> Any:
            del node
            vector = b"\0" * 4 * DIMENSION
            return PlainContribution(
                round=request.round, attempt=request.attempt, vector=vector, weight=1.0, train_loss=0.0
            )

    with pytest.raises(RoundFailed, match="does not fit the run"):
        run(tmp_path, Plain(private_config(1, server={"attempts": 1})))


def test_rounds_may_not_change_where_the_noise_depends_on_them(tmp_path: Path) -> None:
    run(tmp_path, Ward(private_config(2)))
    with pytest.raises(CheckpointError, match="rounds: checkpoint 2, this run 3"):
        run(tmp_path, Ward(private_config(3)), resume=True)


def test_the_average_of_adapters_is_released_and_survives_a_crash(tmp_path: Path) -> None:
    config = private_config(4, server={**SGD, "average": 0.5})
    final = run(tmp_path / "whole", Ward(config))
    total = np.sum([centre(i).astype(np.float64) for i in range(3)], axis=0)
    adapter = average = np.zeros(DIMENSION)
    for number in range(1, 5):
        adapter = adapter - (3 * adapter - total) / EXPECTED
        decay = min(0.5, (1 + number) / (10 + number))
        average = adapter if number == 1 else decay * average + (1 - decay) * adapter
    np.testing.assert_allclose(final, average, rtol=1e-4, atol=1e-6)
    with pytest.raises(Killed):
        run(tmp_path / "cut", Ward(config, kill_at=7))
    assert run(tmp_path / "cut", Ward(config), resume=True).tobytes() == final.tobytes()
    checkpoint = load_checkpoint(tmp_path / "cut" / CHECKPOINTS)
    assert checkpoint.released.tobytes() == final.tobytes()
    assert checkpoint.adapter.tobytes() != final.tobytes()


def test_statements_are_in_the_runs_description(tmp_path: Path) -> None:
    ward = Ward(private_config(2), silent=frozenset({(1, 0)}))
    run(tmp_path, ward, observer=RunDirectory(tmp_path))
    described = json.loads((tmp_path / "run.json").read_text())
    planned, spent = described["privacy"]["planned"], described["privacy"]["spent"]
    assert (planned["attempts"], spent["attempts"]) == (4, 3)
    assert planned["private"] is spent["private"] is True
    assert spent["secure_aggregation"] is False
    names = ("server", "institutions", "public", "fallback")
    assert all(0 < spent["statements"][name]["epsilon"] < planned["statements"][name]["epsilon"] for name in names)
    assert planned["statements"]["server"]["epsilon"] <= PRIVACY["epsilon"]
    assert any("sees each institution's noised share alone" in line for line in spent["text"])
    assert all("losses" not in row for row in read_metrics(tmp_path))


def test_a_repeatable_run_is_marked_as_not_private(tmp_path: Path) -> None:
    config = private_config(1, privacy={"repeatable": REPEATABLE_WORDS})
    run(tmp_path, Ward(config), observer=RunDirectory(tmp_path))
    privacy = json.loads((tmp_path / "run.json").read_text())["privacy"]
    for part in (privacy["planned"], privacy["spent"]):
        assert (part["private"], part["statements"]) == (False, None)


def test_refusals_are_failures(tmp_path: Path) -> None:
    class Refusing(Ward):
        def answer(self, node: int, request: Contribute) -> Any:
            del node, request
            return Refusal(code="not_allowed")  # type: ignore[arg-type]

    with pytest.raises(RoundFailed, match=r"refused \(not_allowed\): its policy"):
        run(tmp_path, Refusing(private_config(1, server={"attempts": 1})))
