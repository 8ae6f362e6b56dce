"""A SuperNode whose main thread ends ends as a process, too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from client.supernode_process import LOST

ROOT = Path(__file__).parents[2]
LEFT_BEHIND = """
import sys, threading, time
from client.supernode_process import run_to_the_end
def supernode():
    threading.Thread(target=time.sleep, args=(600,)).start()
    {end}
run_to_the_end(supernode)
"""


def ended(end: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LEFT_BEHIND.format(end=end)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("end", ["return", "raise OSError('cut')", "raise KeyboardInterrupt('cut')"])
def test_no_thread_keeps_a_supernode_alive_that_has_given_up(end: str) -> None:
    done = ended(end)
    assert done.returncode == LOST
    assert "to be started again" in done.stderr
    assert ("cut" in done.stderr) == ("cut" in end)


@pytest.mark.parametrize(
    ("end", "code", "words"),
    [("sys.exit(0)", 0, ""), ("sys.exit()", 0, ""), ("sys.exit(1)", 1, ""), ("sys.exit('cut')", 1, "cut\n")],
)
def test_nor_one_that_exits_as_flower_does(end: str, code: int, words: str) -> None:
    done = ended(f"print('last words'); {end}")
    assert (done.returncode, done.stderr, done.stdout) == (code, words, "last words\n")


def test_it_is_flowers_program_with_flowers_options() -> None:
    program = [sys.executable, "-P", str(ROOT / "client" / "supernode_process.py")]
    done = subprocess.run([*program, "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert "--auth-supernode-private-key" in done.stdout
