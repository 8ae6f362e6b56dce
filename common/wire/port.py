"""Where the untrusted shim meets the institution's steward, and the names both ends of Flower use for it.

The shim travels in Flower's bundle together with ``common`` alone, so what it knows of a steward stands here.
"""

from __future__ import annotations

from typing import Final, Protocol

MESSAGE_TYPE: Final = "query.ask"
"""Flower's message type for every request; what is asked stands in the bytes."""
ACTION: Final = "ask"
"""The action part of :data:`MESSAGE_TYPE`."""
RECORD: Final = "darkroom"
"""Name of the only record of a message's content."""
FIELD: Final = "message"
"""Name of the record's only field: the wire bytes of ``common.wire.messages``."""


class StewardPort(Protocol):
    """An institution's steward, as anybody outside of it sees it: one question, one answer."""

    def answer(self, request: bytes) -> bytes:
        """Encoded reply of ``common.wire.messages`` to an encoded request; a refusal is a reply, too."""
        ...
