from __future__ import annotations

import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from common.errors import RoundFailed
from common.wire.messages import FIELD, MESSAGE_TYPE, RECORD
from server.rounds.transport import Failure, FailureKind, GridTransport

if TYPE_CHECKING:
    from collections.abc import Iterable


class ScriptedGrid:
    """Takes messages and gives, look after look, what a test says."""

    def __init__(self, nodes: Iterable[int] = (11, 12, 13)) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        self.node_ids = list(nodes)
        self.sent: dict[str, Message] = {}
        self.refuse: set[int] = set()
        self.looks: list[list[Message]] = []

    def get_node_ids(self) -> list[int]:
        return self.node_ids

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        taken = [message for message in messages if message.metadata.dst_node_id not in self.refuse]
        for message in taken:
            message.metadata.__dict__["_message_id"] = f"id-{message.metadata.dst_node_id}"
            self.sent[message.metadata.message_id] = message
        return [message.metadata.message_id for message in taken]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        self.asked = list(message_ids)
        return self.looks.pop(0) if self.looks else []

    def reply(self, node: int, body: bytes = b"reply") -> Message:
        content = RecordDict({RECORD: ConfigRecord({FIELD: body})})
        return Message(content, reply_to=self._request(node))

    def error(self, node: int, code: int) -> Message:
        """As Flower makes it: from the coordinator's own node id."""
        made = Message(Error(code=code, reason="/home/secret/path"), reply_to=self._request(node))
        made.metadata.__dict__["_src_node_id"] = 1
        return made

    def _request(self, node: int) -> Any:
        metadata = SimpleNamespace(
            run_id=1,
            dst_node_id=node,
            src_node_id=1,
            message_id=f"id-{node}",
            group_id="",
            message_type=MESSAGE_TYPE,
            src_task_id=1,
            dst_task_id=None,
            created_at=time.time(),
            ttl=60.0,
        )
        request = Message(RecordDict(), node, MESSAGE_TYPE)
        request.__dict__["_metadata"] = metadata
        return request


def exchange(grid: ScriptedGrid, *, timeout_s: float = 0.3, **options: Any) -> dict[int, bytes | Failure]:
    transport = GridTransport(grid, **options)  # type: ignore[arg-type]
    outcomes = list(transport.exchange({node: f"ask {node}".encode() for node in (11, 12, 13)}, timeout_s=timeout_s))
    assert len(outcomes) == 3
    return dict(outcomes)


def test_each_request_gets_its_own_reply() -> None:
    grid = ScriptedGrid()
    grid.looks = [[grid.reply(13, b"c")], [], [grid.reply(11, b"a"), grid.reply(12, b"b")]]
    assert exchange(grid) == {11: b"a", 12: b"b", 13: b"c"}
    assert grid.sent["id-12"].content.config_records[RECORD][FIELD] == b"ask 12"
    assert grid.sent["id-12"].metadata.message_type == MESSAGE_TYPE


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (2, FailureKind.CLIENT_ERROR),
        (8, FailureKind.CLIENT_ERROR),
        (3, FailureKind.UNREACHABLE),
        (5, FailureKind.UNREACHABLE),
    ],
)
def test_an_error_reply_belongs_to_the_node_that_was_asked(
    code: int, kind: FailureKind, caplog: pytest.LogCaptureFixture
) -> None:
    grid = ScriptedGrid()
    grid.looks = [[grid.error(12, code), grid.reply(11), grid.reply(13)]]
    assert exchange(grid)[12] == Failure(kind)
    assert "secret" not in caplog.text


def test_doubled_and_unknown_replies_are_ignored() -> None:
    grid = ScriptedGrid()
    grid.looks = [
        [grid.reply(11, b"first"), grid.reply(11, b"second"), grid.reply(99)],
        [grid.reply(11, b"third"), grid.reply(12), grid.reply(13)],
    ]
    assert exchange(grid) == {11: b"first", 12: b"reply", 13: b"reply"}


def test_silence_is_a_timeout_at_our_own_deadline() -> None:
    grid = ScriptedGrid()
    grid.looks = [[grid.reply(11)]]
    started = time.monotonic()
    found = exchange(grid, timeout_s=0.25)
    assert found == {11: b"reply", 12: Failure(FailureKind.TIMEOUT), 13: Failure(FailureKind.TIMEOUT)}
    assert 0.25 <= time.monotonic() - started < 2.0
    assert grid.asked == ["id-12", "id-13"]


def test_a_message_that_flower_does_not_take_shifts_no_other() -> None:
    grid = ScriptedGrid()
    grid.refuse = {11}
    grid.looks = [[grid.reply(12, b"b"), grid.reply(13, b"c")]]
    assert exchange(grid) == {11: Failure(FailureKind.UNREACHABLE), 12: b"b", 13: b"c"}


def test_a_node_without_address_is_unreachable() -> None:
    grid = ScriptedGrid(nodes=(11, 12))
    grid.looks = [[grid.reply(11), grid.reply(12)]]
    assert exchange(grid)[13] == Failure(FailureKind.UNREACHABLE)


@pytest.mark.parametrize(
    "content",
    [RecordDict(), RecordDict({RECORD: ConfigRecord()}), RecordDict({RECORD: ConfigRecord({FIELD: "text"})})],
)
def test_a_reply_without_bytes_is_malformed(content: RecordDict) -> None:
    grid = ScriptedGrid()
    odd = grid.reply(12)
    odd.content = content
    grid.looks = [[grid.reply(11), odd, grid.reply(13)]]
    assert exchange(grid)[12] == Failure(FailureKind.MALFORMED)


def test_names_are_translated_to_flowers_ids() -> None:
    grid = ScriptedGrid(nodes=())
    transport = GridTransport(grid, addresses=lambda: {0: 500, 1: 400})  # type: ignore[arg-type]
    grid.looks = [[grid.reply(400, b"one"), grid.reply(500, b"zero")]]
    assert transport.nodes(at_least=1, timeout_s=1) == (0, 1)
    assert dict(transport.exchange({0: b"", 1: b""}, timeout_s=1)) == {0: b"zero", 1: b"one"}


def test_waits_for_nodes_but_not_for_ever() -> None:
    grid = ScriptedGrid(nodes=(3,))
    transport = GridTransport(grid)  # type: ignore[arg-type]
    started = time.monotonic()
    assert transport.nodes(at_least=2, timeout_s=0.2) == (3,)
    assert time.monotonic() - started >= 0.2


def test_a_stopped_engine_ends_all_waiting() -> None:
    with pytest.raises(RoundFailed, match="stopped"):
        exchange(ScriptedGrid(), timeout_s=60, stop=lambda: True)


def test_no_more_replies_than_a_few_are_held_at_a_time() -> None:
    class FullGrid(ScriptedGrid):
        """Every reply is there at once, and is given whenever it is asked for, as Flower does."""

        given = 0

        def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
            asked = [int(each.removeprefix("id-")) for each in message_ids]
            self.given += len(asked)
            return [self.reply(node) for node in asked]

    nodes = range(100, 200)
    grid = FullGrid(nodes)
    transport = GridTransport(grid)  # type: ignore[arg-type]
    taken, ahead = 0, []
    for _ in transport.exchange(dict.fromkeys(nodes, b"ask"), timeout_s=5):
        taken += 1
        ahead.append(grid.given - taken)
    assert taken == len(nodes)
    assert max(ahead) < 8
