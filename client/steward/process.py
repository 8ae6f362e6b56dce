"""A steward as a process: open everything, listen, look after things now and then, stop when told.

Stopping lets the round that is being computed end within the site's ``stop_seconds``. If it does not, it is abandoned:
nothing of it has been sent, its charge stays in the ledger, and the process ends as it would on a power cut, which
ledger, audit log and vault are made for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from client.governance.rollback import open_log
from client.steward.admission import Passage
from client.steward.service import Limits, StewardService, serve
from client.steward.socket import SocketPlace, check_token_mode, held
from common.crypto.identity_file import read_identity_file
from common.errors import DarkroomError
from common.wire.steward_link import read_token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from client.site.settings import ServiceConfig, SiteConfig
    from client.steward.service import Serving
    from common.audit_log import AuditLog
    from common.wire.messages import StewardPort

CARE_SECONDS: Final = 60.0
"""How often a steward looks after itself."""
_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StewardProcess:
    """What is served, and what is done beside it.

    Args:
        steward: Who answers.
        audit: The site's log; written to from inside the admission alone, as it has one writer.
        settings: How it listens.
        condition: Whether the base is loaded, and whether policy, ledger and audit log are in order.
        care: Done about once a minute while no request is acted on.

    """

    steward: StewardPort
    audit: AuditLog
    settings: ServiceConfig
    condition: Callable[[], tuple[bool, bool]]
    care: Callable[[], None] = lambda: None

    def run(self, stop: threading.Event, *, every: float = CARE_SECONDS) -> bool:
        """Serve until told to stop; False if a round was abandoned, so that its thread still runs.

        The caller holds the place: audit log and ledger have one writer, so they are opened after it is held.

        Raises:
            StewardUnavailable: The socket or the token cannot be used.

        """
        service, place = self._service(), socket_place(self.settings)
        self.audit.append("started", {})  # before the doors open, because the log has one writer at a time
        serving = serve(service, place, self.settings.tcp)
        _log.info("listening on %s", place.path)
        while not stop.wait(every):
            self._look_after(service, stop)
        return self._end(serving)

    def _service(self) -> StewardService:
        settings = self.settings
        check_token_mode(settings.token, group=bool(settings.group))
        return StewardService(
            steward=self.steward,
            token=read_token(settings.token),
            turned_away=self._note_turned_away,
            limits=Limits(
                message_bytes=settings.message_mib * 2**20,
                waiting=settings.waiting,
                wait_seconds=settings.wait_seconds,
                refusals_per_minute=settings.refusals_per_minute,
            ),
            condition=self.condition,
        )

    def _note_turned_away(self, counts: dict[str, int]) -> None:
        """One entry for all calls since the last: a flood must not fill the disk, nor a full one stop an answer."""
        try:
            self.audit.append("turned_away", dict(counts))
        except DarkroomError as error:
            _log.error("the audit log cannot be written: %s", error)

    def _look_after(self, service: StewardService, stop: threading.Event) -> None:
        with service.admission.passage(lambda: not stop.is_set(), by="care") as passage:
            if passage is not Passage.PASSED:
                return
            service.note_turned_away()
            try:
                self.care()
            except DarkroomError as error:
                _log.error("looking after the site failed: %s", error)

    def _end(self, serving: Serving) -> bool:
        _log.info("stopping; a round may end within %g s", self.settings.stop_seconds)
        ended = serving.stop(grace=self.settings.stop_seconds)
        if ended:
            serving.service.note_turned_away()
            self.audit.append("stopped", {})
            _log.info("stopped")
        else:
            _log.warning("stopped; the round that was being computed is abandoned and stays charged")
        return ended


def socket_place(settings: ServiceConfig) -> SocketPlace:
    """Where a site's socket stands."""
    return SocketPlace(path=settings.socket, group=settings.group)


@contextlib.contextmanager
def writing(site: SiteConfig) -> Iterator[AuditLog]:
    """A site for a command that writes: the steward's place held before the log is opened, which has one writer.

    Raises:
        StewardRunning: A steward, or another command that writes, is at work.
        AuditLogError: The log is missing or damaged.
        CryptoError: The identity cannot be used.

    """
    with held(socket_place(site.service)):
        yield open_log(site.audit_log, read_identity_file(site.identity))


def run_until_signal(settings: ServiceConfig, compose: Callable[[], StewardProcess]) -> None:
    """Hold the site's place, put its steward together, serve until SIGTERM or SIGINT; the exit code is 0 either way.

    Raises:
        StewardRunning: Another steward serves this site; nothing of it was touched.

    """
    stop = threading.Event()
    with held(socket_place(settings)):
        process = compose()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        ended = process.run(stop)
    if not ended:
        logging.shutdown()
        os._exit(0)  # the abandoned round's thread cannot be stopped, and a normal exit would wait for it
