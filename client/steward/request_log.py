"""One log line a request: what was asked and how it ended, without a value that depends on a picture.

The bytes are hostile, so what is read from them is read into narrow types: a kind is one of few letters, a round is a
small number, and whatever does not fit is written as ``unreadable``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from msgspec import Meta

LOG: Final = logging.getLogger(__name__)
UNREADABLE: Final = "unreadable"
ANSWERED: Final = "answered"
_BUCKETS: Final = (0.1, 1.0, 10.0, 60.0, 600.0)
"""Seconds. A duration tells how many pictures were sampled, so the log, which others may read, has its class only."""


class Heading(msgspec.Struct, frozen=True, kw_only=True):
    """The few fields that a log line shows of any message; others are skipped."""

    type: Annotated[str, Meta(pattern=r"^[a-z_]{1,40}\Z")]
    round: Annotated[int, Meta(ge=0, lt=2**31)] | None = None
    attempt: Annotated[int, Meta(ge=0, lt=2**31)] | None = None
    session: Annotated[bytes, Meta(min_length=32, max_length=32)] | None = None
    message: bytes | None = None
    """A message of secure aggregation inside this one."""
    code: Annotated[str, Meta(pattern=r"^[a-z_]{1,40}\Z")] | None = None


_HEADINGS: Final = msgspec.msgpack.Decoder(Heading)


@dataclass(frozen=True, kw_only=True)
class Line:
    """A request and its end."""

    request: Heading | None
    outcome: str
    seconds: float

    def __str__(self) -> str:
        """``key=value`` pairs in a fixed order."""
        asked = self.request
        session = None if asked is None or asked.session is None else asked.session.hex()[:16]
        pairs = {
            "kind": UNREADABLE if asked is None else asked.type,
            "session": session,
            "round": None if asked is None else asked.round,
            "attempt": None if asked is None else asked.attempt,
            "outcome": self.outcome,
            "seconds": bucket(self.seconds),
        }
        return " ".join(f"{key}={'-' if value is None else value}" for key, value in pairs.items())


def read_heading(message: bytes) -> Heading | None:
    """The heading of encoded bytes, with the round of the message inside them; None if they have none."""
    try:
        outer = _HEADINGS.decode(message)
        if outer.message is None:
            return outer
        inner = _HEADINGS.decode(outer.message)
        return Heading(type=outer.type, round=inner.round, attempt=inner.attempt, session=inner.session)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError):
        return None


def outcome_of(reply: bytes) -> str:
    """``answered``, or the refusal's code."""
    heading = read_heading(reply)
    if heading is None:
        return UNREADABLE
    return heading.code or "refused" if heading.type == "refusal" else ANSWERED


def bucket(seconds: float) -> str:
    """The class of a duration."""
    for limit in _BUCKETS:
        if seconds < limit:
            return f"<{limit:g}"
    return f">={_BUCKETS[-1]:g}"


def log_request(line: Line) -> None:
    """Write the line."""
    LOG.info("request %s", line)
