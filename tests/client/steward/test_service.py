"""The steward's door: what a hostile shim gets through it, and that it stays open for others."""

from __future__ import annotations

import logging
import os
import random
import socket
import stat
import threading
from collections import Counter
from typing import TYPE_CHECKING

import grpc
import pytest

from client.steward.admission import Admission, Passage
from client.steward.service import Limits
from client.steward.socket import SocketPlace, check_token_mode, create_token_file, held
from common.errors import StewardRunning, StewardUnavailable
from common.wire.steward_link import HEALTH, StewardAddress, StewardLink, read_token
from tests.client.sockets import (
    BUSY,
    INTERNAL,
    NO_DATA,
    NOT_ALLOWED,
    WRONG,
    Counting,
    at_once,
    opened,
    raw_call,
)

if TYPE_CHECKING:
    from pathlib import Path

CAPTION = "mrs-jane-doe-left-lung"


def test_bytes_in_bytes_out(tmp_path: Path) -> None:
    steward = Counting(lambda request: b"reply to " + request)
    with opened(tmp_path, steward) as door:
        assert door.link().answer(b"\x00request") == b"reply to \x00request"
        big = os.urandom(20 * 2**20)  # above gRPC's own default limit
        assert door.link().answer(big) == b"reply to " + big


def test_socket_and_folder_are_the_owners_alone(tmp_path: Path) -> None:
    with opened(tmp_path, Counting()) as door:
        assert stat.S_IMODE(door.place.path.stat().st_mode) == 0o600
        assert stat.S_IMODE(door.place.path.parent.stat().st_mode) == 0o700
    assert not door.place.path.exists()


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("darkroom-token", "ba" * 32),),
        (("darkroom-token", ""),),
        (("darkroom-token", "ab" * 31),),
        (("darkroom-token", "ab" * 32), ("darkroom-token", "ab" * 32)),
        (("authorization", "ab" * 32),),
    ],
)
@pytest.mark.parametrize("method", ["/darkroom.Steward/Answer", HEALTH])
def test_without_the_token_a_call_learns_nothing_but_that(tmp_path: Path, metadata: object, method: str) -> None:
    steward = Counting()
    with opened(tmp_path, steward) as door, door.channel() as channel:
        assert raw_call(channel, [b"x" * 100_000], metadata, method) == (grpc.StatusCode.UNAUTHENTICATED, "")
        door.settle()
        assert door.noted.total("unauthenticated") == 1
        assert door.link().answer(b"y") == NO_DATA
    assert steward.asked == [b"y"]


def test_the_shim_turns_a_wrong_token_into_a_refusal(tmp_path: Path) -> None:
    with opened(tmp_path, Counting()) as door:
        assert door.link(WRONG).answer(b"x") == NOT_ALLOWED
        with pytest.raises(StewardUnavailable, match="UNAUTHENTICATED"):
            door.link(WRONG).health()


