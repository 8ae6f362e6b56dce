"""A hospital's firewall lets connections out through its HTTP proxy alone."""

from __future__ import annotations

import select
import socket
import subprocess
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import pytest

from common.host.flower_commands import program
from tests.federation.live_federation import LiveFederation, environment, free_port, wait_for
from tests.federation.test_public_listener import end

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


@dataclass
class Proxy:
    """Passes CONNECT tunnels and remembers where they led."""

    tunnels: list[str] = field(default_factory=list)
    listening: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listening.shutdown(socket.SHUT_RDWR)
        self.listening.close()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.listening.getsockname()[1]}"

    def _serve(self) -> None:
        while True:
            try:
                inside, _ = self.listening.accept()
            except OSError:
                return
            threading.Thread(target=self._tunnel, args=(inside,), daemon=True).start()

    def _tunnel(self, inside: socket.socket) -> None:
        with inside:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                if not (got := inside.recv(1)):
                    return
                head += got
            method, target, _ = head.decode().split(" ", 2)
            if method != "CONNECT":
                inside.sendall(b"HTTP/1.1 405 no\r\n\r\n")
                return
            self.tunnels.append(target)
            host, _, port = target.rpartition(":")
            with socket.create_connection((host, int(port))) as outside:
                inside.sendall(b"HTTP/1.1 200 go\r\n\r\n")
                _pass_on(inside, outside)


def _pass_on(one: socket.socket, other: socket.socket) -> None:
    while True:
        for ready in select.select([one, other], [], [])[0]:
            data = ready.recv(1 << 16)
            if not data:
                return
            (other if ready is one else one).sendall(data)


def test_a_site_comes_online_through_its_proxy(federation: LiveFederation, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Proxy() as proxy, log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(program("flower-supernode"), "--superlink", federation.config.address, "--port", str(free_port())),
                *("--root-certificates", str(federation.directory.file("ca.crt"))),
                *("--auth-supernode-private-key", str(federation.sites / "aspen.node")),
            ],
            env={
                **{name: value for name, value in environment().items() if name.lower() != "no_proxy"},
                "FLWR_HOME": str(tmp_path / "home"),
                "HTTPS_PROXY": proxy.address,
            },
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait_for(lambda: "online" in federation.node_status("aspen"), 60, log.read_text())
            assert set(proxy.tunnels) == {federation.config.address}
        finally:
            end(process)
