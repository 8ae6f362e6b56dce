"""The attacks on Flower's open Control API, and wrong credentials, against a real SuperLink behind the listener."""

from __future__ import annotations

import datetime as dt
import os
import signal
import socket
import ssl
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx
import msgspec
import pytest

from client.connection import supernode_process
from client.connection.supernode_process import CONNECTED, REFUSED
from common.crypto.certificates import create_authority, create_node_key
from common.host.flower_commands import program
from tests.federation.live_federation import LiveFederation, environment, free_port, wait_for

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


def flwr_at(address: str, federation: LiveFederation, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Flower's own command line with the authority file and nothing else, as an attacker has it."""
    home.mkdir()
    table = {
        "superlink": {"target": {"address": address, "root-certificates": str(federation.directory.file("ca.crt"))}}
    }
    (home / "config.toml").write_bytes(msgspec.toml.encode(table))
    return subprocess.run(
        [program("flwr"), *arguments],
        env={**environment(), "FLWR_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_listing_runs_works_on_loopback_and_not_through_the_listener(
    federation: LiveFederation, tmp_path: Path
) -> None:
    inside = flwr_at(f"127.0.0.1:{federation.config.superlink_port}", federation, tmp_path / "a", "list", "target")
    outside = flwr_at(federation.config.address, federation, tmp_path / "b", "list", "target")
    assert inside.returncode == 0, inside.stdout + inside.stderr  # the attack is real where nothing guards
    assert outside.returncode != 0


def test_a_rogue_node_cannot_be_registered(federation: LiveFederation, tmp_path: Path) -> None:
    (tmp_path / "rogue.pub").write_text(create_node_key(tmp_path / "rogue") + "\n")
    arguments = ("supernode", "register", str(tmp_path / "rogue.pub"), "target", "--name", "rogue")
    assert flwr_at(federation.config.address, federation, tmp_path / "home", *arguments).returncode != 0


def paths_of_the_superlink() -> list[tuple[str, str]]:
    """Every route that Flower's own table of requests names."""
    from flwr.supercore.protobuf import translation  # noqa: PLC0415 - Flower's own table, for this test alone

    tables = [value for value in vars(translation).values() if isinstance(value, dict)]
    return sorted({key for table in tables for key in table if isinstance(key, tuple) and len(key) == 2})


def test_every_other_route_of_flower_is_not_found(federation: LiveFederation) -> None:
    routes = paths_of_the_superlink()
    closed = [(method, path) for method, path in routes if not path.startswith("/v1/fleet/")]
    assert len(closed) > 10
    with federation.client() as client:
        got = {(method, path): client.request(method, path, content=b"").status_code for method, path in closed}
    assert set(got.values()) == {404}


@pytest.mark.parametrize("path", ["/v1/fleet/../control/list-runs", "/v1/fleet/%2e%2e/control/list-runs", "/docs", "/"])
def test_paths_that_read_as_others_are_not_found(federation: LiveFederation, path: str) -> None:
    request = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    port = federation.config.public_port
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as raw,
        federation.trust().wrap_socket(raw, server_hostname="127.0.0.1") as secured,
    ):
        secured.sendall(request.encode())
        assert secured.recv(64).startswith(b"HTTP/1.1 404")


def test_plain_text_is_refused(federation: LiveFederation) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://{federation.config.address}/health", trust_env=False)


def test_a_client_that_trusts_another_authority_does_not_connect(federation: LiveFederation, tmp_path: Path) -> None:
    create_authority(tmp_path / "ca.crt", tmp_path / "ca.key", name="other", now=dt.datetime.now(dt.UTC))
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(
            f"https://{federation.config.address}/health",
            verify=ssl.create_default_context(cafile=str(tmp_path / "ca.crt")),
            trust_env=False,
        )


def supernode(federation: LiveFederation, key: Path, home: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            [
                *(sys.executable, "-P", str(supernode_process.__file__)),
                *("--superlink", federation.config.address, "--port", str(free_port())),
                *("--root-certificates", str(federation.directory.file("ca.crt"))),
                *("--auth-supernode-private-key", str(key)),
            ],
            env={**environment(), "FLWR_HOME": str(home)},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_an_unknown_key_is_refused(federation: LiveFederation, tmp_path: Path) -> None:
    create_node_key(tmp_path / "unknown")
    process = supernode(federation, tmp_path / "unknown", tmp_path / "home", tmp_path / "log")
    try:
        assert process.wait(60) == REFUSED
    finally:
        end(process)
    assert CONNECTED not in (tmp_path / "log").read_text()


def test_an_approved_site_comes_online_and_is_refused_once_it_is_revoked(
    federation: LiveFederation, tmp_path: Path
) -> None:
    key = federation.sites / "cedar.node"
    process = supernode(federation, key, tmp_path / "home", tmp_path / "log")
    try:
        wait_for(lambda: "online" in federation.node_status("cedar"), 40, (tmp_path / "log").read_text())
        assert f"{CONNECTED}\n" in (tmp_path / "log").read_text()
        federation.directory.revoke("cedar")
        wait_for(lambda: federation.node_status("cedar") == "gone", 40, "cedar is unregistered")
        assert process.wait(60) == REFUSED
    finally:
        end(process)
    again = supernode(federation, key, tmp_path / "home", tmp_path / "log2")
    try:
        assert again.wait(60) == REFUSED
    finally:
        end(again)
