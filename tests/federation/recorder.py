"""A TCP proxy that writes down everything that passes; with the server's own key it sees into TLS, as its host can."""

from __future__ import annotations

import asyncio
import itertools
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import ssl
    from pathlib import Path


@dataclass
class Recorder:
    """Passes ``port`` of loopback on to ``target``; each direction of each connection is a file of the folder."""

    port: int
    target: int
    folder: Path
    server_tls: ssl.SSLContext | None = None
    """Ends the client's TLS here; absent: bytes pass as they are."""
    client_tls: ssl.SSLContext | None = None
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _count: itertools.count[int] = field(default_factory=itertools.count)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self.server_tls)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = "127.0.0.1" if self.client_tls else None
        number = next(self._count)
        try:
            there, back = await asyncio.open_connection(
                "127.0.0.1", self.target, ssl=self.client_tls, server_hostname=name
            )
        except OSError:
            writer.transport.abort()
            return
        try:
            await asyncio.gather(
                self._pass(reader, back, self.folder / f"{number:04d}-up"),
                self._pass(there, writer, self.folder / f"{number:04d}-down"),
            )
        finally:
            for each in (writer, back):
                each.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: Path) -> None:
        try:
            with path.open("ab", buffering=0) as file:
                while data := await reader.read(1 << 16):
                    file.write(data)
                    writer.write(data)
                    await writer.drain()
        except OSError:
            pass
        finally:
            writer.transport.abort()  # HTTP has said all it wants before either side closes

    def content(self, direction: str) -> list[bytes]:
        """What passed ``up`` or ``down``, connection by connection."""
        return [path.read_bytes() for path in sorted(self.folder.glob(f"*-{direction}"))]
