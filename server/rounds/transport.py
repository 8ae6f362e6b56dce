"""How the coordinator reaches institutions: bytes out, bytes or a failure back, one for each request.

:class:`Transport` is all that the coordinator knows; :class:`GridTransport` implements it on Flower's ``Grid``.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol

from flwr.app import ConfigRecord, Message, RecordDict

from common.errors import RoundFailed
from common.wire.messages import FIELD, MESSAGE_TYPE, RECORD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from flwr.serverapp import Grid

_log = logging.getLogger(__name__)

POLL_S: Final = 0.1
"""Seconds between two looks for replies; Flower's own loop waits 3."""
_PULLED_AT_ONCE: Final = 8
_PULLED_BYTES: Final = 1 << 25
"""Replies taken out of Flower together, by number and by the size of the requests, which a vector's answer has, too. It
gives a list with the content of every reply that is there, so asking for all of a hundred institutions' vectors at once
would hold them all in memory."""
_GRACE_S: Final = 30.0
"""Seconds that Flower keeps a request beyond our deadline, so that only our own deadline counts."""
_UNAVAILABLE: Final = frozenset({3, 4, 5})
"""Flower's error codes for a message, a reply or a node that is gone."""


class FailureKind(StrEnum):
    """Why no reply bytes came."""

    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    CLIENT_ERROR = "client_error"
    MALFORMED = "malformed"


@dataclass(frozen=True)
class Failure:
    """Stands for the reply of a node that gave none."""

    kind: FailureKind


class Transport(Protocol):
    """Requests to nodes, each named by an integer that stays the same when a run is resumed."""

    def nodes(self, *, at_least: int, timeout_s: float) -> tuple[int, ...]:
        """Nodes that can be asked, sorted; fewer than ``at_least`` only once ``timeout_s`` has passed."""
        ...

    def exchange(self, requests: Mapping[int, bytes], *, timeout_s: float) -> Iterator[tuple[int, bytes | Failure]]:
        """Exactly one reply or failure for each request, as they arrive; at the deadline the rest are timeouts."""
        ...


class GridTransport:
    """A :class:`Transport` on Flower's grid.

    A reply that nobody waits for (late, a duplicate, or to an unknown message) is ignored.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        addresses: Callable[[], Mapping[int, int]] | None = None,
        deadline: Callable[[float], Callable[[], bool]] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Bind to a grid.

        Args:
            grid: Flower's grid.
            addresses: Gives Flower's id of each node by our name for it; absent: its id is its name.
            deadline: Gives, for a time in seconds, the question whether it has passed; absent: by the clock.
            stop: Asked at every look; True ends all waiting with :class:`RoundFailed`.

        """
        self._grid = grid
        self._addresses = addresses or (lambda: {node: node for node in grid.get_node_ids()})
        self._deadline = deadline or wall_clock_deadline
        self._stop = stop

    def nodes(self, *, at_least: int, timeout_s: float) -> tuple[int, ...]:
        """See :class:`Transport`.

        Raises:
            RoundFailed: ``stop`` said so.

        """
        is_late = self._deadline(timeout_s)
        while len(found := self._addresses()) < at_least and not is_late():
            self._pause()
        return tuple(sorted(found))

    def exchange(self, requests: Mapping[int, bytes], *, timeout_s: float) -> Iterator[tuple[int, bytes | Failure]]:
        """See :class:`Transport`.

        Raises:
            RoundFailed: ``stop`` said so.

        """
        is_late = self._deadline(timeout_s)
        waiting: dict[str, int] = {}
        addresses = self._addresses()
        largest = max(map(len, requests.values()), default=1)
        at_once = max(1, min(_PULLED_AT_ONCE, _PULLED_BYTES // max(1, largest)))
        for node, request in requests.items():
            message_id = self._push(addresses.get(node), request, timeout_s)
            if message_id is None:
                yield node, Failure(FailureKind.UNREACHABLE)
            else:
                waiting[message_id] = node
        while waiting and not is_late():
            before = len(waiting)
            for asked in _in_parts(list(waiting), at_once):
                for reply in self._grid.pull_messages(asked):
                    # by message id: an error reply carries the coordinator's own node id as its source
                    node_or_none = waiting.pop(reply.metadata.reply_to_message_id, None)
                    if node_or_none is not None:
                        yield node_or_none, _body(reply)
            if len(waiting) == before:
                self._pause()
        for node in waiting.values():
            yield node, Failure(FailureKind.TIMEOUT)

    def _push(self, address: int | None, request: bytes, timeout_s: float) -> str | None:
        """Flower's id of the message, or None if Flower did not take it."""
        if address is None:
            return None
        content = RecordDict({RECORD: ConfigRecord({FIELD: request})})
        message = Message(content, address, MESSAGE_TYPE, ttl=timeout_s + _GRACE_S)
        # one by one, because the grid leaves messages out of its answer that it does not take
        return next(iter(self._grid.push_messages([message])), None) or None

    def _pause(self) -> None:
        if self._stop():
            raise RoundFailed("the engine that reaches the institutions has stopped; see its message above")
        time.sleep(POLL_S)


def _in_parts(message_ids: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(message_ids), size):
        yield message_ids[start : start + size]


def wall_clock_deadline(seconds: float) -> Callable[[], bool]:
    """Whether ``seconds`` have passed since now."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def _body(reply: Message) -> bytes | Failure:
    if reply.has_error():
        kind = FailureKind.UNREACHABLE if reply.error.code in _UNAVAILABLE else FailureKind.CLIENT_ERROR
        _log.warning("no reply from a node: Flower's error code %d", reply.error.code)
        return Failure(kind)
    record = reply.content.config_records.get(RECORD)
    body = None if record is None else record.get(FIELD)
    return body if isinstance(body, bytes) else Failure(FailureKind.MALFORMED)
