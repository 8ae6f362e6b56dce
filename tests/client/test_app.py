from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.app import app as deployed_app
from client.app import make_client_app
from common.wire.messages import FIELD, MESSAGE_TYPE, RECORD, Refusal, RefusalCode
from common.wire.replies import decode_reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from flwr.clientapp import ClientApp

ROOT = Path(__file__).parents[2]
PRIVATE = "/mnt/patients/jane-doe.png"


def ask(app: ClientApp, content: RecordDict | None = None, node: Any = None) -> Any:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    content = RecordDict({RECORD: ConfigRecord({FIELD: b"request"})}) if content is None else content
    context = Context(run_id=1, node_id=5, node_config=node or {"partition-id": 3}, state=RecordDict(), run_config={})
    reply = app(Message(content, 5, MESSAGE_TYPE), context)
    assert set(reply.content) == {RECORD}
    assert set(reply.content.config_records[RECORD]) == {FIELD}
    return reply.content.config_records[RECORD][FIELD]


class Steward:
    def __init__(self, answer: Callable[[bytes], Any]) -> None:
        self.answer = answer


def test_bytes_in_bytes_out() -> None:
    asked = []

    def connect(context: Context) -> Steward:
        asked.append(context.node_config["partition-id"])
        return Steward(lambda request: b"reply to " + request)

    assert ask(make_client_app(connect)) == b"reply to request"
    assert asked == [3]


def failing(error: BaseException) -> Callable[[Any], Any]:
    def fail(_: Any) -> Any:
        raise error

    return fail


ERRORS = [
    ValueError(PRIVATE),
    OSError(2, "gone", PRIVATE),
    MemoryError(PRIVATE),
    SystemExit(PRIVATE),
    RecursionError(PRIVATE),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("place", ["connect", "answer"])
def test_no_text_of_an_error_leaves(error: BaseException, place: str, caplog: pytest.LogCaptureFixture) -> None:
    connect = failing(error) if place == "connect" else lambda _: Steward(failing(error))
    with caplog.at_level(logging.ERROR):
        body = ask(make_client_app(connect))
    assert decode_reply(body) == Refusal(code=RefusalCode.INTERNAL)
    assert b"jane" not in body
    assert PRIVATE in caplog.text


@pytest.mark.parametrize("odd", [None, "text", 3, bytearray(b"reply")])
def test_an_answer_that_is_no_bytes_is_an_internal_error(odd: Any) -> None:
    body = ask(make_client_app(lambda _: Steward(lambda _: odd)))
    assert decode_reply(body) == Refusal(code=RefusalCode.INTERNAL)


def test_an_interrupt_is_not_swallowed() -> None:
    with pytest.raises(KeyboardInterrupt):
        ask(make_client_app(failing(KeyboardInterrupt())))


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"other": ConfigRecord({FIELD: b"request"})}),
        RecordDict({RECORD: ConfigRecord()}),
        RecordDict({RECORD: ConfigRecord({FIELD: "text"})}),
    ],
)
def test_a_message_without_request_bytes_is_malformed(content: RecordDict) -> None:
    body = ask(make_client_app(failing(AssertionError("the steward must not be asked"))), content)
    assert decode_reply(body) == Refusal(code=RefusalCode.MALFORMED)


def test_the_deployed_app_refuses_without_a_steward(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        body = ask(deployed_app)
    assert decode_reply(body) == Refusal(code=RefusalCode.NOT_ALLOWED)
    assert "--node-config" in caplog.text


def test_the_shim_works_with_nothing_but_the_bundle(tmp_path: Path) -> None:
    (tmp_path / "client").mkdir()
    for name in ("client/__init__.py", "client/app.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "common", tmp_path / "common")
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import client.app; "
        "print(client.app.__file__); "
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('client', 'server', 'simulations', 'torch')))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [str(tmp_path / "client" / "app.py"), "['client', 'client.app']"]
