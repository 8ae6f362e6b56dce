"""A coordinator's listener on loopback whose certificate, clock and answer a test chooses."""

from __future__ import annotations

import contextlib
import datetime as dt
import email.utils
import ssl
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

from common.crypto.certificates import create_authority, issue_server_certificate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DAY = dt.timedelta(days=1)


@dataclass(frozen=True)
class Certificates:
    folder: Path

    @property
    def authority(self) -> str:
        return (self.folder / "ca.crt").read_text()


def certificates(folder: Path, *, issued: dt.timedelta = -DAY, host: str = "127.0.0.1") -> Certificates:
    """An authority that is valid now, and a server certificate that was issued some time ago, for 397 days."""
    now = dt.datetime.now(dt.UTC)
    create_authority(folder / "ca.crt", folder / "ca.key", name="Test", now=now - 1000 * DAY)
    issue_server_certificate(
        folder / "server.crt",
        folder / "server.key",
        authority=folder / "ca.crt",
        authority_key=folder / "ca.key",
        hosts=[host],
        now=now + issued,
    )
    return Certificates(folder)


@contextlib.contextmanager
def listening(
    shown: Certificates | None,
    *,
    ahead: float = 0.0,
    status: int = 200,
    asked: list[str] | None = None,
    date: str | None = None,
) -> Iterator[str]:
    """``host:port``; without certificates it speaks plain HTTP. Whatever is asked for is added to the list.

    A ``date`` is sent as it stands, where ``ahead`` has no say.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if asked is not None:
                asked.append(self.path)
            self.send_response_only(status)
            self.send_header("Date", date or email.utils.formatdate(time.time() + ahead, usegmt=True))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: Any) -> None:
            pass

    class Server(HTTPServer):
        def handle_error(self, *_: Any) -> None:
            pass  # a client that hangs up, which is what these tests are about

    server = Server(("127.0.0.1", 0), Handler)
    if shown is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(shown.folder / "server.crt", shown.folder / "server.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
