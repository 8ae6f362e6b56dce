"""Decode files in processes of their own, so that one that crashes, hangs or eats its decoder costs only itself.

Workers are started afresh (*spawn*): a forked one would hold a copy of the vault's keys beside a decoder that reads
hostile files. For the same reason answers are decoded as plain data, never unpickled, and the pictures in them must be
bare PNGs. Results come in the order of the files, so that of two equal pictures the first always stays.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Final, Self, TypeAlias

import msgspec

from client.intake.deidentify import Cleaned, CleanFile, clean_file
from client.intake.outcomes import Reason, Refused
from client.intake.pictures import is_bare_png
from client.private_memory import keep_memory_private
from common.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from multiprocessing.context import SpawnProcess
    from pathlib import Path

    from client.intake.rules import IntakeRules

START_SECONDS: Final = 60.0
"""A worker's first file may take this much longer: it loads its libraries."""
AHEAD: Final = 4
"""Files a worker may be ahead of the slowest one; bounds the memory that finished pictures wait in."""

MAX_ANSWER_BYTES: Final = 1 << 30
MAX_WORKER_BYTES: Final = 8 << 30
"""Of address space: a file that unfolds beyond it costs itself, and not the machine."""

Task: TypeAlias = tuple[int, "Path"]


class Answer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a worker sends back: exactly one of these."""

    file: CleanFile | None = None
    refused: Refused | None = None
    missing: str | None = None
    """An extra that the rules need and that is not installed."""


@dataclass(slots=True)
class _Worker:
    process: SpawnProcess
    pipe: Connection
    index: int = -1
    """The file it is at; -1: none."""
    deadline: float = 0.0
    is_fresh: bool = True


@dataclass(slots=True)
class WorkerPool:
    """Some processes that clean files. A context manager; 0 workers: clean them in this process, for tests."""

    workers: int
    rules: IntakeRules
    previews: bool
    _running: list[_Worker] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for worker in self._running:
            _stop(worker)
        self._running.clear()

    def clean(self, paths: Iterable[Path]) -> Iterator[Cleaned]:
        """What each file became, in order.

        Raises:
            ConfigError: The rules ask for something that is not installed.

        """
        if self.workers == 0:
            for path in paths:
                yield clean_file(path, self.rules, previews=self.previews)
            return
        tasks = enumerate(paths)
        done: dict[int, Cleaned | ConfigError] = {}
        due = 0
        while True:
            self._hand_out(tasks, due)
            if due not in done and not any(worker.index >= 0 for worker in self._running):
                return
            if due not in done:
                done.update(self._collect())
            while due in done:
                result = done.pop(due)
                due += 1
                if isinstance(result, ConfigError):
                    raise result
                yield result

    def _hand_out(self, tasks: Iterator[Task], due: int) -> None:
        """Give every idle worker a file, unless that would run too far ahead of the one that is due."""
        while len(self._running) < self.workers:
            self._running.append(_start(self.rules, previews=self.previews))
        for worker in self._running:
            ahead = max((each.index for each in self._running), default=-1)
            if worker.index >= 0 or ahead >= due + AHEAD * self.workers:
                continue
            task = next(tasks, None)
            if task is None:
                return
            worker.index = task[0]
            worker.deadline = time.monotonic() + self.rules.files.seconds + START_SECONDS * worker.is_fresh
            with contextlib.suppress(OSError):  # it died while idle; collecting finds out
                worker.pipe.send_bytes(os.fsencode(task[1]))

    def _collect(self) -> dict[int, Cleaned | ConfigError]:
        """Wait for results; a worker that died or ran out of time is replaced, and its file refused."""
        busy = {worker.pipe: worker for worker in self._running if worker.index >= 0}
        patience = min(worker.deadline for worker in busy.values()) - time.monotonic()
        ready = wait(list(busy), timeout=max(0.0, patience))
        found: dict[int, Cleaned | ConfigError] = {}
        for pipe in ready:
            if isinstance(pipe, Connection):
                worker = busy[pipe]
                index = worker.index
                found[index] = self._receive(worker)
        for worker in busy.values():
            if worker.index >= 0 and time.monotonic() > worker.deadline:
                found[worker.index] = Refused(Reason.TIMED_OUT, f"more than {self.rules.files.seconds:g} s")
                self._discard(worker)
        return found

    def _receive(self, worker: _Worker) -> Cleaned | ConfigError:
        try:
            answer = msgspec.msgpack.decode(worker.pipe.recv_bytes(MAX_ANSWER_BYTES), type=Answer)
        except (EOFError, OSError):
            self._discard(worker)
            return Refused(Reason.CRASHED, "its decoder ended the process")
        except (msgspec.DecodeError, ValueError):
            self._discard(worker)
            return Refused(Reason.CRASHED, "its decoder answered something else")
        worker.index, worker.is_fresh = -1, False
        if answer.missing is not None:
            return ConfigError(answer.missing)
        if answer.file is not None and all(is_bare_png(picture.png) for picture in answer.file.pictures):
            return answer.file
        return answer.refused or Refused(Reason.CRASHED, "its decoder answered something else")

    def _discard(self, worker: _Worker) -> None:
        self._running.remove(worker)
        worker.index = -1
        _stop(worker)


def _start(rules: IntakeRules, *, previews: bool) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, rules), kwargs={"previews": previews}, daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _stop(worker: _Worker) -> None:
    worker.pipe.close()
    worker.process.kill()
    worker.process.join()


def serve(pipe: Connection, rules: IntakeRules, *, previews: bool) -> None:
    """A worker's life: clean what is asked for until the pipe closes."""
    from pathlib import Path  # noqa: PLC0415 - needed at run time here alone

    keep_memory_private()  # a decoder that crashes would write the picture to a core dump
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = MAX_WORKER_BYTES if hard == resource.RLIM_INFINITY else min(hard, MAX_WORKER_BYTES)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt at the terminal is the parent's to handle
    while True:
        try:
            path = Path(os.fsdecode(pipe.recv_bytes()))
        except EOFError:
            return
        try:
            cleaned = clean_file(path, rules, previews=previews)
            answer = Answer(file=cleaned) if isinstance(cleaned, CleanFile) else Answer(refused=cleaned)
        except ConfigError as error:
            answer = Answer(missing=str(error))
        except Exception as error:  # noqa: BLE001 - one bad file must not stop the intake
            answer = Answer(refused=Refused(Reason.DAMAGED, f"{type(error).__name__} while decoding"))
        pipe.send_bytes(msgspec.msgpack.encode(answer))
