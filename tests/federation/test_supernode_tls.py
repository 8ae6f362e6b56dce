"""A real SuperNode before a listener that is not the coordinator's: it says why, and sends it nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from common.crypto.certificates import create_node_key
from common.host.flower_commands import program
from tests.client.listeners import DAY, Certificates, certificates, listening
from tests.federation.live_federation import environment, free_port, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def supernode(address: str, authority: Path, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    create_node_key(folder / "node.key")
    command = [program("flower-supernode"), "--superlink", address, "--port", str(free_port())]
    command += ["--root-certificates", str(authority), "--auth-supernode-private-key", str(folder / "node.key")]
    with (folder / "log").open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**environment(), "FLWR_HOME": str(folder / "home")},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def own(folder: Path) -> Certificates:
    """The authority's certificate as the server's: signed by itself, and by nobody whom the site knows."""
    made = certificates(folder)
    for kind in ("crt", "key"):
        shutil.copy(folder / f"ca.{kind}", folder / f"server.{kind}")
    return made


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("expired", "certificate has expired"),
        ("another authority", "unable to get local issuer certificate"),
        ("self-signed", "self-signed certificate"),
        ("another name", "certificate is not valid for '127.0.0.1'"),
        ("plain text", "WRONG_VERSION_NUMBER"),
    ],
)
def test_a_supernode_does_not_talk_to_it(tmp_path: Path, kind: str, words: str) -> None:
    folders = {name: tmp_path / name for name in ("good", "shown", "site")}
    for folder in folders.values():
        folder.mkdir()
    good = certificates(folders["good"])
    shown = {
        "expired": lambda: certificates(folders["shown"], issued=-400 * DAY),
        "another authority": lambda: certificates(folders["shown"]),
        "self-signed": lambda: own(folders["shown"]),
        "another name": lambda: certificates(folders["shown"], host="10.0.0.1"),
        "plain text": lambda: None,
    }[kind]()
    trusted = shown if kind in {"expired", "another name"} and shown is not None else good
    asked: list[str] = []
    with (
        listening(shown, asked=asked) as address,
        supernode(address, trusted.folder / "ca.crt", folders["site"]),
    ):
        log = folders["site"] / "log"
        wait_for(lambda: words in log.read_text(), 60, f"{words} in {log}")
    assert asked == []


def test_it_does_talk_to_one_that_is_as_it_should_be(tmp_path: Path) -> None:
    """Else the refusals above would show nothing."""
    shown, asked = certificates(tmp_path), list[str]()
    with listening(shown, asked=asked) as address, supernode(address, tmp_path / "ca.crt", tmp_path):
        wait_for(lambda: bool(asked), 60, "a request")
