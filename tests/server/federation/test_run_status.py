"""What an operator reads of a run, and what start, pause, resume and stop say where there is nothing to do."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from common.durable_files import write_atomically
from server.cli import app
from server.federation.run_status import RunState, run_state, run_status
from server.flower.superlink import Launch
from server.run import leadership
from tests.server.federation.test_run_files import config, files, spec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from server.federation.run_files import RunFiles


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFiles:
    """A signed run that was started once and whose process has ended; Flower knows it as 7."""
    made = files(tmp_path)
    made.draft(config(), spec())
    made.sign()
    write_atomically(made.flower_file, b"7")
    write_atomically(made.directory / "metrics.jsonl", b"")
    listed = {"runs": [{"run-id": "7", "status": "finished:stopped"}]}
    monkeypatch.setattr(Launch, "flwr", lambda *_: json.dumps(listed))
    return made


def finish(run: RunFiles) -> None:
    write_atomically(run.directory / "run.json", json.dumps({"finish": {"round": config().rounds}}).encode())


def said(run: RunFiles, *words: str) -> tuple[str, str]:
    """What was printed, and the error."""
    done = CliRunner().invoke(app, ["run", *words, run.name, "--directory", str(run.federation.root)])
    return done.stdout, "" if done.exception is None else str(done.exception)


@contextlib.contextmanager
def led(run: RunFiles) -> Iterator[None]:
    leadership.want(run.directory)
    with leadership.leading(run.directory):
        yield


@pytest.mark.parametrize("verb", ["start", "pause", "resume"])
def test_a_finished_run_is_neither_started_nor_paused(run: RunFiles, verb: str) -> None:
    finish(run)
    printed, error = said(run, verb)
    assert not printed
    assert "is finished, all 2 rounds" in error
    assert "release make" in error
    assert not leadership.is_wanted(run.directory)
    assert not leadership.is_paused(run.directory)


def test_a_finished_run_that_is_stopped_is_no_failure(run: RunFiles) -> None:
    finish(run)
    printed, error = said(run, "stop")
    assert "is finished, all 2 rounds" in printed
    assert not error


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_what_does_not_run_is_not_paused(run: RunFiles, verb: str) -> None:
    assert "does not run, so there is nothing to" in said(run, verb)[1]
    assert not leadership.is_paused(run.directory)


def test_stopping_twice_says_that_nothing_was_left_to_stop(run: RunFiles) -> None:
    leadership.want(run.directory)
    assert "stopped trial" in said(run, "stop")[0]
    assert "nothing was left to stop" in said(run, "stop")[0]


def test_resuming_what_is_not_paused_says_so(run: RunFiles) -> None:
    with led(run):
        assert "is not paused" in said(run, "resume")[0]
        assert "waits before its next round" in said(run, "pause")[0]
        assert run_state(run) is RunState.PAUSED
        assert said(run, "resume")[0] == "trial goes on\n"
        assert run_state(run) is RunState.RUNNING


def test_the_state_follows_the_process(run: RunFiles) -> None:
    assert run_state(run) is RunState.ENDED
    leadership.want(run.directory)
    assert run_state(run) is RunState.STARTING
    with led(run):
        assert run_state(run) is RunState.RUNNING
    assert run_state(run) is RunState.ENDED
    finish(run)
    assert run_state(run) is RunState.FINISHED
    assert next(run_status(run).lines()) == "trial: round 0 of 2, finished"


def test_what_an_ended_process_waited_for_is_not_shown(run: RunFiles) -> None:
    with led(run):
        leadership.note(run.directory, "waiting", "node=5: did not answer in time")
        assert "waiting since" in "\n".join(run_status(run).lines())
    assert "waiting since" not in "\n".join(run_status(run).lines())
    leadership.note(run.directory, "stopped", "attempts are used up")
    assert "attempts are used up" in "\n".join(run_status(run).lines())


def test_the_status_names_who_is_missing_and_why(run: RunFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [member.name for member in run.signed()[0].roster]
    for number, name in enumerate(names):
        write_atomically(run.federation.root / "nodes" / f"{name}.id", str(number).encode())
    nodes = {"nodes": [{"node-id": str(n), "status": "offline" if n == 1 else "online"} for n in range(len(names))]}
    runs = {"runs": [{"run-id": "7", "status": "running"}]}
    monkeypatch.setattr(Launch, "flwr", lambda _, verb, *__: json.dumps(nodes if verb == "supernode" else runs))
    with led(run):
        leadership.note(run.directory, "waiting", "2 institutions take part, 3 are needed (node=0: refused)")
        shown = said(run, "status")[0]
    assert f"node=0 ({names[0]}): refused" in shown
    assert f"not connected: {names[1]}\n" in shown


def test_a_wrong_directory_is_told_from_a_manifest_that_is_not_signed(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["run", "status", "trial", "--directory", str(tmp_path / "elsewhere")])
    assert "no federation is there; give its folder with --directory" in str(done.exception)


def test_flowers_own_refusal_is_shown_as_such(run: RunFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    leadership.want(run.directory)
    told = {"success": False, "error-message": "Connection to the SuperLink\n is unavailable."}
    monkeypatch.setattr(Launch, "flwr", lambda *_: json.dumps(told))
    assert "Flower could not do it: Connection to the SuperLink is unavailable." in said(run, "stop")[1]
