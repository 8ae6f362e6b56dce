"""Certificates and node keys, checked with OpenSSL and OpenSSH, which Flower's other end could be."""

from __future__ import annotations

import datetime as dt
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from common.crypto.certificates import (
    check_server_certificate,
    create_authority,
    create_node_key,
    issue_server_certificate,
    read_node_key,
)
from common.errors import ProvisioningError

if TYPE_CHECKING:
    from pathlib import Path

NOW = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)


def made(folder: Path, *, now: dt.datetime = NOW) -> Path:
    create_authority(folder / "ca.crt", folder / "ca.key", name="Pilot", now=now)
    issue(folder, now=now)
    return folder


def issue(folder: Path, *, now: dt.datetime = NOW) -> None:
    issue_server_certificate(
        folder / "server.crt",
        folder / "server.key",
        authority=folder / "ca.crt",
        authority_key=folder / "ca.key",
        hosts=["coordinator.example", "127.0.0.1"],
        now=now,
    )


def check(folder: Path, *, authority: Path | None = None, now: dt.datetime = NOW) -> None:
    served = (folder / "server.crt").read_bytes()
    issuer = ((authority or folder) / "ca.crt").read_bytes()
    check_server_certificate(served, authority=issuer, hosts=["coordinator.example", "127.0.0.1"], now=now)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest.mark.parametrize(("option", "host"), [("-verify_hostname", "coordinator.example"), ("-verify_ip", "127.0.0.1")])
def test_openssl_accepts_the_chain_for_its_hosts(tmp_path: Path, option: str, host: str) -> None:
    made(tmp_path, now=dt.datetime.now(dt.UTC))
    command = [
        "openssl",
        "verify",
        "-x509_strict",
        "-purpose",
        "sslserver",
        "-CAfile",
        str(tmp_path / "ca.crt"),
        option,
    ]
    assert subprocess.run([*command, host, str(tmp_path / "server.crt")], check=False).returncode == 0
    assert subprocess.run([*command, "10.0.0.1", str(tmp_path / "server.crt")], check=False).returncode != 0


@pytest.mark.parametrize("days", [-1, 398])
def test_a_certificate_out_of_its_time_is_refused(tmp_path: Path, days: int) -> None:
    made(tmp_path)
    check(tmp_path)
    with pytest.raises(ProvisioningError, match="check the clock"):
        check(tmp_path, now=NOW + dt.timedelta(days=days))


def test_a_certificate_of_another_authority_is_refused(tmp_path: Path) -> None:
    ours, theirs = made(tmp_path / "a"), made(tmp_path / "b")
    with pytest.raises(ProvisioningError, match="not signed by"):
        check(ours, authority=theirs)


def test_renewal_keeps_the_key(tmp_path: Path) -> None:
    made(tmp_path)
    key, certificate = (tmp_path / "server.key").read_bytes(), (tmp_path / "server.crt").read_bytes()
    issue(tmp_path, now=NOW + dt.timedelta(days=300))
    assert (tmp_path / "server.key").read_bytes() == key
    assert (tmp_path / "server.crt").read_bytes() != certificate
    check(tmp_path, now=NOW + dt.timedelta(days=600))


def test_keys_are_their_owners_alone_and_never_overwritten(tmp_path: Path) -> None:
    made(tmp_path)
    create_node_key(tmp_path / "node")
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("ca.key", "server.key", "node")} == {0o600}
    with pytest.raises(ProvisioningError, match="exists"):
        create_node_key(tmp_path / "node")
    with pytest.raises(ProvisioningError, match="exists"):
        create_authority(tmp_path / "ca.crt", tmp_path / "ca.key", name="Pilot", now=NOW)


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")
def test_ssh_keygen_reads_the_node_key(tmp_path: Path) -> None:
    line = create_node_key(tmp_path / "node")
    command = ["ssh-keygen", "-y", "-f", str(tmp_path / "node")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[:2] == line.split()
    assert read_node_key(tmp_path / "node") == line
