"""Locks between processes: a file that one of them holds, and that the kernel lets go when it ends, even by SIGKILL."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from common.errors import DarkroomError

_POLL_SECONDS: Final = 0.05


@contextlib.contextmanager
def locked(path: Path, *, wait_s: float | Literal["forever"], busy: DarkroomError | None = None) -> Iterator[int]:
    """A context that holds a lock file alone, across processes and threads; its descriptor, open for writing.

    Args:
        path: Made, for its owner alone, where it is missing; its content is the holder's to write.
        wait_s: Seconds to wait for another holder: 0 to try once, "forever" for as long as it takes.
        busy: Raised where it is still held then; wanted unless it is waited for forever.

    Raises:
        OSError: The file cannot be opened for writing, or is a symbolic link.

    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if wait_s == "forever":
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        else:
            _take(descriptor, time.monotonic() + wait_s, busy)
        yield descriptor
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether somebody holds it; nothing is made or changed.

    Raises:
        OSError: It is not there, this user cannot look, or it is a symbolic link.

    """
    # not waiting for a pipe's other end, if somebody else put a pipe in its place
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _take(descriptor: int, deadline: float, busy: DarkroomError | None) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= deadline and not _is_looked_at(descriptor):
                raise busy or error from error
            time.sleep(_POLL_SECONDS)
        else:
            return


def _is_looked_at(descriptor: int) -> bool:
    """Whether nobody holds it, and only :func:`is_locked` was in the way: a look must not keep a service from starting.

    Of two who want it at once, one gets it: nothing is shared any more when this returns.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return True
