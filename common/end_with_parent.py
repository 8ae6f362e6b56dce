"""Becomes another program, which the kernel ends when the process that started this one ends.

::

    python -I -S end_with_parent.py PARENT_PID PROGRAM [ARGUMENT…]

A program of its own, run by its path and with the standard library alone. A supervisor could ask the kernel for the
same between its fork and its exec, but in a process with threads a fork runs what libraries have registered for it:
gRPC's then now and then waits for a thread that the new process does not have, for ever, and the program never starts.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final, NoReturn

_PR_SET_PDEATHSIG: Final = 1
"""``prctl(2)``: the signal that this process gets when the thread that started it ends; it survives an exec."""
_NOT_FOUND: Final = 127
"""Exit code: no such program, as shells have it."""


def become(parent: int, arguments: list[str]) -> NoReturn:
    """Exec the program, unless the parent has ended already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before we asked
        sys.exit(1)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores them, and the program would inherit that
    try:
        os.execvp(arguments[0], arguments)  # noqa: S606 - our own programs; no shell
    except OSError as error:
        sys.stderr.write(f"{arguments[0]}: cannot be started: {error.strerror}\n")
        sys.exit(_NOT_FOUND)


if __name__ == "__main__":
    become(int(sys.argv[1]), sys.argv[2:])
