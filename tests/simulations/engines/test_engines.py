from __future__ import annotations

import importlib.util
import json
import logging
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from client.app import make_client_app
from common.errors import ConfigError
from common.wire.messages import FIELD, MESSAGE_TYPE, RECORD
from server.rounds.transport import Failure, FailureKind
from simulations.engines.inprocess import Fault, InProcessGrid, run_inprocess
from simulations.engines.ray import CheckedConnect, code_identity, run_ray
from tests.server.toy import Recorder, ToyConnect, toy_client_app, toy_config, toy_coordinator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server.rounds.transport import Transport

ROOT = Path(__file__).parents[3]


class Echo:
    """Answers with its institution and what it was asked, and remembers when."""

    def __init__(self) -> None:
        self.order: list[int] = []

    def connect(self, context: Context) -> Any:
        self.institution = int(context.node_config["partition-id"])
        return self

    def answer(self, request: bytes) -> bytes:
        self.order.append(self.institution)
        return f"{self.institution}:".encode() + request


def exchanged(transport: Transport, count: int) -> dict[int, bytes | Failure]:
    return dict(transport.exchange(dict.fromkeys(range(count), b"ask"), timeout_s=60))


def test_institutions_are_numbered_and_know_their_number() -> None:
    echo = Echo()

    def server(transport: Transport) -> None:
        assert transport.nodes(at_least=3, timeout_s=0) == (0, 1, 2)
        assert exchanged(transport, 3) == {0: b"0:ask", 1: b"1:ask", 2: b"2:ask"}

    run_inprocess(server, make_client_app(echo.connect), 3)


def test_an_institution_works_when_its_reply_is_asked_for() -> None:
    """So that a thousand replies never lie in memory at once."""
    echo = Echo()

    def server(transport: Transport) -> None:
        outcomes: Iterator[Any] = transport.exchange(dict.fromkeys(range(3), b"ask"), timeout_s=60)
        for number in range(3):
            next(outcomes)
            assert echo.order == list(range(number + 1))

    run_inprocess(server, make_client_app(echo.connect), 3)


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        (Fault.LOST, Failure(FailureKind.UNREACHABLE)),
        (Fault.CRASH, Failure(FailureKind.CLIENT_ERROR)),
        (Fault.SILENT, Failure(FailureKind.TIMEOUT)),
        (Fault.GARBAGE, b"\xc1garbage"),
        (Fault.TWICE, b"1:ask"),
        (None, b"1:ask"),
    ],
)
def test_a_fault_hits_one_message_of_one_institution(fault: Fault | None, outcome: bytes | Failure) -> None:
    def server(transport: Transport) -> list[dict[int, bytes | Failure]]:
        return [exchanged(transport, 3) for _ in range(3)]

    started = time.monotonic()
    found = run_inprocess(
        server,
        make_client_app(Echo().connect),
        3,
        faults=lambda institution, index: fault if (institution, index) == (1, 1) else None,
    )
    good = {0: b"0:ask", 1: b"1:ask", 2: b"2:ask"}
    assert found == [good, good | {1: outcome}, good]
    assert time.monotonic() - started < 10, "silence must not be waited for"


def test_flowers_own_way_to_exchange_works_too() -> None:
    grid = InProcessGrid(make_client_app(Echo().connect), 2)
    content = RecordDict({RECORD: ConfigRecord({FIELD: b"ask"})})
    sent = [
        Message(content, grid.addresses[1], MESSAGE_TYPE),
        grid.create_message(content, MESSAGE_TYPE, grid.addresses[0], "group"),
    ]
    replies = grid.send_and_receive(sent)
    assert [reply.content.config_records[RECORD][FIELD] for reply in replies] == [b"1:ask", b"0:ask"]
    assert [node.node_id for node in grid.get_nodes()] == grid.get_node_ids() == [2, 3]
    assert grid.run.run_id == 1


