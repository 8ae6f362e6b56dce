"""A coordinator that is in order, and every check made to fail in turn, and only that one."""

from __future__ import annotations

import datetime as dt
import hashlib
import socket
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from typer.testing import CliRunner

from common.host.preflight import PreflightLimits, look_at
from server.cli import app
from server.federation import preflight
from server.federation.directory import FederationConfig, FederationDirectory
from server.federation.preflight import federation_checks
from tests.federation.live_federation import BUNDLE, free_port, site_request

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CONTENT = b"a bundle"
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


@pytest.fixture
def directory(tmp_path: Path) -> FederationDirectory:
    made = FederationDirectory(tmp_path / "federation")
    config = FederationConfig(
        name="Test",
        address=f"127.0.0.1:{free_port()}",
        listen="127.0.0.1",
        superlink_port=free_port(),
        preflight=PreflightLimits(free_disk_mib=0),
    )
    made.create(config, now=dt.datetime.now(dt.UTC))
    (made.root / "bundle.fab").write_bytes(CONTENT)
    made.approve([site_request(tmp_path, "aspen")], bundle=DIGEST)
    return made


def failures(directory: FederationDirectory, **changes: Any) -> list[str]:
    config = msgspec.structs.replace(directory.config(), **changes)
    return [each.name for each in look_at(federation_checks(directory, config)) if not each.passed]


def test_a_federation_that_is_in_order(directory: FederationDirectory) -> None:
    assert failures(directory) == []


def _reissue(days: int) -> Callable[[FederationDirectory], object]:
    return lambda made: made.issue(made.config(), now=dt.datetime.now(dt.UTC) - dt.timedelta(days=days))


def _other_bundle(made: FederationDirectory) -> None:
    made.approve([site_request(made.root.parent, "birch")], bundle=BUNDLE)


def _other_key(made: FederationDirectory) -> None:
    made.file("server.key").write_bytes(made.file("ca.key").read_bytes())


BREAKS: dict[str, tuple[Callable[[FederationDirectory], object], list[str]]] = {
    "identity": (lambda made: made.file("coordinator.key").chmod(0o644), ["coordinator's identity"]),
    "authority's key": (lambda made: made.file("ca.key").chmod(0o640), ["authority's key"]),
    "server key": (lambda made: made.file("server.key").chmod(0o604), ["server's key file"]),
    "secret": (lambda made: made.superexec_secret.chmod(0o644), ["executor's secret"]),
    "expired": (_reissue(400), ["certificate"]),
    "ends soon": (_reissue(390), ["certificate"]),
    "not yet valid": (_reissue(-5), ["certificate"]),
    "other key": (_other_key, ["certificate's key"]),
    "no certificate": (lambda made: made.file("server.crt").unlink(), ["certificate", "certificate's key"]),
    "roster": (lambda made: made.roster_file.write_text("="), ["roster", "bundle"]),
    "no bundle": (lambda made: (made.root / "bundle.fab").unlink(), ["bundle"]),
    "other bundle": (_other_bundle, ["bundle"]),
    "damaged join file": (lambda made: (made.root / "join/aspen.join").write_text("{}"), ["bundle"]),
}


@pytest.mark.parametrize("what", BREAKS)
def test_what_is_broken_fails_and_nothing_else(directory: FederationDirectory, what: str) -> None:
    break_it, expected = BREAKS[what]
    break_it(directory)
    assert failures(directory) == expected


def test_a_certificate_of_another_federation(directory: FederationDirectory, tmp_path: Path) -> None:
    other = FederationDirectory(tmp_path / "other")
    other.create(directory.config(), now=dt.datetime.now(dt.UTC))
    for name in ("server.crt", "server.key"):
        directory.file(name).write_bytes(other.file(name).read_bytes())
    assert failures(directory) == ["certificate"]


def test_an_address_that_the_certificate_does_not_name_or_that_nobody_knows(directory: FederationDirectory) -> None:
    assert failures(directory, address=f"127.0.0.2:{free_port()}") == ["certificate"]
    assert failures(directory, address=f"nowhere.invalid:{free_port()}") == ["certificate", "address"]


@pytest.mark.parametrize(("setting", "name"), [("public_port", "public port"), ("superlink_port", "SuperLink's port")])
def test_a_port_that_is_taken(directory: FederationDirectory, setting: str, name: str) -> None:
    with socket.create_server(("127.0.0.1", getattr(directory.config(), setting))):
        assert failures(directory) == [name]


def test_the_public_port_is_nginxs_where_nginx_has_it(directory: FederationDirectory) -> None:
    with socket.create_server(("127.0.0.1", directory.config().public_port)):
        assert failures(directory, front="nginx") == []


def test_a_full_disk(directory: FederationDirectory) -> None:
    assert failures(directory, preflight=PreflightLimits(free_disk_mib=2**40)) == ["disk"]


def test_programs_that_are_missing(directory: FederationDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "program", lambda name: f"/nowhere/{name}")
    assert failures(directory) == ["programs"]


def test_the_command_says_it_with_its_exit_code(directory: FederationDirectory) -> None:
    words = ["preflight", str(directory.config_file)]
    assert CliRunner().invoke(app, words).exit_code == 0
    directory.file("ca.key").chmod(0o644)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1
    assert "FAILED" in done.output
