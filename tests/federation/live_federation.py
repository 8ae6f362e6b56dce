"""A real federation on loopback: SuperLink, executor and public listener as processes, on free ports."""

from __future__ import annotations

import datetime as dt
import os
import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from common.crypto.certificates import create_node_key
from common.crypto.primitives import Identity
from common.host.flower_commands import ENVIRONMENT
from common.provisioning import SiteRequest, create_request
from server.federation.directory import FederationConfig, FederationDirectory
from server.flower.superlink import Launch

ROOT = Path(__file__).parents[2]
BUNDLE = "sha256:" + "ab" * 32


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def site_request(folder: Path, name: str, *, identity: Identity | None = None) -> SiteRequest:
    line = create_node_key(folder / f"{name}.node")
    identity = identity or Identity.generate()
    return create_request(name=name, contact=f"it@{name}.example", identity=identity, node_key=line)


def federation_on_disk(root: Path) -> FederationDirectory:
    directory = FederationDirectory(root)
    directory.create(FederationConfig(name="Pilot", address="127.0.0.1:8443"), now=dt.datetime.now(dt.UTC))
    return directory


@dataclass(frozen=True)
class LiveFederation:
    directory: FederationDirectory
    config: FederationConfig
    sites: Path

    def node_status(self, name: str) -> str:
        launch = Launch(self.directory, self.config)
        return next((node.status for node in launch.nodes() if node.node_id == launch.node_id(name)), "gone")

    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.directory.file("ca.crt")))

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=f"https://{self.config.address}", verify=self.trust(), trust_env=False)


def environment() -> dict[str, str]:
    return {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)}


def wait_for(condition: object, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.2)


def answers(live: LiveFederation) -> bool:
    try:
        with live.client() as client:
            return client.get("/health").is_success
    except httpx.TransportError:
        return False
