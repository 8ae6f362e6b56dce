"""Checks of both sides, each made to fail, and the table and exit code that come of them."""

from __future__ import annotations

import io
import os
import re
import socket
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from common.errors import ConfigError
from common.host import preflight
from common.host.preflight import (
    Check,
    Finding,
    NotLookedAt,
    PreflightLimits,
    disk_check,
    exit_code,
    findings_table,
    look_at,
    port_check,
    private_file_check,
    version_checks,
)

if TYPE_CHECKING:
    from pathlib import Path


def finding(check: Check) -> Finding:
    return look_at([check])[0]


def version_finding(name: str, **wanted: str) -> Finding:
    return next(each for each in look_at(version_checks(**wanted)) if each.name == name)


def test_the_installed_versions_will_do() -> None:
    assert all(each.passed for each in look_at(version_checks()))


@pytest.mark.parametrize(("name", "wanted"), [("Darkroom", {"darkroom": "9.9"}), ("Flower", {"flower": "1.40.0"})])
def test_another_version_than_the_coordinators_fails(name: str, wanted: dict[str, str]) -> None:
    found = version_finding(name, **wanted)
    assert not found.passed
    assert found.wanted in wanted.values()


def test_another_minor_version_of_flower_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "version", lambda name: "1.999.0" if name == "flwr" else "0.1.0")
    assert (version_finding("Flower").passed, version_finding("Flower").got) == (False, "1.999.0")


def test_an_old_python_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "_PYTHON", (99, 0))
    assert not version_finding("Python").passed


@pytest.mark.parametrize(
    ("mode", "group", "passed"),
    [
        (0o600, False, True),
        (0o400, False, True),
        (0o640, False, False),
        (0o604, False, False),
        (0o620, False, False),
        (0o640, True, True),
        (0o660, True, False),
        (0o644, True, False),
    ],
)
def test_a_private_file_has_no_reader_too_many(tmp_path: Path, mode: int, *, passed: bool, group: bool) -> None:
    path = tmp_path / "key"
    path.touch()
    path.chmod(mode)
    assert finding(private_file_check(path, "key", group=group)).passed is passed


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_private_file_of_another_user_fails(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.touch(mode=0o600)
    os.chown(path, 12345, -1)
    found = finding(private_file_check(path, "key"))
    assert not found.passed
    assert "12345" in found.got


def test_a_missing_file_fails_and_is_named(tmp_path: Path) -> None:
    found = finding(private_file_check(tmp_path / "key", "key"))
    assert not found.passed
    assert str(tmp_path / "key") in found.got


def test_a_disk_with_too_little_room_fails(tmp_path: Path) -> None:
    assert finding(disk_check(tmp_path, PreflightLimits(free_disk_mib=0))).passed
    assert not finding(disk_check(tmp_path, PreflightLimits(free_disk_mib=2**40))).passed


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])  # noqa: S104 - the address is checked, not served
def test_a_port_that_is_taken_fails(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert not finding(port_check("port", host, port, "--port")).passed
    assert finding(port_check("port", host, port, "--port")).passed


def test_one_failure_keeps_no_other_check_from_being_looked_at() -> None:
    def fail() -> str:
        raise ConfigError("[bold]broken[/bold]")

    checks = [Check(name=name, wanted="w", remedy="r", look=look) for name, look in (("a", fail), ("b", lambda: "ok"))]
    findings = look_at(checks)
    assert [(each.name, each.passed, each.remedy) for each in findings] == [("a", False, "r"), ("b", True, "")]
    assert exit_code(findings) == 1
    assert exit_code(findings[1:]) == 0
    shown = io.StringIO()
    Console(file=shown, width=200).print(findings_table(findings))
    assert "[bold]broken[/bold]" in shown.getvalue()  # what a file says is no markup
    assert "FAILED" in shown.getvalue()


def test_what_is_to_be_copied_is_not_cut() -> None:
    path = "/srv/" + "darkroom/" * 12 + "identity.key"
    shown = io.StringIO()
    findings = [Finding(name="a", wanted="w", got="g", remedy=f"chmod 600 {path}", passed=False)]
    Console(file=shown, width=80).print(findings_table(findings))
    # the borders and the ends of lines are the table's
    joined = re.sub(r"[│┃\s]", "", shown.getvalue())
    assert "…" not in shown.getvalue()
    assert path in joined


def test_what_hangs_on_another_check_gives_no_advice_of_its_own() -> None:
    def fail() -> str:
        raise NotLookedAt("not looked at: the handshake failed")

    (found,) = look_at([Check(name="clock", wanted="w", remedy="set the clock", look=fail)])
    assert (found.got, found.remedy) == ("not looked at: the handshake failed", "mend that first")
