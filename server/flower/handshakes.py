"""What went wrong with a TLS connection, in the server's own log: asyncio drops it without a word.

The site sees its side; for "the site does not connect" on the telephone the coordinator needs the other one: a client
that speaks plain text, one that does not trust our authority, one that thinks our certificate has expired.
"""

from __future__ import annotations

import logging
import ssl
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing_extensions import Buffer  # what the library's own types say; nothing imports it when it runs

_log = logging.getLogger("server.flower.listener")
_ORDINARY: Final = (ssl.SSLWantReadError, ssl.SSLWantWriteError, ssl.SSLZeroReturnError, ssl.SSLEOFError)


class ToldTls(ssl.SSLObject):
    """A connection's TLS that says why it ended."""

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
