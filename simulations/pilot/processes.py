"""Our own command lines as processes of their own, in the environment of this Python and of this copy of the code."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from common.errors import DarkroomError
from common.host.flower_commands import ENVIRONMENT
from common.host.supervision import Command

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT: Final = Path(__file__).parents[2]
_SECONDS: Final = 600.0


def environment() -> dict[str, str]:
    """Added to this process's own: one thread each, since many processes share the machine."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    return {**ENVIRONMENT, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def client_command(name: str, root: Path, *arguments: str) -> Command:
    """``darkroom-client`` with these arguments, to be kept running; its log is in ``root/logs``."""
    return _command(name, root, "client.cli", arguments)


def server_command(name: str, root: Path, *arguments: str) -> Command:
    """``darkroom-server``, likewise."""
    return _command(name, root, "server.cli", arguments)


def _command(name: str, root: Path, module: str, arguments: Sequence[str]) -> Command:
    line = (sys.executable, "-m", module, *arguments)
    return Command(name=name, arguments=line, environment=environment(), log=root / "logs" / f"{name}.log")


def call(log: Path, *arguments: str, cwd: Path | None = None) -> str:
    """Run a program to its end, add what it said to the log, and give back its standard output.

    Raises:
        DarkroomError: It failed; its words are in the message.

    """
    done = subprocess.run(  # noqa: S603 - our own programs; no shell
        arguments,
        env={**os.environ, **environment()},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=_SECONDS,
        check=False,
    )
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(arguments)}\n{done.stdout}{done.stderr}")
    if done.returncode != 0:
        raise DarkroomError(f"{' '.join(arguments)}: code {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def client(log: Path, *arguments: str) -> str:
    """``darkroom-client`` to its end."""
    return call(log, sys.executable, "-m", "client.cli", *arguments)


def server(log: Path, *arguments: str) -> str:
    """``darkroom-server`` to its end."""
    return call(log, sys.executable, "-m", "server.cli", *arguments)


def free_ports(count: int) -> tuple[int, ...]:
    """Ports of loopback that nobody has now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = tuple(int(each.getsockname()[1]) for each in sockets)
    for each in sockets:
        each.close()
    return ports
