from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from common.host.supervision import Command, Supervisor, ordinary_environment

if TYPE_CHECKING:
    from pathlib import Path

    from common.host.supervision import Inherited

SLEEP = (sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)")
PARENT = """
import sys, time
from pathlib import Path
from common.host.supervision import Command, Supervisor
line = (sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)")
command = Command(name="child", arguments=line, environment={}, log=Path(sys.argv[1]))
with Supervisor([command]) as supervisor:
    while sys.argv[2] == "once it runs" and "up" not in command.log.read_text():
        time.sleep(0.02)
    print(supervisor._running[0].process.pid, flush=True)
    time.sleep(600)
"""

FORK_THAT_HANGS = """
import ctypes, sys, time
from pathlib import Path
from common.host.supervision import Command, Supervisor
libc = ctypes.CDLL(None)
libc.__register_atfork.argtypes = [ctypes.c_void_p] * 4
assert libc.__register_atfork(None, None, ctypes.cast(libc.pause, ctypes.c_void_p), None) == 0
line = (sys.executable, "-c", "print('started', flush=True)")
log = Path(sys.argv[1])
with Supervisor([Command(name="child", arguments=line, environment={}, log=log)]):
    while "started" not in log.read_text():
        time.sleep(0.02)
"""
"""A library's handler waits in the new process for what does not come, as gRPC's can; in C, as gRPC's is."""

STUBBORN = """
import signal, sys, time
times = []
def interrupted(*_):
    times.append(0)
    print("interrupted", flush=True)
    if len(times) == 2:
        sys.exit(0)
signal.signal(signal.SIGINT, interrupted)
print("up", flush=True)
while True:
    time.sleep(0.05)
"""
"""Ends at the second SIGINT, as uvicorn does while a client keeps a connection open."""


def command(tmp_path: Path) -> Command:
    return Command(name="sleeper", arguments=SLEEP, environment={}, log=tmp_path / "log")


def is_gone(pid: int) -> bool:
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")
@pytest.mark.parametrize("when", ["at once", "once it runs"])
def test_no_process_outlives_a_supervisor_that_is_killed(tmp_path: Path, when: str) -> None:
    line = [sys.executable, "-c", PARENT, str(tmp_path / "log"), when]
    parent = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    os.kill(child, 0)
    parent.kill()
    parent.wait(30)
    parent.stdout.close()
    assert is_gone(child)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's own name")
def test_no_library_of_the_supervisors_can_hold_a_new_process_up(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", FORK_THAT_HANGS, str(tmp_path / "log")], timeout=60, check=True)


def test_a_program_that_is_not_there_is_an_error_at_once(tmp_path: Path) -> None:
    missing = Command(name="missing", arguments=("no-such-program",), environment={}, log=tmp_path / "log")
    with pytest.raises(FileNotFoundError, match="no such program: 'no-such-program'"), Supervisor([missing]):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is started in another way")
def test_a_program_whose_interpreter_is_gone_is_named_in_its_log(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o700)
    broken = Command(name="broken", arguments=(str(script),), environment={}, log=tmp_path / "log")
    with Supervisor([broken]) as supervisor:
        while not supervisor.ended():
            time.sleep(0.02)
    assert broken.log.read_text() == f"{script}: cannot be started: No such file or directory\n"


def test_the_program_gets_the_signals_that_a_program_expects(tmp_path: Path) -> None:
    """A pipe whose reader has gone ends ``yes`` at once; where SIGPIPE is ignored it complains first."""
    line = ("sh", "-c", "yes | head -n 1")
    piped = Command(name="piped", arguments=line, environment={}, log=tmp_path / "log")
    with Supervisor([piped]) as supervisor:
        while not supervisor.ended():
            time.sleep(0.02)
    assert piped.log.read_text() == "y\n"


def test_what_dies_is_started_again_and_all_ends_with_the_context(tmp_path: Path) -> None:
    with Supervisor([command(tmp_path)], restart_seconds=0.1, stop_seconds=5) as supervisor:
        first = supervisor._running[0].process.pid
        os.kill(first, signal.SIGKILL)
        for _ in range(200):
            supervisor.poll()
            if supervisor._running[0].process.pid != first:
                break
            time.sleep(0.05)
        second = supervisor._running[0].process.pid
        assert second != first
    assert is_gone(second)


@pytest.mark.parametrize("insists", [True, False])
def test_only_who_wants_to_be_asked_twice_is_asked_twice(tmp_path: Path, *, insists: bool) -> None:
    log = tmp_path / "log"
    line = (sys.executable, "-c", STUBBORN)
    stubborn = Command(name="stubborn", arguments=line, environment={}, log=log, insists=insists)
    with Supervisor([stubborn], stop_seconds=2) as supervisor:
        while "up" not in log.read_text():
            time.sleep(0.05)
        pid = supervisor._running[0].process.pid
    assert is_gone(pid)
    assert log.read_text().count("interrupted") == (2 if insists else 1)


@pytest.mark.parametrize("inherits", ["everything", "ordinary"])
def test_who_runs_code_of_others_inherits_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inherits: Inherited
) -> None:
    monkeypatch.setenv("VAULT_WORDS", "seven random words")
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    line = (sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)), flush=True)")
    log = tmp_path / "log"
    shown = Command(name="shown", arguments=line, environment={"GIVEN": "1"}, log=log, inherits=inherits)
    with Supervisor([shown], stop_seconds=5):
        while "\n" not in log.read_text():
            time.sleep(0.02)
    found = json.loads(log.read_text())
    assert found["GIVEN"] == "1"
    assert found["https_proxy"] == "http://proxy:3128"
    assert found["PATH"] == os.environ["PATH"]
    assert ("VAULT_WORDS" in found) == (inherits == "everything")


def test_of_an_environment_what_any_program_needs_is_ordinary() -> None:
    kept = dict.fromkeys(("HOME", "LC_ALL", "TZ", "NO_PROXY", "no_proxy", "ALL_PROXY", "SSL_CERT_FILE"), "x")
    left = dict.fromkeys(("DARKROOM_PASSPHRASE", "path", "AWS_SECRET_ACCESS_KEY", "PROXY", "LD_PRELOAD"), "x")
    assert ordinary_environment(kept | left) == kept
