"""The server's memory does not grow with the vectors of a round."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KIB_PER_GIB = 1 << 20


def peak_kib(sites: int, dimension: int) -> tuple[int, int]:
    """Before the round and at its end."""
    program = [sys.executable, "-m", "tests.server.server_memory", str(sites), str(dimension)]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    before, peak = map(int, done.stdout.split())
    return before, peak


@pytest.mark.slow
def test_a_hundred_uploads_of_three_megabytes_take_less_than_a_gibibyte() -> None:
    """Measured: half of one, of which 175 MiB are Python's modules. All uploads together are 305 MiB."""
    _, peak = peak_kib(100, 800_000)
    assert peak < KIB_PER_GIB


@pytest.mark.slow
def test_ten_times_the_vector_takes_less_than_the_vectors() -> None:
    """Forty of 32 MB are 1.2 GiB: they would not fit into the growth that is allowed here."""
    before, peak = peak_kib(40, 8_000_000)
    assert peak - before < KIB_PER_GIB
