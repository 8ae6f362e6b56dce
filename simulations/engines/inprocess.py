"""Every institution in this process: a Flower grid that calls the ClientApp itself.

A message is handled when its reply is asked for, one after the other and in the order of sending, so that a thousand
institutions cost no more memory than one, and the same run gives the same bits.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from common.wire.messages import FIELD, RECORD
from server.rounds.transport import GridTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from flwr.clientapp import ClientApp

    from server.rounds.transport import Transport

T = TypeVar("T")

_COORDINATOR: Final = 1
"""Flower's node id of the coordinator."""
_FIRST_NODE: Final = 2
_RUN_ID: Final = 1
_NODE_UNAVAILABLE: Final = 5
_CLIENT_APP_RAISED: Final = 2


class Fault(Enum):
    """What can be made to go wrong with one message to one institution."""

    LOST = "lost"
    """The node dies over it: Flower's own error reply."""
    SILENT = "silent"
    """No reply ever: a timeout, once all others have answered."""
    CRASH = "crash"
    """The ClientApp raises: Flower's error reply."""
    GARBAGE = "garbage"
    """Reply bytes that are no message."""
    TWICE = "twice"
    """The reply comes two times."""


class InProcessGrid(Grid):
    """A Flower grid of ``count`` institutions in this process.

    Institution i in 0 … ``count`` − 1 is Flower's node i + 2, with ``partition-id`` i in its node configuration.
    """

    def __init__(
        self, client_app: ClientApp, count: int, *, faults: Callable[[int, int], Fault | None] | None = None
    ) -> None:
        """Make the institutions.

        Args:
            client_app: Answers for all of them.
            count: Number of institutions.
            faults: Asked with institution and index of its message (0, 1, …) for what goes wrong with it.

        """
        # a Message takes its sender from here, as in each of Flower's own processes
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, _RUN_ID, _COORDINATOR
        self._client_app = client_app
        self._faults = faults or (lambda _institution, _index: None)
        self._contexts = {i + _FIRST_NODE: _context(i, count) for i in range(count)}
        self._seen = dict.fromkeys(self._contexts, 0)
        self._queue: dict[str, Message] = {}
        self._sent = 0

    @property
    def addresses(self) -> dict[int, int]:
        """Flower's node id of each institution."""
        return {node - _FIRST_NODE: node for node in self._contexts}

    @property
    def is_idle(self) -> bool:
        """Whether no message waits: what has not been answered by now never will be."""
        return not self._queue

    @property
    def run(self) -> Run:
        """An empty description: there is only this one run."""
        return Run.create_empty(_RUN_ID)

    def set_run(self, run: Run) -> NoReturn:
        """There is only this one run."""
        raise NotImplementedError

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to a node; Flower's older way to make one."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> list[int]:
        """Flower's node ids."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Take the messages; their ids."""
        taken = []
        for message in messages:
            self._sent += 1
            message_id = f"message-{self._sent}"
            message.metadata.__dict__["_message_id"] = message_id  # as Flower's own grids do
            self._queue[message_id] = message
            taken.append(message_id)
        return taken

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Handle the first of the messages that still wait; its reply."""
        for message_id in message_ids:
            message = self._queue.pop(message_id, None)
            replies = [] if message is None else self._replies(message)
            if replies:
                return replies
        return []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """All replies that come; silence is not waited for."""
        del timeout
        replies = []
        waiting = self.push_messages(messages)
        while found := self.pull_messages(waiting):
            replies += found
        return replies

    def _replies(self, message: Message) -> list[Message]:
        node = message.metadata.dst_node_id
        fault = self._faults(node - _FIRST_NODE, self._seen[node])
        self._seen[node] += 1
        if fault is Fault.SILENT:
            return []
        if fault is Fault.LOST:
            return [_error_reply(message, _NODE_UNAVAILABLE)]
        if fault is Fault.CRASH:
            return [_error_reply(message, _CLIENT_APP_RAISED)]
        if fault is Fault.GARBAGE:
            return [Message(RecordDict({RECORD: ConfigRecord({FIELD: b"\xc1garbage"})}), reply_to=message)]
        reply = self._client_app(message, self._contexts[node])
        return [reply, reply] if fault is Fault.TWICE else [reply]


def run_inprocess(
    server: Callable[[Transport], T],
    client_app: ClientApp,
    count: int,
    *,
    faults: Callable[[int, int], Fault | None] | None = None,
) -> T:
    """Run the coordinator against ``count`` institutions in this process; what ``server`` returns.

    Institutions answer one after the other, so the round's time limit does not apply: silence is a timeout once every
    other institution has answered.
    """
    grid = InProcessGrid(client_app, count, faults=faults)
    return server(GridTransport(grid, addresses=lambda: grid.addresses, deadline=lambda _seconds: lambda: grid.is_idle))


def _context(institution: int, count: int) -> Context:
    return Context(
        run_id=_RUN_ID,
        node_id=institution + _FIRST_NODE,
        node_config={"partition-id": institution, "num-partitions": count},
        state=RecordDict(),
        run_config={},
    )


def _error_reply(message: Message, code: int) -> Message:
    """As Flower makes it: from the coordinator's own node."""
    reply = Message(Error(code=code, reason="injected"), reply_to=message)
    reply.metadata.__dict__["_src_node_id"] = _COORDINATOR
    return reply
