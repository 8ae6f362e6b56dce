"""Runs Flower's SuperNode, and ends when it does.

A connection that is cut during a TLS handshake makes a SuperNode give up: its main thread returns, but a thread that
serves its own executor keeps the process alive. It would look well for ever and never ask for work again, and nobody
would start it anew.

It also asks for work more often than every 3 s, which Flower has fixed and which would be the greatest part of a
round's overhead: see :class:`Pace`.

A program of its own, run by its path: with Flower and the standard library alone, so both stand in this one file.
"""

from __future__ import annotations

import math
import os
import sys
import time
import traceback
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

LOST: Final = 75
"""Exit code: try again later, as ``sysexits.h`` has it."""
REFUSED: Final = 77
"""Exit code: the coordinator does not take this site's key; EX_NOPERM there."""
CONNECTED: Final = "the coordinator takes this site's key: connected"
"""Line on standard error once it does; whoever started this waits for it."""
_UNAUTHORIZED: Final = 401
_NOT_ACTIVATED: Final = "2004"
"""Flower's code where a key is not registered, was unregistered, or is connected already."""

FLOWERS_WAIT: Final = 3.0
"""Seconds that Flower lets pass after a question for work that had none."""
FLOWERS_LOCAL_WAIT: Final = 0.5
"""Seconds between two of its looks into this process's own memory for the app's reply."""
SHORTEST_WAIT: Final = 1.0
"""Seconds; a question costs the coordinator some 12 ms of a core, heartbeats included (20 sites, measured)."""
LOCAL_WAIT: Final = 0.1
"""Seconds; a look costs some 0.1 ms."""
RECENT: Final = 600.0
"""Seconds after work in which more of it is likely."""
_WAIT_PER_DELAY: Final = 20.0


class Pace:
    """How long a SuperNode really sleeps where Flower says how long.

    Between two questions 1 s in the ten minutes after it last had work, else Flower's 3 s. Where an answer takes longer
    than the quickest so far, 20 times the difference, at most 3 s: a few sites are served quickly, while many slow down
    by themselves as soon as they keep the coordinator busy, and a site that is far away is none the slower for that.
    """

    def __init__(self, *, sleep: Callable[[float], object], clock: Callable[[], float]) -> None:
        self._sleep = sleep
        self._clock = clock
        self._asked_at: float | None = None
        """When the sleep before the last question ended; None: there was none right before it."""
        self._worked_at: float | None = None
        self._quickest = math.inf

    def sleep(self, seconds: float) -> None:
        """In place of ``time.sleep``."""
        if seconds == FLOWERS_WAIT:
            self._sleep(self._until_next_question())
            self._asked_at = self._clock()
        elif seconds == FLOWERS_LOCAL_WAIT:
            self.note_work()
            self._sleep(LOCAL_WAIT)
        else:
            self._sleep(seconds)

    def note_work(self) -> None:
        """It has work: the time until its next question is no answer's."""
        self._asked_at = None
        self._worked_at = self._clock()

    def _until_next_question(self) -> float:
        delay = self._delay()
        if self._worked_at is None or self._clock() - self._worked_at > RECENT:
            return FLOWERS_WAIT
        return min(FLOWERS_WAIT, max(SHORTEST_WAIT, _WAIT_PER_DELAY * delay))

    def _delay(self) -> float:
        if self._asked_at is None:
            return 0.0
        answer_took = self._clock() - self._asked_at
        self._quickest = min(self._quickest, answer_took)
        return answer_took - self._quickest


def set_pace() -> None:
    """Give Flower's loop a ``time`` of its own; nothing else in the process sees it."""
    pace = Pace(sleep=time.sleep, clock=time.monotonic)
    try:
        loop = import_module("flwr.supernode.start_client_internal")
    except ImportError:  # another Flower's: slower, and no reason not to take part
        sys.stderr.write("this version of Flower asks for work at its own pace\n")
        return
    loop.__dict__["time"] = SimpleNamespace(**{**vars(time), "sleep": pace.sleep})


class Answers:
    """What the coordinator's answers say of this site's key; Flower itself ends with the same code for most causes."""

    def __init__(self) -> None:
        """Nothing was asked yet."""
        self.refused = False

    def note(self, path: str, status: int, body: str) -> None:
        """One answer to this SuperNode."""
        activated = path.endswith("/activate-node")
        if status == _UNAUTHORIZED or (activated and _NOT_ACTIVATED in body and not 200 <= status < 300):
            self.refused = True
        elif activated and 200 <= status < 300:
            self.refused = False
            sys.stderr.write(f"{CONNECTED}\n")


def watch_answers(answers: Answers) -> None:
    """Have Flower's own signer of requests look at what is answered to them."""
    try:
        connection = import_module("flwr.supernode.fleet_http_connection")
        signer: Any = connection.NodeAuthHttpInterceptor
    except (ImportError, AttributeError):  # another Flower's: refusals are then told by its log alone
        sys.stderr.write("this version of Flower does not show whether the coordinator takes this site's key\n")
        return

    class Watching(signer):
        def intercept(self, context: Any, call_next: Any) -> Any:  # noqa: ANN401 - Flower's types
            response = super().intercept(context, call_next)
            body = response.text if response.is_error else ""
            answers.note(context.request.url.path, response.status_code, body)
            return response

    connection.__dict__["NodeAuthHttpInterceptor"] = Watching


def run_to_the_end(supernode: Callable[[], None], answers: Answers) -> None:
    """Run it; the process ends when it returns, exits or fails, whatever threads it leaves behind."""
    code = LOST
    try:
        supernode()
    except SystemExit as ended:  # so Flower ends, on a signal too; an ordinary exit would wait for those threads
        code = _exit_code(ended)
    except BaseException:  # noqa: BLE001 - whatever it is, only a new process helps
        traceback.print_exc()
    if answers.refused:
        code = REFUSED
        sys.stderr.write("the coordinator does not take this site's key\n")
    elif code == LOST:
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
    set_pace()
    answers = Answers()
    watch_answers(answers)
    run_to_the_end(import_module("flwr.supernode.cli").flower_supernode, answers)


if __name__ == "__main__":
    main()