def test_there_are_two_calls_and_no_more(tmp_path: Path) -> None:
    with opened(tmp_path, Counting()) as door, door.channel() as channel:
        for method in ("/darkroom.Steward/Shell", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"):
            assert raw_call(channel, [b""], method=method) == (grpc.StatusCode.UNIMPLEMENTED, "")


def test_a_call_without_a_body_or_with_one_too_large_is_turned_away(tmp_path: Path) -> None:
    steward = Counting()
    with opened(tmp_path, steward, Limits(message_bytes=1000)) as door, door.channel() as channel:
        raw_call(channel, [])
        code, _ = raw_call(channel, [b"x" * 1001])
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert door.link().answer(b"x" * 1000) == NO_DATA
        door.settle()
        assert door.noted.total("no_body") == 2
    assert steward.asked == [b"x" * 1000]


def test_a_caller_that_sends_no_body_is_hung_up_on(tmp_path: Path) -> None:
    never = threading.Event()

    def body() -> object:
        never.wait(30)
        yield b"late"

    with opened(tmp_path, Counting(), Limits(body_seconds=0.3)) as door, door.channel() as channel:
        assert raw_call(channel, body())[0] == grpc.StatusCode.CANCELLED
        assert door.link().answer(b"y") == NO_DATA
        never.set()


def test_a_flood_is_refused_and_does_not_stop_the_steward(tmp_path: Path) -> None:
    """One inside at a time, so many wait, all the others are told BUSY; every call is answered or counted."""
    release, entered = threading.Event(), threading.Event()

    def slow(request: bytes) -> bytes:
        if request == b"first":
            entered.set()
            release.wait(30)
        return b"done"

    steward = Counting(slow)
    with opened(tmp_path, steward, Limits(waiting=3)) as door:
        results: list[bytes] = []
        first = threading.Thread(target=lambda: results.append(door.link().answer(b"first")))
        first.start()
        assert entered.wait(10)
        ends: list[bytes] = []

        def flood() -> None:
            answer = door.link().answer(b"flood")
            ends.append(answer)
            if len(ends) >= 297:  # the rest waits for the first to end
                release.set()

        at_once([flood] * 300)
        first.join()
        assert results == [b"done"]
        assert Counter(ends) == {b"done": 3, BUSY: 297}
        assert steward.most == 1
        door.settle()
        assert door.noted.total("busy_full") == 297
        assert len(door.noted.entries) < 10
        assert door.link().answer(b"after") == b"done"


def test_a_flood_does_not_keep_the_steward_from_looking_after_itself() -> None:
    """Callers that hold every place, and take each turn as soon as it is free, delay its care by one turn."""
    gate, over, seen = Admission(waiting=2, seconds=30.0), threading.Event(), list[str]()

    def flood() -> None:
        while not over.is_set():
            with gate.passage(lambda: True) as passage:
                if passage is Passage.PASSED:
                    seen.append("caller")
                    over.wait(0.05)

    callers = [threading.Thread(target=flood) for _ in range(6)]
    for each in callers:
        each.start()
    try:
        for _ in range(3):
            while gate.present <= gate.waiting:
                over.wait(0.01)
            with gate.passage(lambda: True, by="care") as passage:
                assert passage is Passage.PASSED
                seen.append("care")
    finally:
        over.set()
        for each in callers:
            each.join()
    assert seen.count("care") == 3
    assert seen.count("caller") > 3


def test_a_flood_without_the_token_reaches_nobody(tmp_path: Path) -> None:
    steward = Counting()
    with opened(tmp_path, steward) as door:
        ends = at_once([lambda: door.link(WRONG).answer(b"x")] * 200)
        assert set(ends) <= {NOT_ALLOWED, BUSY}
        assert door.link().answer(b"y") == NO_DATA
    assert steward.asked == [b"y"]


def test_what_the_steward_raises_stays_inside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: bytes) -> bytes:
        raise ValueError(CAPTION)

    with opened(tmp_path, Counting(fail)) as door, caplog.at_level(logging.DEBUG):
        assert door.link().answer(b"x") == INTERNAL
    assert CAPTION not in caplog.text
    assert "the steward failed: ValueError at" in caplog.text


def test_random_bytes_never_end_the_steward(tmp_path: Path) -> None:
    rng = random.Random("service/random-bytes")  # noqa: S311 - a named seed for a test
    steward = Counting()
    with opened(tmp_path, steward, Limits(refusals_per_minute=10_000)) as door, door.channel() as channel:
        for _ in range(100):
            assert raw_call(channel, [rng.randbytes(rng.randrange(300))]) == NO_DATA
    assert len(steward.asked) == 100


def test_too_many_refusals_a_minute_are_told_busy(tmp_path: Path) -> None:
    steward = Counting()
    with opened(tmp_path, steward, Limits(refusals_per_minute=5)) as door:
        ends = [door.link().answer(b"x") for _ in range(9)]
        assert ends == [NO_DATA] * 5 + [BUSY] * 4
        door.settle()
        assert door.noted.total("too_many_refusals") == 4
    assert len(steward.asked) == 5


def test_health_tells_of_the_service_alone(tmp_path: Path) -> None:
    with opened(tmp_path, Counting()) as door:
        health = door.link().health()
        assert (health.serving, health.busy, health.waiting) == (True, False, 0)


def test_a_request_line_holds_no_text_of_the_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(tmp_path, Counting()) as door, caplog.at_level(logging.INFO):
        door.link().answer(b"\x82\xa4type\xb6" + CAPTION.encode() + b"\xa5round\x07")
        door.link().answer(CAPTION.encode())
    lines = [record.getMessage() for record in caplog.records if record.name == "client.steward.service"]
    assert len(lines) == 2
    assert all(line.startswith("request kind=unreadable") and "outcome=no_data" in line for line in lines)
    assert CAPTION not in caplog.text