def test_a_thousand_institutions_are_cheap(tmp_path: Path) -> None:
    """A tenth of a second a round where it was measured; the bound is loose, because machines that test are busy."""
    recorder = Recorder()
    run_inprocess(
        lambda transport: toy_coordinator(transport, tmp_path, config=toy_config(3), observer=recorder).run(
            resume=False
        ),
        toy_client_app(),
        1000,
    )
    assert [len(report.answered) for report in recorder.rounds] == [1000] * 3
    assert sorted(report.seconds for report in recorder.rounds)[1] < 2.0


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"darkroom\[ray\]"):
        run_ray(lambda _transport: None, ToyConnect(), 2)


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the ray extra is not installed")
@pytest.mark.filterwarnings("ignore")  # of Ray's own imports
def test_a_cluster_that_is_not_there_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.environ.get("FLWR_TELEMETRY_ENABLED")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(ConfigError, match="no Ray answers there"):
            run_ray(lambda _transport: None, ToyConnect(), 2)
    assert os.environ.get("FLWR_TELEMETRY_ENABLED") == before, "the environment is left as it was"


def test_a_worker_process_with_other_code_does_not_answer(caplog: pytest.LogCaptureFixture) -> None:
    context = Context(run_id=1, node_id=2, node_config={"partition-id": 0}, state=RecordDict(), run_config={})
    with caplog.at_level(logging.INFO):
        CheckedConnect(ToyConnect(), code_identity().digest)(context)
        with pytest.raises(ConfigError, match="worker process runs code"):
            CheckedConnect(ToyConnect(), "sha256:other")(context)
    assert code_identity().file == str(ROOT / "common" / "__init__.py")


RAY_RUN = """
import json, logging, sys
from pathlib import Path
import urllib.request
from common.errors import DarkroomError
from simulations.engines.ray import run_ray
from tests.server.toy import Recorder, ToyConnect, toy_config, toy_coordinator

logging.basicConfig(level=logging.INFO)
recorder = Recorder()
called = []
urllib.request.urlopen = lambda request, **_: called.append(request.full_url)

def lead(transport):
    if sys.argv[2] == "fail":
        raise DarkroomError("the coordinator failed")
    return toy_coordinator(transport, Path(sys.argv[1]), config=toy_config(2), observer=recorder).run(resume=False)

try:
    result = run_ray(lead, ToyConnect(), 3)
except DarkroomError as error:
    print("RESULT", json.dumps({"error": str(error)}))
else:
    names = [(row.node, row.institution) for row in recorder.evaluations[0].losses]
    print("RESULT", json.dumps({"adapter": result.tobytes().hex(), "names": names, "called": called}))
"""


def ray_run(tmp_path: Path, how: str) -> tuple[dict[str, Any], str]:
    """Run on Ray from a directory that holds another project's ``common``; the result and the log."""
    foreign = tmp_path / "other-project"
    (foreign / "common").mkdir(parents=True)
    (foreign / "common" / "__init__.py").write_text("raise SystemExit('another project was imported')\n")
    (tmp_path / "run.py").write_text(RAY_RUN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "out"), how],
        cwd=foreign,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    (result,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    return json.loads(result.removeprefix("RESULT ")), done.stdout + done.stderr


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the ray extra is not installed")
def test_ray_gives_the_bits_of_the_inprocess_engine_and_proves_its_code(tmp_path: Path) -> None:
    result, log = ray_run(tmp_path, "run")
    inprocess = run_inprocess(
        lambda transport: toy_coordinator(transport, tmp_path / "inprocess", config=toy_config(2)).run(resume=False),
        toy_client_app(),
        3,
    )
    assert result["adapter"] == inprocess.tobytes().hex()
    assert result["names"] == [[i, f"site-{i}"] for i in range(3)], "institutions are numbered by partition"
    assert not result["called"], "nobody is called home"
    proof = f"runs code {code_identity().digest} from {ROOT / 'common' / '__init__.py'}"
    assert f"ray machine {os.uname().nodename} {proof}" in log
    assert any("worker process" in line and proof in line for line in log.splitlines())
    assert "DEPRECATED" not in log


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the ray extra is not installed")
def test_an_error_of_the_coordinator_ends_a_ray_run(tmp_path: Path) -> None:
    result, _ = ray_run(tmp_path, "fail")
    assert result == {"error": "the coordinator failed"}
