"""What processes take: memory by program, and when each of Flower's short-lived ones was started (Linux)."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAMS: Final = {
    "flower-superlink": "superlink",
    "flwr-serverapp": "serverapp",
    "supernode_process.py": "supernode",
    "flower-superexec": "superexec",
    "bundle_gate.py": "clientapp",
}
"""What a process is called here, by a name among the first words of its command line."""
_LOOK_SECONDS: Final = 0.05
_MEMORY_LOOKS: Final = 20
"""Looks between two at memory, which costs more."""
_TICK: Final = float(os.sysconf("SC_CLK_TCK"))


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """A process that was seen."""

    pid: int
    program: str
    started: float
    """Seconds of the system's clock, to a hundredth."""


@dataclass
class ProcessWatch:
    """A context that looks at this process's descendants all the time.

    ``peak`` holds, by program, the greatest resident set of one process; ``share`` the greatest sum over all of its
    processes, where a page that several use is split among them (PSS); both in bytes.
    """

    peak: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    share: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    count: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Most processes at once."""
    seen: dict[int, Sighting] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._boot = time.time() - float(Path("/proc/uptime").read_text(encoding="utf-8").split()[0])
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        looks = 0
        while not self._stop.wait(_LOOK_SECONDS):
            living = [each for pid in descendants(os.getpid()) if (each := self._sight(pid)) is not None]
            if looks % _MEMORY_LOOKS == 0:
                self._weigh(living)
            looks += 1

    def _sight(self, pid: int) -> Sighting | None:
        if pid in self.seen:
            return self.seen[pid]
        with contextlib.suppress(OSError, ValueError, IndexError):  # it ended meanwhile
            line = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").split("\0")
            program = next((PROGRAMS[name] for part in line[:3] if (name := Path(part).name) in PROGRAMS), None)
            if program is not None:
                ticks = int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
                self.seen[pid] = Sighting(pid=pid, program=program, started=self._boot + ticks / _TICK)
                return self.seen[pid]
        return None

    def _weigh(self, living: list[Sighting]) -> None:
        share: dict[str, int] = defaultdict(int)
        count: dict[str, int] = defaultdict(int)
        for each in living:
            with contextlib.suppress(OSError):
                sizes = memory(each.pid)
                self.peak[each.program] = max(self.peak[each.program], sizes["Rss"])
                share[each.program] += sizes["Pss"]
                count[each.program] += 1
        for program, sum_of_all in share.items():
            self.share[program] = max(self.share[program], sum_of_all)
            self.count[program] = max(self.count[program], count[program])


def memory(pid: int) -> dict[str, int]:
    """``Rss`` and ``Pss`` of a process in bytes; 0 where it has ended."""
    found = {"Rss": 0, "Pss": 0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines():
        name, _, rest = line.partition(":")
        if name in found:
            found[name] = int(rest.split()[0]) << 10
    return found


def descendants(root: int) -> Iterator[int]:
    """Ids of everything that this process started, and of what that started."""
    below: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
                below[parent].append(int(entry.name))
    front = [root]
    while front:
        front = sorted(pid for parent in front for pid in below[parent])
        yield from front
