"""A federation whose public certificate another authority issued."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from common.crypto.certificates import create_authority, issue_server_certificate
from server.cli import app
from server.federation.directory import FederationDirectory
from tests.federation.live_federation import BUNDLE, site_request

if TYPE_CHECKING:
    from pathlib import Path

HOST = "darkroom.example"


def issued(folder: Path, *, host: str = HOST, age: int = 1) -> Path:
    now = dt.datetime.now(dt.UTC) - dt.timedelta(days=age)
    if not (folder / "ca.crt").exists():
        create_authority(folder / "ca.crt", folder / "ca.key", name="Hospital", now=now - dt.timedelta(days=500))
    issue_server_certificate(
        folder / "server.crt",
        folder / "server.key",
        authority=folder / "ca.crt",
        authority_key=folder / "ca.key",
        hosts=[host],
        now=now,
    )
    return folder


def init(root: Path, given: Path, *, key: Path | None = None) -> str:
    words = ["init", str(root), "--name", "Test", "--address", f"{HOST}:8443"]
    words += ["--ca-certificate", str(given / "ca.crt"), "--server-certificate", str(given / "server.crt")]
    done = CliRunner().invoke(app, [*words, "--server-key", str(key or given / "server.key")])
    return str(done.exception or "")


def test_given_certificates_are_what_sites_see(tmp_path: Path) -> None:
    given = issued(tmp_path / "given")
    assert init(tmp_path / "federation", given) == ""
    directory = FederationDirectory(tmp_path / "federation")
    directory.approve([site_request(tmp_path, "aspen")], bundle=BUNDLE)
    assert directory.join_file("aspen").authority == (given / "ca.crt").read_text()
    assert directory.public.certificate.read_bytes() == (given / "server.crt").read_bytes()
    assert directory.public.key.stat().st_mode & 0o777 == 0o600
    # the SuperLink on loopback has one of our own: no outside authority signs 127.0.0.1
    assert directory.file("ca.crt").read_bytes() != (given / "ca.crt").read_bytes()


@pytest.mark.parametrize(
    ("host", "age", "words"),
    [("other.example", 1, "sites connect to darkroom.example"), (HOST, 400, "valid from"), (HOST, -3, "valid from")],
)
def test_a_certificate_that_sites_would_refuse_makes_no_federation(
    tmp_path: Path, host: str, age: int, words: str
) -> None:
    assert words in init(tmp_path / "federation", issued(tmp_path / "given", host=host, age=age))
    assert not (tmp_path / "federation").exists()


def test_a_certificate_of_another_authority_makes_no_federation(tmp_path: Path) -> None:
    given, other = issued(tmp_path / "given"), issued(tmp_path / "other")
    (given / "ca.crt").write_bytes((other / "ca.crt").read_bytes())
    assert "not signed by" in init(tmp_path / "federation", given)
    assert not (tmp_path / "federation").exists()


def test_another_key_makes_no_federation(tmp_path: Path) -> None:
    given, other = issued(tmp_path / "given"), issued(tmp_path / "other")
    assert "not the key" in init(tmp_path / "federation", given, key=other / "server.key")
    assert not (tmp_path / "federation").exists()


def test_files_are_given_together_or_not_at_all(tmp_path: Path) -> None:
    words = ["init", str(tmp_path / "f"), "--name", "Test", "--address", f"{HOST}:8443", "--server-key", "x"]
    assert "together" in str(CliRunner().invoke(app, words).exception)


def test_renewal_takes_files_of_the_same_authority(tmp_path: Path) -> None:
    given = issued(tmp_path / "given")
    init(tmp_path / "federation", given)
    directory = FederationDirectory(tmp_path / "federation")
    before = directory.public.certificate.read_bytes()
    words = ["renew", "--directory", str(directory.root)]
    assert "give both new files" in str(CliRunner().invoke(app, words).exception)
    for folder in (issued(tmp_path / "other"), issued(tmp_path / "given")):
        files = ["--server-certificate", str(folder / "server.crt"), "--server-key", str(folder / "server.key")]
        done = CliRunner().invoke(app, [*words, *files])
        assert (done.exit_code == 0) is (folder == given)
        assert (directory.public.certificate.read_bytes() != before) is (folder == given)
