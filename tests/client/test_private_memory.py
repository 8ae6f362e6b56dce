"""What a process says of itself after it has shut its memory."""

from __future__ import annotations

import ctypes
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from client.intake import workers

ROOT = Path(workers.__file__).parents[2]
GET_DUMPABLE = 3


def dumpable() -> tuple[int, tuple[int, int]]:
    return ctypes.CDLL(None).prctl(GET_DUMPABLE, 0, 0, 0, 0), resource.getrlimit(resource.RLIMIT_CORE)


@pytest.mark.skipif(sys.platform != "linux", reason="the call is Linux's own")
def test_no_dumps_and_nobody_attaches() -> None:
    code = (
        "from client.private_memory import keep_memory_private as keep; keep(); "
        "from tests.client.test_private_memory import dumpable; print(dumpable())"
    )
    done = subprocess.run((sys.executable, "-c", code), cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(0, (0, 0))"


@pytest.mark.skipif(sys.platform != "linux", reason="the call is Linux's own")
def test_a_decoders_process_makes_no_dump() -> None:
    code = (
        "import multiprocessing\n"
        "from client.intake import workers\n"
        "from client.intake.rules import IntakeRules\n"
        "from tests.client.test_private_memory import dumpable\n"
        "ours, theirs = multiprocessing.Pipe()\n"
        "ours.close()\n"
        "workers.serve(theirs, IntakeRules(), previews=False)\n"
        "print(dumpable())"
    )
    done = subprocess.run((sys.executable, "-c", code), cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(0, (0, 0))"
