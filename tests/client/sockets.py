"""A steward behind a real Unix socket, and shims that call it as they should or as they should not."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc

from client.steward.service import Limits, StewardService, serve
from client.steward.socket import SocketPlace, held
from common.crypto.primitives import Secret
from common.wire.messages import Refusal, RefusalCode, encode
from common.wire.steward_link import ANSWER, TOKEN_KEY, StewardAddress, StewardLink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from client.steward.service import Serving

TOKEN = Secret(b"ab" * 32)
WRONG = Secret(b"ba" * 32)
NO_DATA = encode(Refusal(code=RefusalCode.NO_DATA))
BUSY = encode(Refusal(code=RefusalCode.BUSY))
MALFORMED = encode(Refusal(code=RefusalCode.MALFORMED))
INTERNAL = encode(Refusal(code=RefusalCode.INTERNAL))
NOT_ALLOWED = encode(Refusal(code=RefusalCode.NOT_ALLOWED))


@dataclass
class Counting:
    """Answers by a function and counts; ``most`` is how many were inside at once."""

    reply: Callable[[bytes], bytes] = lambda _: NO_DATA
    asked: list[bytes] = field(default_factory=list)
    inside: int = 0
    most: int = 0

    def answer(self, request: bytes) -> bytes:
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            self.asked.append(request)
            return self.reply(request)
        finally:
            self.inside -= 1


@dataclass
class Noted:
    """What was turned away."""

    entries: list[dict[str, int]] = field(default_factory=list)

    def note(self, counts: dict[str, int]) -> None:
        self.entries.append(counts)

    def total(self, reason: str) -> int:
        return sum(entry.get(reason, 0) for entry in self.entries)


@dataclass
class Open:
    serving: Serving
    place: SocketPlace
    noted: Noted

    def link(self, token: Secret = TOKEN) -> StewardLink:
        return StewardLink(address=StewardAddress(target=self.place.target, token=token), seconds=30.0)

    @contextlib.contextmanager
    def channel(self) -> Iterator[Any]:
        with grpc.insecure_channel(self.place.target) as channel:
            yield channel

    def settle(self) -> None:
        """Have what was turned away so far noted."""
        with self.serving.service.admission.passage(lambda: True):
            self.serving.service.note_turned_away()


@contextlib.contextmanager
def opened(folder: Path, steward: Any, limits: Limits | None = None) -> Iterator[Open]:
    noted = Noted()
    service = StewardService(steward=steward, token=TOKEN, turned_away=noted.note, limits=limits or Limits())
    place = SocketPlace(path=folder / "run" / "s.sock")
    with held(place):
        serving = serve(service, place)
        try:
            yield Open(serving, place, noted)
        finally:
            serving.stop(grace=5.0)


def at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    """Every call in a thread of its own, started together."""
    gate, results = threading.Barrier(len(calls)), [None] * len(calls)

    def run(index: int) -> None:
        gate.wait()
        results[index] = calls[index]()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def raw_call(channel: Any, body: Any, metadata: Any = ((TOKEN_KEY, "ab" * 32),), method: str = ANSWER) -> Any:
    """What a hostile shim sees: reply bytes, or the status code and its text."""
    try:
        return channel.stream_unary(method)(iter(body), metadata=metadata, timeout=20)
    except grpc.RpcError as error:
        return error.code(), error.details()
