"""Run a few processes side by side in the foreground: restart what dies, stop all on the way out.

Guarantee: on Linux no process outlives its supervisor, however that ends. A SuperLink left behind by a killed one would
keep its port, and every later start would fail. The supervisor must live in its process's main thread.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, Self

from common.command_line import end_by_sigterm
from common.host import end_with_parent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

RESTART_SECONDS: Final = 15.0
"""Flower refuses a SuperNode's key for up to a minute after a crash, so restarting at once achieves nothing."""
STOP_SECONDS: Final = 10.0
"""Between asking a process to end and ending it."""
_log = logging.getLogger(__name__)
Inherited = Literal["everything", "ordinary"]
"""Which of this process's variables a new process gets."""
_ORDINARY: Final = frozenset(
    (
        *("PATH", "HOME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "OMP_NUM_THREADS", "MKL_NUM_THREADS"),
    )
)
_ORDINARY_LOWER: Final = frozenset(
    ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "grpc_proxy", "no_grpc_proxy"),
)
"""In either case."""


def ordinary_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What any program needs of an environment; a secret has no place under these names.

    A passphrase in a variable must not reach a process that runs somebody else's code.
    """
    return {
        name: value
        for name, value in environment.items()
        if name in _ORDINARY or name.startswith("LC_") or name.lower() in _ORDINARY_LOWER
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One process to keep running."""

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    """Added to what it inherits."""
    log: Path
    inherits: Inherited = "everything"
    """Of this process's own environment: "ordinary" for whoever runs code of others."""
    insists: bool = False
    """Whether a second SIGINT has it end at once where the first has it wait for its clients, as uvicorn does."""


@dataclass(slots=True)
class _Running:
    command: Command
    process: subprocess.Popen[bytes]
    died: float | None = field(default=None)


class Supervisor:
    """A context: processes start on entry in order, and end in the opposite order on exit."""

    def __init__(
        self,
        commands: Sequence[Command],
        *,
        restart_seconds: float = RESTART_SECONDS,
        stop_seconds: float = STOP_SECONDS,
    ) -> None:
        """Nothing starts before the context is entered."""
        self._commands = tuple(commands)
        self._stop_seconds = stop_seconds
        self._restart_seconds = restart_seconds
        self._running: list[_Running] = []

    def __enter__(self) -> Self:
        try:
            for command in self._commands:
                self._running.append(_Running(command, _start(command)))
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def poll(self) -> None:
        """Restart what has been dead for long enough; call about once a second."""
        now = time.monotonic()
        for running in self._running:
            if running.process.poll() is None:
                continue
            if running.died is None:
                running.died = now
                _log.warning(
                    "%s ended with code %s; its log is %s; it is started again in %.0f s",
                    running.command.name,
                    running.process.returncode,
                    running.command.log,
                    self._restart_seconds,
                )
            elif now - running.died >= self._restart_seconds:
                running.process, running.died = _start(running.command), None

    def exit_codes(self) -> dict[str, int]:
        """By name, of what has ended and was not started again yet."""
        found = ((r.command.name, r.process.poll()) for r in self._running)
        return {name: code for name, code in found if code is not None}

    def ended(self) -> tuple[Command, ...]:
        """What should run and does not."""
        return tuple(r.command for r in self._running if r.process.poll() is not None)

    def stop(self) -> None:
        """End every process and whatever it started, last started first."""
        for running in reversed(self._running):
            _signal(running.process, signal.SIGINT)
        deadline = time.monotonic() + self._stop_seconds
        self._wait(time.monotonic() + self._stop_seconds / 2)
        for running in self._running:
            if running.command.insists and running.process.poll() is None:
                _signal(running.process, signal.SIGINT)
        self._wait(deadline)
        for running in reversed(self._running):
            if running.process.poll() is None:
                _log.warning("%s did not end in %.0f s", running.command.name, self._stop_seconds)
            # also after a clean end: a grandchild, such as a ClientApp, may still run
            _signal(running.process, signal.SIGKILL)
            running.process.wait()
        self._running.clear()

    def _wait(self, deadline: float) -> None:
        for running in reversed(self._running):
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.process.wait(max(0.0, deadline - time.monotonic()))


def end_in_order() -> None:
    """Have SIGTERM, as systemd sends it, end this process as Ctrl-C does: its supervisor stops what it started.

    SIGINT too: a shell that starts a program in the background has it ignored.
    """
    end_by_sigterm()
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _ending_with_us(arguments: tuple[str, ...]) -> tuple[str, ...]:
    """The command line by which it ends with this process; Linux alone can."""
    if sys.platform != "linux":
        return arguments
    return (sys.executable, "-I", "-S", end_with_parent.__file__, str(os.getpid()), *arguments)


def _start(command: Command) -> subprocess.Popen[bytes]:
    command.log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    inherited = ordinary_environment(os.environ) if command.inherits == "ordinary" else os.environ
    environment = {**inherited, **command.environment}
    if shutil.which(command.arguments[0], path=environment.get("PATH")) is None:
        raise FileNotFoundError(errno.ENOENT, "no such program", command.arguments[0])
    with command.log.open("ab") as log:
        # neither preexec_fn nor user nor group: only then does Python vfork, which runs no library's fork handlers
        return subprocess.Popen(  # noqa: S603 - our own programs; no shell
            _ending_with_us(command.arguments),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # a group of its own: a terminal's Ctrl-C reaches the supervisor alone, which then stops all in order
            start_new_session=True,
        )


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return  # the whole group has ended
