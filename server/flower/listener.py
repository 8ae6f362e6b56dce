"""The public listener: passes Flower's Fleet API to the SuperLink on loopback, and nothing else.

Guarantee: a request gets through if and only if it is ``POST /v1/fleet/NAME`` with NAME of small letters and hyphens,
or ``GET /health``, compared as the bytes that were sent, so that no escape or dot segment is read differently behind
it; its query is dropped and its body is at most the cap. All else is answered here with 404 or 413.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import httpx

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping

    from typing_extensions import Buffer  # what the library's own types say; nothing imports it when it runs

    Event = MutableMapping[str, Any]  # ASGI's own type
    Receive = Callable[[], Awaitable[Event]]
    Send = Callable[[Event], Awaitable[None]]
    Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Passed:
    """One kind of request; the pattern is of the path's bytes as sent, in the syntax that Python and PCRE share."""

    method: str
    path: str


PASSED: Final = (Passed("POST", "/v1/fleet/[a-z]+(?:-[a-z]+)*"), Passed("GET", "/health"))
"""What reaches the SuperLink from outside, here and behind nginx; compared before any decoding.

Flower's Control API has no authentication and shares the SuperLink's port: who reaches it can list runs, register nodes
and start a run, which is code on every site.
"""
_PASSED: Final = tuple((passed.method, re.compile(passed.path.encode())) for passed in PASSED)
_HOP_BY_HOP: Final = frozenset(
    name.encode()
    for name in (
        "connection",
        "content-length",  # set anew
        "expect",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
_PIECE_SECONDS: Final = 30.0
"""Longest wait for a body's next piece: each body that comes holds a connection to the SuperLink."""
_TOLD_EVERY: Final = 60.0
"""Seconds between two lines on what was answered: sites ask several times a second, which would drown all else."""
_ORDINARY: Final = (ssl.SSLWantReadError, ssl.SSLWantWriteError, ssl.SSLZeroReturnError, ssl.SSLEOFError)
_log = logging.getLogger(__name__)


class _Tally:
    """Requests by the status that they were answered with, since the last line."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._since = time.monotonic()

    def add(self, status: int) -> None:
        self._counts[status] += 1
        if time.monotonic() - self._since >= _TOLD_EVERY:
            self.tell()

    def tell(self) -> None:
        seconds, counts = time.monotonic() - self._since, sorted(self._counts.items())
        if counts:
            said = ", ".join(f"{count} with {status}" for status, count in counts)
            _log.info("requests answered in the last %.0f s: %s", seconds, said)
        self._counts.clear()
        self._since = time.monotonic()


class Guard:
    """An ASGI application in front of a SuperLink."""

    def __init__(self, superlink: httpx.AsyncClient, *, maximum_body: int) -> None:
        """Pass to the client's ``base_url``; bodies are at most this many bytes."""
        self._superlink = superlink
        self._maximum_body = maximum_body
        self._tally = _Tally()

    async def __call__(self, scope: Event, receive: Receive, send: Send) -> None:
        """Answer one request; WebSockets and the like are dropped."""
        if scope["type"] == "http":
            started = time.monotonic()
            status = await self._answer(scope, receive, send)
            client = (scope.get("client") or ("unknown",))[0]
            self._tally.add(status)
            # the path is an attacker's text: repr keeps it on one line
            _log.debug("%s %s %r %d %.3fs", client, scope["method"], scope["path"], status, time.monotonic() - started)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})

    async def _answer(self, scope: Event, receive: Receive, send: Send) -> int:
        if not is_allowed(scope["method"], scope.get("raw_path") or b""):
            return await _refuse(send, 404)
        headers = [(name, value) for name, value in scope["headers"] if name.lower() not in _HOP_BY_HOP]
        body = _Body(receive, length=_length(scope["headers"]), most=self._maximum_body)
        if body.is_too_large:
            return await _refuse(send, 413)
        if body.length is not None:
            headers.append((b"content-length", b"%d" % body.length))
        request = self._superlink.build_request(
            scope["method"],
            scope["raw_path"].decode("ascii"),
            headers=headers,
            content=body.pieces() if _has_body(scope["headers"]) else b"",
        )
        return await self._pass(request, body, send)

    async def _pass(self, request: httpx.Request, body: _Body, send: Send) -> int:
        try:
            response = await self._superlink.send(request, stream=True)
        except _BodyRefused:
            return await _refuse(send, 413 if body.is_too_large else 400)
        except httpx.TransportError as error:
            _log.warning("the SuperLink does not answer: %s", type(error).__name__)
            return await _refuse(send, 502)
        try:
            await _relay(response, send)
        finally:
            await response.aclose()
        return response.status_code

    async def _live(self, receive: Receive, send: Send) -> None:
        """ASGI's lifespan; connections that are kept open would hold the SuperLink up when it is to end."""
        while True:
            event = await receive()
            if event["type"] == "lifespan.shutdown":
                self._tally.tell()
                await self._superlink.aclose()
                await send({"type": "lifespan.shutdown.complete"})
                return
            await send({"type": "lifespan.startup.complete"})


