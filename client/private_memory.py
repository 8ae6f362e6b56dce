"""Keep a process's memory, which holds keys and pictures, out of files and from other processes of the same user.

A crash would write it to a core dump, and the SuperNode's code, which the coordinator chooses, may run under the
steward's user. Swap is beyond a process: encrypt it, or turn it off.
"""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
from typing import Final

_PR_SET_DUMPABLE: Final = 4


def keep_memory_private() -> None:
    """Make no core dumps and, on Linux, let no process but root's attach to this one or read its memory.

    A program that this process starts is not bound by the second.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library: the limit above still holds
            # a crash handler that the kernel pipes dumps to ignores the limit, and heeds this
            ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
