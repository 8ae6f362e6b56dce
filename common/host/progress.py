"""Progress bars in a terminal, silence elsewhere; and a word on what takes longer than one expects."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def bar(label: str, total: int) -> Iterator[Callable[[int], object]]:
    """A bar that the yielded function advances; shown only where standard error is a terminal."""
    with tqdm(total=total, desc=label, disable=None, leave=False) as shown:
        yield shown.update


@contextmanager
def told_when_slow(what: str, *, first: float = 1.0, every: float = 15.0) -> Iterator[None]:
    """Say on standard error that the work within goes on: after ``first`` seconds, then at every ``every``."""
    started, done = time.monotonic(), threading.Event()

    def tell() -> None:
        wait = first
        while not done.wait(wait):
            sys.stderr.write(f"{what}: {time.monotonic() - started:.0f} s so far; Ctrl-C ends it\n")
            wait = every

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()