class _BodyRefused(Exception):
    """A body that is larger than the cap, slower than allowed, or whose sender has gone."""


class _Body:
    """A request's body, passed on as it comes: nobody can fill this machine's memory with bodies."""

    def __init__(self, receive: Receive, *, length: int | None, most: int) -> None:
        self.length = length
        self._receive = receive
        self._most = most
        self._seen = 0

    @property
    def is_too_large(self) -> bool:
        return max(self._seen, self.length or 0) > self._most

    async def pieces(self) -> AsyncIterator[bytes]:
        while True:
            try:
                event = await asyncio.wait_for(self._receive(), _PIECE_SECONDS)
            except TimeoutError as error:
                raise _BodyRefused from error
            piece: bytes = event.get("body", b"")
            self._seen += len(piece)
            if event["type"] != "http.request" or self.is_too_large:
                raise _BodyRefused
            yield piece
            if not event.get("more_body", False):
                return


def _length(headers: Headers) -> int | None:
    """As the sender says it; uvicorn holds it to that."""
    return next((int(value) for name, value in headers if name.lower() == b"content-length"), None)


def _has_body(headers: Headers) -> bool:
    return any(name.lower() in {b"content-length", b"transfer-encoding"} for name, _ in headers)


def is_allowed(method: str, raw_path: bytes) -> bool:
    """Whether a request may pass, by the bytes of its path."""
    return any(method == passed and pattern.fullmatch(raw_path) is not None for passed, pattern in _PASSED)


async def _relay(response: httpx.Response, send: Send) -> None:
    dropped = _HOP_BY_HOP | {b"date"}  # the listener's own is there already, and a clock is read from it
    headers = [(name.lower(), value) for name, value in response.headers.raw if name.lower() not in dropped]
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    async for piece in response.aiter_raw():  # as it came: its content-encoding header is passed on, too
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _refuse(send: Send, status: int) -> int:
    headers = [(b"content-length", b"0"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
    return status


class ToldTls(ssl.SSLObject):
    """A connection's TLS that says why it ended in the server's own log: asyncio drops it without a word.

    The site sees its side; for "the site does not connect" on the telephone the coordinator needs the other one: a
    client that speaks plain text, one that does not trust our authority, one that thinks our certificate has expired.
    """

    def do_handshake(self) -> None:
        """As OpenSSL does."""
        try:
            super().do_handshake()
        except ssl.SSLError as error:
            _tell(error)
            raise

    def read(self, len: int = 1024, buffer: Buffer | None = None) -> bytes:  # noqa: A002 - the library's own name
        """As OpenSSL does; in TLS 1.3 a client refuses our certificate only after our handshake has ended."""
        try:
            return super().read(len, buffer) if buffer is not None else super().read(len)
        except ssl.SSLError as error:
            _tell(error)
            raise


def _tell(error: ssl.SSLError) -> None:
    if not isinstance(error, _ORDINARY):
        _log.warning("a TLS connection was refused: %s", error.reason or type(error).__name__)
