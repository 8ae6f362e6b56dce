"""What passes the public listener, one test for each part of its guarantee, against a recorded SuperLink."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from server.guard import Guard, is_allowed


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
