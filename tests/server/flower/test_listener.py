"""What passes the public listener, one test for each part of its guarantee, against a recorded SuperLink."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from server.flower.listener import Guard, is_allowed

if TYPE_CHECKING:
    from collections.abc import MutableMapping


class SuperLink(httpx.AsyncBaseTransport):
    """Remembers what reaches it."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, bytes]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.seen.append((request.method, request.url.raw_path.decode(), await request.aread()))
        return httpx.Response(200, stream=httpx.ByteStream(b"answer"))


def ask(method: str, path: str, body: bytes = b"", *, cap: int = 100) -> tuple[httpx.Response, SuperLink]:
    behind = SuperLink()

    async def go() -> httpx.Response:
        async with httpx.AsyncClient(transport=behind, base_url="https://superlink") as inside:
            front = httpx.ASGITransport(Guard(inside, maximum_body=cap))
            async with httpx.AsyncClient(transport=front, base_url="https://public") as outside:
                return await outside.request(method, path, content=body)

    return asyncio.run(go()), behind


def test_a_fleet_request_passes_with_its_body_and_answer() -> None:
    response, behind = ask("POST", "/v1/fleet/pull-messages", b"content")
    assert (response.status_code, response.content) == (200, b"answer")
    assert behind.seen == [("POST", "/v1/fleet/pull-messages", b"content")]


def test_health_passes() -> None:
    assert ask("GET", "/health")[1].seen == [("GET", "/health", b"")]


def test_the_query_is_dropped() -> None:
    assert ask("POST", "/v1/fleet/get-run?a=1")[1].seen == [("POST", "/v1/fleet/get-run", b"")]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/fleet/get-run"),
        ("POST", "/health"),
        ("POST", "/v1/control/start-run"),
        ("POST", "/v1/fleet/"),
        ("POST", "/v1/fleet/a/b"),
        ("POST", "/v1/fleet/-a"),
        ("POST", "/v1/fleet/a-"),
        ("POST", "/v1/fleet/a--b"),
        ("POST", "/v1/fleet/%2e%2e/control/start-run"),
        ("POST", "/V1/fleet/get-run"),
        ("GET", "/openapi.json"),
        ("OPTIONS", "/v1/fleet/get-run"),
    ],
)
def test_all_else_is_not_found_and_never_reaches_the_superlink(method: str, path: str) -> None:
    response, behind = ask(method, path)
    assert response.status_code == 404
    assert behind.seen == []


@pytest.mark.parametrize(
    "path", [b"", b"/v1/fleet/get-run\n", b"//v1/fleet/get-run", b"/v1/fleet/get-run/", b"/health/"]
)
def test_bytes_near_an_allowed_path_are_not_it(path: bytes) -> None:
    assert not is_allowed("POST", path)
    assert not is_allowed("GET", path)


def test_a_body_may_have_the_cap_and_no_byte_more() -> None:
    assert ask("POST", "/v1/fleet/push-object", bytes(100))[0].status_code == 200
    response, behind = ask("POST", "/v1/fleet/push-object", bytes(101))
    assert (response.status_code, behind.seen) == (413, [])


class Slow(httpx.AsyncBaseTransport):
    """A SuperLink that tells how much of a body it has while the body still comes."""

    def __init__(self) -> None:
        self.pieces: list[int] = []
        self.headers: dict[str, str] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.headers = dict(request.headers)
        assert isinstance(request.stream, httpx.AsyncByteStream)
        async for piece in request.stream:
            self.pieces.append(len(piece))
        return httpx.Response(200, stream=httpx.ByteStream(b""))


def send_events(
    events: list[dict[str, Any]], headers: list[tuple[bytes, bytes]], *, cap: int = 100
) -> tuple[int, Slow, list[int]]:
    """The answer's status, the SuperLink, and how many pieces it had when each event was asked for."""
    behind, had, status = Slow(), [], 0

    async def receive() -> dict[str, Any]:
        had.append(len(behind.pieces))
        if len(had) > len(events):
            await asyncio.sleep(3600)
        return events[len(had) - 1]

    async def send(event: MutableMapping[str, Any]) -> None:
        nonlocal status
        status = event.get("status", status)

    async def go() -> None:
        async with httpx.AsyncClient(transport=behind, base_url="https://superlink") as inside:
            scope = {"type": "http", "method": "POST", "path": "x", "raw_path": b"/v1/fleet/push-object"}
            await Guard(inside, maximum_body=cap)({**scope, "headers": headers}, receive, send)

    asyncio.run(go())
    return status, behind, had


def pieces(*sizes: int) -> list[dict[str, Any]]:
    last = len(sizes) - 1
    return [
        {"type": "http.request", "body": bytes(size), "more_body": number < last} for number, size in enumerate(sizes)
    ]


CHUNKED = [(b"transfer-encoding", b"chunked")]


def test_a_body_is_passed_on_as_it_comes() -> None:
    status, behind, had = send_events(pieces(30, 30, 30), CHUNKED)
    assert (status, behind.pieces) == (200, [30, 30, 30])
    assert had == [0, 1, 2]  # none is kept back until the next has come


def test_a_bodys_length_is_passed_on() -> None:
    _, behind, _ = send_events(pieces(30, 30), [(b"content-length", b"60")])
    assert behind.headers["content-length"] == "60"
    assert "transfer-encoding" not in behind.headers


def test_a_body_of_unknown_length_is_cut_at_the_cap() -> None:
    assert send_events(pieces(60, 40), CHUNKED)[0] == 200
    status, behind, _ = send_events(pieces(60, 41, 5), CHUNKED)
    assert status == 413
    assert sum(behind.pieces) <= 100


def test_a_body_that_says_it_is_too_large_is_not_even_asked_for() -> None:
    status, behind, had = send_events(pieces(101), [(b"content-length", b"101")])
    assert (status, behind.pieces, had) == (413, [], [])


def test_a_sender_that_goes_or_waits_too_long_takes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    assert send_events([*pieces(1, 1)[:1], {"type": "http.disconnect"}], CHUNKED)[0] == 400
    monkeypatch.setattr("server.flower.listener._PIECE_SECONDS", 0.05)
    assert send_events(pieces(1, 1)[:1], CHUNKED)[0] == 400


def test_the_way_to_the_superlink_is_closed_at_the_end() -> None:
    said: list[str] = []

    async def go() -> bool:
        inside = httpx.AsyncClient(transport=SuperLink(), base_url="https://superlink")
        events = iter(({"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}))

        async def receive() -> dict[str, Any]:
            return next(events)

        async def send(event: MutableMapping[str, Any]) -> None:
            said.append(event["type"])

        await Guard(inside, maximum_body=1)({"type": "lifespan"}, receive, send)
        return inside.is_closed

    assert asyncio.run(go())
    assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_a_minute_of_requests_is_one_line(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A site asks several times a second; what else the log says must be found in it."""
    caplog.set_level("INFO", "server.flower.listener")
    now = [0.0]
    monkeypatch.setattr("server.flower.listener.time.monotonic", lambda: now[0])
    guard = Guard(httpx.AsyncClient(transport=SuperLink(), base_url="https://superlink"), maximum_body=100)

    async def go() -> None:
        front = httpx.ASGITransport(guard)
        async with httpx.AsyncClient(transport=front, base_url="https://public") as outside:
            for _ in range(5):
                await outside.get("/health")
                await outside.get("/openapi.json")
            now[0] = 61.0
            await outside.get("/health")

    asyncio.run(go())
    assert caplog.messages == ["requests answered in the last 61 s: 6 with 200, 5 with 404"]
