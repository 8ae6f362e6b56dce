"""Faults of every kind, at random and repeatable, against a federation's processes; and what must hold afterwards."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

from client.governance.ledger_store import connection, read_rows
from common.audit_log import verify_log
from common.crypto.identity_file import read_identity_file
from common.host.supervision import Supervisor
from server.run.attempts import FILE, AttemptJournal
from server.run.checkpoint import KEPT, checkpoint_files
from server.run.coordinator import CHECKPOINTS
from server.run.leadership import is_led

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.federation.laboratory import Laboratory
    from tests.federation.proxy import Proxy

KINDS = ("up", "superlink", "superexec", "serverapp", "steward", "join", "supernode", "clientapp")
"""Every process of a federation, by name."""
_PROGRAMS = {
    "superlink": "flower-superlink",
    "superexec": "flower-superexec",
    "serverapp": "flwr-serverapp",
    "supernode": "supernode_process.py",
    "clientapp": "bundle_gate.py",
}
"""Name of the program, among the first words of its command line."""


@dataclass
class Federation:
    """Everything that runs, each restarted a few seconds after it has died."""

    lab: Laboratory
    restart_seconds: float = 3.0
    joining: tuple[str, ...] | None = None
    """Sites that connect at once; absent: all."""
    _supervisors: dict[str, Supervisor] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self._start("up", self.lab.up())
        for name in self.lab.plan.names:
            self._start(f"steward {name}", self.lab.sites[name].steward())
        self.wait_for(lambda: self.lab.is_registered() and all(site.serves() for site in self.lab.sites.values()), 180)
        for name in self.lab.plan.names if self.joining is None else self.joining:
            self.start_joining(name)
        return self

    def start_joining(self, name: str) -> None:
        self._start(f"join {name}", self.lab.join(name))

    def _start(self, name: str, command: Any) -> None:
        supervisor = Supervisor([command], restart_seconds=self.restart_seconds, stop_seconds=5)
        self._supervisors[name] = supervisor.__enter__()

    def __exit__(self, *_: object) -> None:
        for supervisor in reversed(self._supervisors.values()):
            supervisor.stop()

    def poll(self) -> None:
        for supervisor in self._supervisors.values():
            supervisor.poll()

    def wait_for(self, condition: Any, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s; logs: {self.lab.plan.directory}"
            self.poll()
            time.sleep(0.3)

    def processes(self, kind: str) -> list[int]:
        """Ids of the living processes of a kind, in a fixed order; of what we started, and of what that started."""
        started = [(name, one.process) for name, each in self._supervisors.items() for one in each._running]
        own = {name: process.pid for name, process in started if process.poll() is None}
        if kind in {"up", "steward", "join"}:
            return [pid for name, pid in own.items() if name.split()[0] == kind]
        program, below = _PROGRAMS[kind], set(own.values())
        return [pid for pid, line in descendants(below) if any(Path(part).name == program for part in line[:3])]


def descendants(roots: set[int]) -> list[tuple[int, list[str]]]:
    parents, lines = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                lines[int(entry.name)] = (entry / "cmdline").read_text().split("\0")
    found, front = [], set(roots)
    while front:
        front = {pid for pid, parent in parents.items() if parent in front}
        found += sorted(front)
    return [(pid, lines[pid]) for pid in found]


@dataclass
class Chaos:
    """Draws a fault, a victim and a length, again and again."""

    federation: Federation
    proxies: dict[str, Proxy]
    seed: int
    whats: tuple[str, ...] = ("kill", "freeze")
    """What is done to each kind of process once."""
    pause: tuple[float, float] = (5.0, 12.0)
    """Seconds between two faults. Flower takes up to a minute to get over some: many at once leave no round whole."""
    done: list[str] = field(default_factory=list)
    _thaw: list[tuple[float, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)  # noqa: S311 - which process to kill is no secret
        self._next = 0.0
        # every kind once, and every line cut; then at random
        self._plan = [(what, kind) for what in self.whats for kind in KINDS]
        self._plan += [("cut", name) for name in self.proxies]
        self._plan += [("damage", "serverapp")]
        self.random.shuffle(self._plan)

    @property
    def has_tried_everything(self) -> bool:
        return not self._plan

    def poll(self) -> None:
        now = time.monotonic()
        for at, mend in list(self._thaw):
            if now >= at:
                mend()
                self._thaw.remove((at, mend))
        if now < self._next:
            return
        self._next = now + self.random.uniform(*self.pause)
        is_planned = bool(self._plan)
        what, kind = self._plan.pop() if is_planned else self._draw()
        if not self._act(what, kind, now) and is_planned:
            self._plan.insert(0, (what, kind))

    def _draw(self) -> tuple[str, str]:
        what = self.random.choice(("kill", "freeze", "cut"))
        return what, self.random.choice(list(self.proxies) if what == "cut" else KINDS)

    def _act(self, what: str, kind: str, now: float) -> bool:
        if what == "cut":
            self.proxies[kind].cut()
            self._thaw.append((now + self.random.uniform(2.0, 12.0), self.proxies[kind].mend))
        else:
            found = self.federation.processes(kind)
            if not found:  # such as a ClientApp between two rounds
                self._next = now + 0.2
                return False
            checkpoints = checkpoint_files(self.federation.lab.files.directory / CHECKPOINTS)
            if what == "damage" and len(checkpoints) < KEPT:
                self._next = now + 0.2
                return False
            victim = self.random.choice(found)
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGSTOP if what == "freeze" else signal.SIGKILL)
            if what == "damage":
                damage_newest(self.federation.lab)
            if what == "freeze":
                self._thaw.append((now + self.random.uniform(2.0, 10.0), lambda: go_on(victim)))
        self.done.append(f"{what} {kind}")
        return True

    def end(self) -> None:
        for _, mend in self._thaw:
            mend()
        self._thaw.clear()
        for proxy in self.proxies.values():
            proxy.mend()


def damage_newest(lab: Laboratory) -> None:
    """Once the process that writes checkpoints is gone, as a disk does that it took with it."""
    while is_led(lab.files.directory):
        time.sleep(0.05)
    newest = checkpoint_files(lab.files.directory / CHECKPOINTS)[-1]
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)


def go_on(victim: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim, signal.SIGCONT)


def audit(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Kind and details of each entry."""
    decoded = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
    return [(entry["kind"], entry["details"]) for entry in decoded]