def test_one_steward_holds_a_socket(tmp_path: Path) -> None:
    with opened(tmp_path, Counting()) as door:
        with pytest.raises(StewardRunning), held(door.place):
            pass
        assert door.link().answer(b"x") == NO_DATA


def test_a_stale_socket_is_removed_and_anything_else_is_not(tmp_path: Path) -> None:
    place = SocketPlace(path=tmp_path / "run" / "s.sock")
    place.path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(place.path))
    with held(place):
        assert not place.path.exists()
    place.path.write_text("a file")
    with pytest.raises(StewardUnavailable, match="no socket"), held(place):
        pass
    assert place.path.read_text() == "a file"


def test_a_folder_open_to_others_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(0o755)
    with pytest.raises(StewardUnavailable, match="chmod 700"), held(SocketPlace(path=folder / "s.sock")):
        pass


def test_a_path_that_no_socket_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StewardUnavailable, match="shorter"), held(SocketPlace(path=tmp_path / ("x" * 90) / "s.sock")):
        pass


def test_a_token_is_secret_and_its_file_the_owners(tmp_path: Path) -> None:
    path = tmp_path / "token"
    create_token_file(path)
    check_token_mode(path, group=False)
    token = read_token(path)
    assert token.reveal().decode() not in repr(StewardAddress(target="unix:///x", token=token))
    with pytest.raises(FileExistsError):
        create_token_file(path)
    path.chmod(0o640)
    check_token_mode(path, group=True)
    with pytest.raises(StewardUnavailable, match="chmod 600"):
        check_token_mode(path, group=False)


@pytest.mark.parametrize("content", ["", "ab" * 31, "ab" * 33, "AB" * 32, "xy" * 32, "é" * 32])
def test_a_file_that_is_no_token_is_refused_and_not_quoted(tmp_path: Path, content: str) -> None:
    path = tmp_path / "token"
    path.write_text(content)
    with pytest.raises(StewardUnavailable) as caught:
        read_token(path)
    assert not content or content not in str(caught.value)


def test_tcp_needs_certificates_and_a_socket_has_none() -> None:
    with pytest.raises(StewardUnavailable, match="certificates"):
        StewardAddress(target="127.0.0.1:1", token=WRONG)


def test_nobody_there_is_a_refusal(tmp_path: Path) -> None:
    link = StewardLink(address=StewardAddress(target=f"unix://{tmp_path}/none.sock", token=WRONG), seconds=5.0)
    assert link.answer(b"x") == INTERNAL


def test_stopping_lets_the_round_end_and_nobody_else_in(tmp_path: Path) -> None:
    release, entered = threading.Event(), threading.Event()

    def slow(_: bytes) -> bytes:
        entered.set()
        release.wait(30)
        return b"whole"

    steward = Counting(slow)
    with opened(tmp_path, steward) as door:
        ends: list[bytes] = []
        first = threading.Thread(target=lambda: ends.append(door.link().answer(b"first")))
        first.start()
        assert entered.wait(10)
        stopped: list[bool] = []
        stopper = threading.Thread(target=lambda: stopped.append(door.serving.stop(grace=20.0)))
        stopper.start()
        while not door.serving.service.admission.closed:
            pass
        assert door.link().answer(b"second") != b"whole"
        release.set()
        first.join()
        stopper.join()
        assert (ends, stopped) == ([b"whole"], [True])
    assert steward.asked == [b"first"]


def test_a_round_that_does_not_end_is_abandoned(tmp_path: Path) -> None:
    release, entered = threading.Event(), threading.Event()

    def slow(_: bytes) -> bytes:
        entered.set()
        release.wait(30)
        return b"whole"

    with opened(tmp_path, Counting(slow)) as door:
        ends: list[bytes] = []
        first = threading.Thread(target=lambda: ends.append(door.link().answer(b"first")))
        first.start()
        assert entered.wait(10)
        assert door.serving.stop(grace=0.2) is False
        first.join()
        assert ends == [INTERNAL]
        release.set()
