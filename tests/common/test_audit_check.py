"""A log that was changed after the other side saw it is found out; a log that was not, is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from common.audit_log import COORDINATOR_HEAD, HEADS, AuditLog, check_log, witnessed_heads
from common.crypto.primitives import Identity, Secret
from common.errors import AuditLogError, ConfigError

ROOT = Path(__file__).parents[2]
SITE, COORDINATOR = Identity(Secret(b"s" * 32)), Identity(Secret(b"c" * 32))


def two_logs(folder: Path, *, rounds: int = 3) -> tuple[Path, Path]:
    """An institution's and a coordinator's log that saw each other's heads; place 4 of several."""
    ours = AuditLog(path=folder / "site.log", identity=SITE)
    theirs = AuditLog(path=folder / "coordinator.log", identity=COORDINATOR)
    for number in range(rounds):
        head = theirs.append("requested", {"round": number})
        ours.append("charged", {"round": number, COORDINATOR_HEAD: head.hex()})
        answer = ours.append("contributed", {"round": number})
        theirs.append("summed", {HEADS: f"2:{'ab' * 32},4:{answer.hex()}"})
    return ours.path, theirs.path


def test_both_sides_confirm_each_other(tmp_path: Path) -> None:
    ours, theirs = two_logs(tmp_path)
    assert "6 entries" in check_log(ours, SITE.public.hex())
    assert "3 heads" in check_log(ours, SITE.public.hex(), witness=theirs, place=4)
    assert "3 heads" in check_log(theirs, COORDINATOR.public.hex(), witness=ours)
    assert len(list(witnessed_heads(theirs, place=2))) == 3


def test_history_that_was_made_anew_is_found_out_by_what_the_other_side_holds(tmp_path: Path) -> None:
    ours, theirs = two_logs(tmp_path)
    ours.unlink()
    again = AuditLog(path=ours, identity=SITE)
    for number in range(6):
        again.append("charged", {"round": number})
    assert "6 entries" in check_log(ours, SITE.public.hex())
    with pytest.raises(AuditLogError, match="rewritten"):
        check_log(ours, SITE.public.hex(), witness=theirs, place=4)


def test_a_witness_of_somebody_else_proves_nothing(tmp_path: Path) -> None:
    ours, theirs = two_logs(tmp_path)
    with pytest.raises(AuditLogError, match="no head"):
        check_log(ours, SITE.public.hex(), witness=theirs, place=9)
    theirs.write_bytes(b'{"kind": 1}\n')
    with pytest.raises(AuditLogError, match="entry 0"):
        check_log(ours, SITE.public.hex(), witness=theirs, place=4)


@pytest.mark.parametrize("key", ["", "ab", "zz" * 32, "ab" * 33])
def test_a_key_that_is_none_is_named(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match="64 hexadecimal digits"):
        check_log(tmp_path / "a", key)


@pytest.mark.parametrize("module", ["client.cli", "server.cli"])
def test_the_command_says_what_is_wrong_and_exits_with_2(tmp_path: Path, module: str) -> None:
    ours, theirs = two_logs(tmp_path)
    path, key = (ours, SITE) if module == "client.cli" else (theirs, COORDINATOR)
    command = [sys.executable, "-m", module, "log", "verify", str(path), "--key", key.public.hex()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    good = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (good.returncode, "6 entries" in good.stdout) == (0, True), good.stderr
    lines = path.read_bytes().splitlines()
    entry = msgspec.json.decode(lines[1])
    entry["details"]["round"] = 77
    lines[1] = msgspec.json.encode(entry, order="sorted")
    path.write_bytes(b"\n".join(lines) + b"\n")
    bad = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (bad.returncode, "entry 1" in bad.stderr, "Traceback" in bad.stderr) == (2, True, False)


def test_an_empty_log_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / "audit.log").touch()
    said = check_log(tmp_path / "audit.log", "ab" * 32)
    assert "no entry yet" in said
    assert "signed" not in said
