"""The benchmark runs a real federation and writes what it saw."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

import msgspec
import pytest

from common.audit_log import Entry
from simulations.bench.federation import Report, attempt_times, main
from simulations.bench.process_watch import ProcessWatch

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["real", "light"])
def test_rounds_complete_and_are_measured(tmp_path: Path, kind: str) -> None:
    output = tmp_path / "federation.json"
    arguments = ["--sites", "3", "--rounds", "2", "--dimension", "1000", "--output", str(output)]
    main([*arguments, "--directory", str(tmp_path / "f"), *(["--light"] if kind == "light" else [])])
    report = msgspec.json.decode(output.read_bytes(), type=Report)
    assert (report.sites, report.dimension, len(report.seconds)) == (3, 1000, 2)
    assert 0 < report.split.coordinator < report.split.round
    assert report.server_mib > 100
    if kind == "real":
        assert report.site_mib > 20
        parts = (report.split.dispatch, report.split.process_start, report.split.steward, report.split.give_back)
        assert min(parts) > 0


def test_each_attempt_is_paired_with_its_own_end(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    answered = ["opened", "requested", "summed"]
    broken_off = ["requested", "requested", "heads", "aborted", "aborted", "requested"]
    with log.open("wb") as file:
        for second, kind in enumerate(answered + broken_off):
            time = f"2026-01-01T00:00:{second:02d}+00:00"
            entry = Entry(index=0, time=time, kind=kind, details={}, previous="0" * 64, signature="0" * 128)
            file.write(msgspec.json.encode(entry) + b"\n")
    seconds = [(asked % 60, None if done is None else done % 60) for asked, done in attempt_times(log)]
    assert seconds == [(1, 2), (3, None), (4, 6), (8, None)]


def test_processes_are_seen_with_their_start_and_their_memory(tmp_path: Path) -> None:
    program = tmp_path / "bundle_gate.py"
    program.write_text("import time; time.sleep(60)")
    before = time.time()
    with ProcessWatch() as watch:
        child = subprocess.Popen([sys.executable, str(program)])
        try:
            for _ in range(600):
                if watch.share["clientapp"]:
                    break
                time.sleep(0.05)
        finally:
            child.kill()
            child.wait()
    assert watch.peak["clientapp"] > 2**20
    assert watch.share["clientapp"] > 0
    assert before - 1 < watch.seen[child.pid].started < before + 30