def charged_and_sent(lab: Laboratory, name: str) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    """Rounds and attempts in a site's ledger, and those of vectors that left its steward."""
    root = lab.sites[name].root
    verify_log(root / "audit.log", read_identity_file(root / "identity.key").public)
    with connection(root / "ledger.sqlite", busy_seconds=5) as store:
        charged = {(row.round + 1, row.attempt) for row in read_rows(store)}
    sent = {(d["round"], d["attempt"]) for kind, d in audit(root / "audit.log") if kind == "contributed"}
    return charged, sent


def check_books(lab: Laboratory) -> None:
    """No vector left without a charge, none twice, none for a request that the coordinator did not write down."""
    run = lab.files.directory
    verify_log(run / "audit.log", lab.federation.identity().public)
    entries = audit(run / "audit.log")
    steps = [(d["round"], d["attempt"]) for kind, d in entries if kind == "requested"]
    assert len(steps) == len(set(steps)), "a round and attempt was asked for twice"
    assert len(AttemptJournal(run / FILE, most=10**6)._sent) >= len({number for number, _ in steps})
    assert AttemptJournal(run / FILE, most=10**6).sent >= len(steps)
    epochs = [d["epoch"] for kind, d in entries if kind == "session"]
    assert epochs == sorted(set(epochs)), "a session number was used twice"
    books = [charged_and_sent(lab, name) for name in lab.plan.names]
    for charged, sent in books:
        assert sent <= charged <= set(steps)
    minimum = lab.plan.config.server.minimum_institutions
    cohorts = {(d["round"], d["attempt"]): d["cohort"].split(",") for kind, d in entries if kind == "requested"}
    summed = [(d["round"], d["attempt"]) for kind, d in entries if kind == "summed"]
    for step in summed:
        members = [books[int(place)][1] for place in cohorts[step]]
        assert len(members) == minimum
        assert all(step in sent for sent in members), "a sum without everybody's vector"


def finished(rows: Iterator[dict[str, Any]]) -> list[int]:
    return [row["round"] for row in rows if row["kind"] == "round"]
