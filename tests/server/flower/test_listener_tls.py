"""A public listener alone: what it says of clients whose TLS does not fit."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import socket
import ssl
import threading
from typing import TYPE_CHECKING

import httpx
import pytest

from common.crypto.certificates import create_authority
from server.federation.directory import FederationConfig, FederationDirectory
from server.flower.superlink import Launch
from tests.federation.live_federation import free_port, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def listening(root: Path, *, now: dt.datetime | None = None) -> Iterator[FederationDirectory]:
    directory = FederationDirectory(root)
    config = FederationConfig(
        name="Pilot", address=f"127.0.0.1:{free_port()}", listen="127.0.0.1", superlink_port=free_port()
    )
    directory.create(config, now=now or dt.datetime.now(dt.UTC))
    server = Launch(directory, config).listener()
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        wait_for(lambda: server.started, 20, "listening")
        yield directory
    finally:
        server.should_exit = True
        thread.join(20)


def ask(directory: FederationDirectory, authority: Path) -> int:
    return httpx.get(
        f"https://{directory.config().address}/health",
        verify=ssl.create_default_context(cafile=str(authority)),
        trust_env=False,
    ).status_code


def test_a_client_that_fits_is_answered_and_nothing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with listening(tmp_path) as directory:
        assert ask(directory, directory.file("ca.crt")) == 502  # there is no SuperLink behind it
    assert "TLS" not in caplog.text


@pytest.mark.parametrize("why", ["authority", "expired", "plain"])
def test_both_ends_say_why_a_connection_is_refused(tmp_path: Path, why: str, caplog: pytest.LogCaptureFixture) -> None:
    now = dt.datetime.now(dt.UTC)
    made = now - dt.timedelta(days=4000) if why == "expired" else now
    told = {"authority": "ALERT_UNKNOWN_CA", "expired": "ALERT_CERTIFICATE_EXPIRED", "plain": "HTTP_REQUEST"}[why]
    with caplog.at_level(logging.WARNING), listening(tmp_path / "federation", now=made) as directory:
        if why == "plain":
            port = directory.config().public_port
            with socket.create_connection(("127.0.0.1", port), timeout=5) as raw:
                raw.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\n\r\n")
                with contextlib.suppress(ConnectionError):
                    assert b"HTTP/1.1 2" not in raw.recv(64)
        else:
            authority = directory.file("ca.crt")
            if why == "authority":
                authority = tmp_path / "ca.crt"
                create_authority(authority, tmp_path / "ca.key", name="other", now=now)
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                ask(directory, authority)
        wait_for(lambda: told in caplog.text, 10, "the listener says why: " + caplog.text)
