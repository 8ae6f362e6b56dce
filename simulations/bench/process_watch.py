"""What processes take: memory by program, and when each of Flower's short-lived ones was started."""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import psutil

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


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """A process that was seen."""

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
    seen: dict[int, Sighting] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        looks, ours = 0, psutil.Process()
        while not self._stop.wait(_LOOK_SECONDS):
            below = ours.children(recursive=True)
            living = [(each, sighting) for each in below if (sighting := self._sight(each)) is not None]
            if looks % _MEMORY_LOOKS == 0:
                self._weigh(living)
            looks += 1

    def _sight(self, process: psutil.Process) -> Sighting | None:
        if process.pid not in self.seen:
            with contextlib.suppress(psutil.Error):  # it ended meanwhile
                line = process.cmdline()[:3]
                program = next((PROGRAMS[name] for part in line if (name := Path(part).name) in PROGRAMS), None)
                if program is not None:
                    self.seen[process.pid] = Sighting(program=program, started=process.create_time())
        return self.seen.get(process.pid)

    def _weigh(self, living: list[tuple[psutil.Process, Sighting]]) -> None:
        share: dict[str, int] = defaultdict(int)
        for process, each in living:
            with contextlib.suppress(psutil.Error):
                sizes = process.memory_full_info()
                self.peak[each.program] = max(self.peak[each.program], sizes.rss)
                share[each.program] += sizes.pss
        for program, sum_of_all in share.items():
            self.share[program] = max(self.share[program], sum_of_all)
