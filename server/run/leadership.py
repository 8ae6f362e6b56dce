"""Whether a run is to be led, by whom, and what it waits for: files in its directory, so that any process can look.

``wanted`` is there from ``run start`` until the run has ended or is stopped: the coordinator's ``up`` starts such a run
again when its process has died. ``lock`` is held by the one process that leads it. ``standing.json`` says what it waits
for or why it ended early. ``pause`` is there while the run is to wait; the loop looks for it between rounds, so that no
round is torn.
"""

from __future__ import annotations

import contextlib
import logging
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from common.durable_files import write_atomically
from common.errors import DarkroomError, RunBusy
from common.host.file_lock import is_locked, locked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


_WANTED: Final = "wanted"
_LOCK: Final = "lock"
_STANDING: Final = "standing.json"
_PAUSE: Final = "pause"
_TAKE_OVER_SECONDS: Final = 30.0
"""How long a new process waits for an old one to let go: Flower ends it within seconds of giving a run up."""
_LOOK_SECONDS: Final = 1.0
_log = logging.getLogger(__name__)


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What a run that does not go on waits for, or ended with."""

    state: Literal["waiting", "stopped"]
    reason: str
    since: str

    def __str__(self) -> str:
        """For a terminal."""
        return f"{self.state} since {self.since}: {self.reason}"


def want(directory: Path) -> None:
    """Have the run led; how it ended before is no longer how it stands."""
    write_atomically(directory / _WANTED, b"")
    go_on(directory)


def want_no_more(directory: Path) -> None:
    """Have nobody lead it again until somebody wants it."""
    (directory / _WANTED).unlink(missing_ok=True)


def is_wanted(directory: Path) -> bool:
    """Whether somebody is to lead it."""
    return (directory / _WANTED).exists()


def standing(directory: Path) -> Standing | None:
    """What it waits for or ended with; None while it goes on, or where nobody can read what it said."""
    try:
        return msgspec.json.decode((directory / _STANDING).read_bytes(), type=Standing)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def note(directory: Path, state: Literal["waiting", "stopped"], reason: str) -> None:
    """Say so, for people who ask."""
    said = Standing(state=state, reason=reason, since=datetime.now(UTC).isoformat(timespec="seconds"))
    write_atomically(directory / _STANDING, msgspec.json.encode(said))


def go_on(directory: Path) -> None:
    """It neither waits nor has ended."""
    (directory / _STANDING).unlink(missing_ok=True)


def is_led(directory: Path) -> bool:
    """Whether a living process leads it."""
    try:
        return is_locked(directory / _LOCK)
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def leading(directory: Path, *, wait_s: float = _TAKE_OVER_SECONDS) -> Iterator[None]:
    """Lead the run, alone, and write down how it ended.

    Guarantee: two processes never lead one run, whatever Flower believes: neither a round and attempt nor a session
    number is used by both. One that dies without a word leaves the run wanted.

    Raises:
        RunBusy: Another process leads it.

    """
    directory.mkdir(parents=True, exist_ok=True)
    busy = RunBusy(f"{directory}: another process leads this run; end it first")
    with locked(directory / _LOCK, wait_s=wait_s, busy=busy):
        go_on(directory)
        try:
            yield
        except DarkroomError as error:
            note(directory, "stopped", str(error))
            _log.error("stopped: %s", error)
            want_no_more(directory)
            raise
        want_no_more(directory)


def pause(directory: Path) -> None:
    """Have the run in this directory wait before its next round."""
    write_atomically(directory / _PAUSE, b"")


def resume(directory: Path) -> None:
    """Let it go on."""
    (directory / _PAUSE).unlink(missing_ok=True)


def is_paused(directory: Path) -> bool:
    """Whether it is to wait."""
    return (directory / _PAUSE).exists()


def wait_while_paused(directory: Path, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """Return once nobody wants the run to wait."""
    if not is_paused(directory):
        return
    _log.info("paused before the next round; go on with: darkroom-server run resume")
    while is_paused(directory):
        sleep(_LOOK_SECONDS)
    _log.info("goes on")
