"""Runs Flower's SuperNode, and ends when it does.

A connection that is cut during a TLS handshake makes a SuperNode give up: its main thread returns, but a thread that
serves its own executor keeps the process alive. It would look well for ever and never ask for work again, and nobody
would start it anew.

A program of its own, run by its path: with Flower and the standard library alone.
"""

from __future__ import annotations

import os
import sys
import traceback
from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

LOST: Final = 75
"""Exit code: try again later, as ``sysexits.h`` has it."""


def run_to_the_end(supernode: Callable[[], None]) -> None:
    """Run it; the process ends when it returns, exits or fails, whatever threads it leaves behind."""
    code = LOST
    try:
        supernode()
    except SystemExit as ended:  # so Flower ends, on a signal too; an ordinary exit would wait for those threads
        code = _exit_code(ended)
    except BaseException:  # noqa: BLE001 - whatever it is, only a new process helps
        traceback.print_exc()
    if code == LOST:
        sys.stderr.write("the SuperNode has given its connection up and ends, to be started again\n")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _exit_code(ended: SystemExit) -> int:
    """As Python itself has it: none is 0, and a text is shown, with code 1."""
    if ended.code is None or isinstance(ended.code, int):
        return ended.code or 0
    sys.stderr.write(f"{ended.code}\n")
    return 1


def main() -> None:
    """Entry point."""
    sys.argv[0] = "flower-supernode"  # Flower decides by this name what it is
    run_to_the_end(import_module("flwr.supernode.cli").flower_supernode)


if __name__ == "__main__":
    main()
