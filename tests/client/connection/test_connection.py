"""Whether a site takes part is told once it does, and a refusal that lasts ends the connection for good."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from client.connection.endings import SiteRefused
from client.connection.presence import REFUSED_SECONDS, Connection
from client.connection.supernode import own_port
from client.connection.supernode_process import CONNECTED, LOST, REFUSED, Answers, watch_answers
from client.site.layout import SiteLayout
from common.host.preflight import look_at, port_check
from tests.client.connection.test_supernode import JOIN

ROOT = Path(__file__).parents[3]


class Watched:
    """A connection whose clock, log and SuperNode a test moves."""

    def __init__(self, tmp_path: Path) -> None:
        self.now = 0.0
        self.looked_again = 0
        self.log = tmp_path / "supernode.log"
        self.log.write_text(f"{CONNECTED}\n")  # of an earlier start
        self.connection = Connection(joined=JOIN, log=self.log, look_again=self._again, clock=lambda: self.now)

    def _again(self) -> None:
        self.looked_again += 1

    def look(self, code: int | None, *, after: float = 1.0) -> list[str]:
        self.now += after
        return list(self.connection.look(code))

    def say(self, text: str) -> None:
        with self.log.open("a") as file:
            file.write(text)


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_that_a_site_takes_part_is_said_once_the_coordinator_took_its_key(watched: Watched) -> None:
    assert watched.look(None) == []
    watched.say("SuperNode\n" + CONNECTED)
    assert watched.look(None) == []
    watched.say("\nmore\n")
    (line,) = watched.look(None)
    assert "ash takes part in Test at coordinator.example:443" in line
    assert watched.look(None) == []


def test_a_site_that_is_refused_and_refused_again_ends_for_good(watched: Watched) -> None:
    (line,) = watched.look(REFUSED)
    assert "does not take this site's key" in line
    for _ in range(8):
        assert watched.look(REFUSED) == []
        assert watched.look(None, after=15) == []
    with pytest.raises(SiteRefused, match=r"revoked.*Ask the coordinator") as caught:
        watched.look(REFUSED, after=REFUSED_SECONDS)
    assert caught.value.exit_code == REFUSED


def test_a_refusal_that_passes_is_forgotten(watched: Watched) -> None:
    watched.look(REFUSED)
    watched.look(None)
    watched.say(f"{CONNECTED}\n")
    assert len(watched.look(None, after=60)) == 1
    assert "may pass" in watched.look(REFUSED, after=2 * REFUSED_SECONDS)[0]


def test_another_end_has_the_coordinator_looked_at_once(watched: Watched) -> None:
    for code in (LOST, LOST, None, 1, 1):
        assert watched.look(code) == []
    assert watched.looked_again == 2


@pytest.mark.parametrize(
    ("path", "status", "body", "refused"),
    [
        ("/v1/fleet/activate-node", 412, '{"code": 2004, "detail": "Failed to activate SuperNode."}', True),
        ("/v1/fleet/activate-node", 200, "", False),
        ("/v1/fleet/activate-node", 503, "", False),
        ("/v1/fleet/activate-node", 404, "nobody", False),
        ("/v1/fleet/pull-messages", 401, "", True),
        ("/v1/fleet/pull-messages", 500, "2004", False),
    ],
)
def test_flowers_own_requests_show_whether_the_key_is_taken(
    path: str,
    status: int,
    body: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    refused: bool,
) -> None:
    module = import_module("flwr.supernode.fleet_http_connection")
    monkeypatch.setattr(module, "NodeAuthHttpInterceptor", module.NodeAuthHttpInterceptor)  # put back afterwards
    answers = Answers()
    watch_answers(answers)
    asymmetric = import_module("flwr.supercore.primitives.asymmetric")
    signer = module.NodeAuthHttpInterceptor(*asymmetric.generate_key_pairs())
    request = httpx.Request("POST", f"https://coordinator.example{path}")
    context = SimpleNamespace(request=request)
    assert signer.intercept(context, lambda _: httpx.Response(status, text=body)).status_code == status
    assert request.headers, "signed as before"
    assert answers.refused == refused
    assert (CONNECTED in capsys.readouterr().err) == (status == 200)


def test_preflight_knows_the_sites_own_supernode(tmp_path: Path) -> None:
    layout = SiteLayout(tmp_path)
    layout.join_lock.parent.mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        check = port_check("SuperNode's port", "127.0.0.1", port, "--port", own=lambda: own_port(layout, port))
        assert not look_at([check])[0].passed, "another program's"
        layout.join_lock.write_text(str(port))
        assert not look_at([check])[0].passed, "left behind by a SuperNode that has ended"
        descriptor = os.open(layout.join_lock, os.O_RDWR)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        (found,) = look_at([check])
        assert found.passed
        assert "own SuperNode" in found.got
        assert own_port(layout, port + 1) is None
        os.close(descriptor)


@pytest.mark.parametrize("is_held", [False, True])
def test_a_pipe_in_place_of_the_supernodes_lock_keeps_nobody_waiting(tmp_path: Path, *, is_held: bool) -> None:
    """The SuperNode's user, who runs the coordinator's code, may write in that folder."""
    layout = SiteLayout(tmp_path)
    layout.join_lock.parent.mkdir(parents=True)
    os.mkfifo(layout.join_lock)
    descriptor = os.open(layout.join_lock, os.O_RDWR) if is_held else os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    look = "import sys; from pathlib import Path; from client.connection.supernode import own_port\n"
    look += "from client.site.layout import SiteLayout; print(own_port(SiteLayout(Path(sys.argv[1])), 9094))"
    words = [sys.executable, "-c", look, str(tmp_path)]
    done = subprocess.run(words, timeout=60, check=True, capture_output=True, cwd=ROOT, encoding="utf-8")
    os.close(descriptor)
    assert done.stdout == "None\n"
