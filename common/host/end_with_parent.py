"""Becomes another program, which the kernel ends when the process that started this one ends.

::

    python -I -S end_with_parent.py PARENT_PID PROGRAM [ARGUMENT…]

A program of its own, run by its path and with the standard library alone. A supervisor could ask the kernel for the
same between fork and exec, but then Python forks in full, which runs whatever the supervisor's libraries registered for
a fork (``pthread_atfork``); a handler that waits for a thread, which the new process does not have, waits for ever, and
the program never starts. Of 50 programs that a process with gRPC servers started, one hung so.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final, NoReturn

_PR_SET_PDEATHSIG: Final = 1
"""``prctl(2)``: the signal that this process gets when the thread that started it ends; it survives an exec."""
_NOT_STARTED: Final = 126
"""Exit code: the program cannot be run, as shells have it."""


def become(parent: int, arguments: list[str]) -> NoReturn:
    """Exec the program, unless the parent has ended already."""
    if ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL):
        sys.stderr.write("this system does not let a program end with the one that started it\n")
    if os.getppid() != parent:  # it ended before we asked
        sys.exit(1)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores them, and the program would inherit that
    try:
        os.execvp(arguments[0], arguments)  # noqa: S606 - our own programs; no shell
    except OSError as error:
        sys.stderr.write(f"{arguments[0]}: cannot be started: {error.strerror}\n")
        sys.exit(_NOT_STARTED)


if __name__ == "__main__":
    become(int(sys.argv[1]), sys.argv[2:])
