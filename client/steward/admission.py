"""Who is let through to the steward, and when: one request at a time, a few waiting, all others turned away at once.

Those turned away are counted, not queued and not written down one by one, so a flood costs neither memory nor disk.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_STEP_SECONDS: Final = 0.2
"""How often a waiting request looks whether it is still wanted."""


class Passage(StrEnum):
    """How an attempt to pass ended."""

    PASSED = "passed"
    FULL = "full"
    """Too many wait already."""
    TIMED_OUT = "timed_out"
    GONE = "gone"
    """The caller hung up while it waited."""
    CLOSED = "closed"
    """The steward is stopping."""


@dataclass(kw_only=True)
class Admission:
    """Passes one caller at a time.

    Args:
        waiting: How many may wait while one is inside.
        seconds: How long one may wait.

    """

    waiting: int
    seconds: float
    _inside: threading.Lock = field(init=False, default_factory=threading.Lock)
    _guard: threading.Lock = field(init=False, default_factory=threading.Lock)
    _present: int = field(init=False, default=0)
    _closed: threading.Event = field(init=False, default_factory=threading.Event)
    _care: threading.Event = field(init=False, default_factory=threading.Event)
    _turned_away: Counter[str] = field(init=False, default_factory=Counter)

    @contextlib.contextmanager
    def passage(
        self, still_wanted: Callable[[], bool], *, by: Literal["caller", "care"] = "caller"
    ) -> Iterator[Passage]:
        """Wait for a turn; only with ``PASSED`` is the caller alone inside, until the block ends.

        The steward's own care may wait however many others do, and goes in before them, or else a
        flood could keep it out for ever.
        """
        with self._guard:
            room = by == "care" or self._present <= self.waiting
            if admitted := room and not self._closed.is_set():
                self._present += 1
        if not admitted:
            yield Passage.CLOSED if self._closed.is_set() else Passage.FULL
            return
        try:
            with self._ahead(by):
                outcome = self._wait(still_wanted, by)
            try:
                yield outcome
            finally:
                if outcome is Passage.PASSED:
                    self._inside.release()
        finally:
            with self._guard:
                self._present -= 1

    @contextlib.contextmanager
    def _ahead(self, by: Literal["caller", "care"]) -> Iterator[None]:
        """While the care waits, callers do not try to go in."""
        if by == "care":
            self._care.set()
        try:
            yield
        finally:
            if by == "care":
                self._care.clear()

    def _enter(self, by: Literal["caller", "care"]) -> bool:
        if by == "caller" and self._care.is_set():
            time.sleep(_STEP_SECONDS)
            return False
        return self._inside.acquire(timeout=_STEP_SECONDS)

    def _wait(self, still_wanted: Callable[[], bool], by: Literal["caller", "care"]) -> Passage:
        last = time.monotonic() + self.seconds
        while not self._enter(by):
            if not still_wanted():
                return Passage.GONE
            if self._closed.is_set():
                return Passage.CLOSED
            if time.monotonic() > last:
                return Passage.TIMED_OUT
        if self._closed.is_set() or not still_wanted():
            self._inside.release()
            return Passage.CLOSED if self._closed.is_set() else Passage.GONE
        return Passage.PASSED

    def close(self) -> None:
        """Let nobody in any more; whoever is inside stays until done."""
        self._closed.set()

    @property
    def closed(self) -> bool:
        """Whether the steward is stopping."""
        return self._closed.is_set()

    @property
    def busy(self) -> bool:
        """Whether somebody is inside."""
        return self._inside.locked()

    @property
    def present(self) -> int:
        """How many are inside or wait."""
        with self._guard:
            return self._present

    def turn_away(self, reason: str) -> None:
        """Count one refusal that the steward never saw."""
        with self._guard:
            self._turned_away[reason] += 1

    def drain_turned_away(self) -> dict[str, int]:
        """The counts since the last call, which they end."""
        with self._guard:
            counts, self._turned_away = dict(self._turned_away), Counter()
        return counts


@dataclass(kw_only=True)
class RefusalAllowance:
    """How many requests a minute may end in a refusal; used by whoever was admitted, so by one caller at a time."""

    per_minute: int
    _times: deque[float] = field(init=False, default_factory=deque)

    def used_up(self, now: float) -> bool:
        """Whether there were so many in the minute before ``now``, in seconds of a clock that only runs forward."""
        while self._times and self._times[0] <= now - 60.0:
            self._times.popleft()
        return len(self._times) >= self.per_minute

    def note(self, now: float) -> None:
        """Count one."""
        self._times.append(now)
