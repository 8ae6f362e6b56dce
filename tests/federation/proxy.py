"""A TCP proxy that cuts the line as hospitals' networks do, or writes down what passes as whoever taps it would."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import ssl
    from pathlib import Path


@dataclass
class Proxy:
    """Passes ``port`` of loopback on to ``target``; once it is cut, every connection is reset, new ones too."""

    port: int
    target: int
    folder: Path | None = None
    """Each direction of each connection becomes a file here."""
    server_tls: ssl.SSLContext | None = None
    """Ends the client's TLS here, with the server's own key; absent: bytes pass as they are."""
    client_tls: ssl.SSLContext | None = None
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _open: set[asyncio.StreamWriter] = field(default_factory=set)
    _is_cut: bool = False
    _count: itertools.count[int] = field(default_factory=itertools.count)

    def __enter__(self) -> Self:
        if self.folder is not None:
            self.folder.mkdir(parents=True)
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def cut(self) -> None:
        self._is_cut = True
        self._loop.call_soon_threadsafe(self._abort)

    def mend(self) -> None:
        self._is_cut = False

    def content(self, direction: str) -> list[bytes]:
        """What passed ``up`` or ``down``, connection by connection."""
        assert self.folder is not None
        return [path.read_bytes() for path in sorted(self.folder.glob(f"*-{direction}"))]

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self.server_tls)

    async def _close(self) -> None:
        self._server.close()
        self._abort()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0.1)  # for aborted transports to close their sockets

    def _abort(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, back = next(self._count), None
        self._open.add(writer)
        try:
            if not self._is_cut:
                name = "127.0.0.1" if self.client_tls else None
                there, back = await asyncio.open_connection(
                    "127.0.0.1", self.target, ssl=self.client_tls, server_hostname=name
                )
                self._open.add(back)
                await asyncio.gather(
                    self._pass(reader, back, f"{number:04d}-up"), self._pass(there, writer, f"{number:04d}-down")
                )
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for each in (writer, back):
                if each is not None:
                    each.transport.abort()
                    self._open.discard(each)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(writer.transport.abort)  # HTTP has said all it wants before either side closes
            file = None if self.folder is None else stack.enter_context((self.folder / name).open("ab", buffering=0))
            while data := await reader.read(1 << 16):
                if file is not None:
                    file.write(data)
                writer.write(data)
                await writer.drain()
