"""One federation for all tests of this folder."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from server.federation.directory import FederationConfig, FederationDirectory
from tests.federation.live_federation import (
    BUNDLE,
    LiveFederation,
    answers,
    environment,
    free_port,
    site_request,
    wait_for,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFederation]:
    root = tmp_path_factory.mktemp("federation")
    directory = FederationDirectory(root / "coordinator")
    config = FederationConfig(
        name="Pilot", address=f"127.0.0.1:{free_port()}", listen="127.0.0.1", superlink_port=free_port()
    )
    directory.create(config, now=dt.datetime.now(dt.UTC))
    requests = [site_request(root, name) for name in ("aspen", "birch", "cedar")]
    directory.approve(requests, bundle=BUNDLE)
    log = root / "up.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "server.cli", "up", str(directory.root)],
            cwd=root,
            env=environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        live = LiveFederation(directory, config, root)
        wait_for(lambda: process.poll() is not None or answers(live), 60, log.read_text())
        wait_for(lambda: log.read_text().count("registered node") >= 3, 60, "registered nodes: " + log.read_text())
        assert process.poll() is None, log.read_text()
        yield live
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
