"""Checking an audit log by hand, and against what the other side wrote down of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from common.audit_log import Entry, verify_log
from common.crypto.primitives import PUBLIC_KEY_BYTES
from common.errors import AuditLogError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COORDINATOR_HEAD: Final = "coordinator_head"
"""Detail of an institution's entry: the coordinator's head that came with a request."""
ADAPTER: Final = "adapter"
"""Detail of an institution's entry ``charged``: SHA-256, in hex, of the adapter that came with the request."""
HEADS: Final = "heads"
"""Detail of a coordinator's entry: ``place:head`` of every institution that answered, separated by commas."""


@dataclass(frozen=True, kw_only=True)
class LogCheck:
    """What is checked: a log, its owner's public key, and the other side's log with what it saw.

    Attributes:
        place: the owner's place in the roster, where the witness is a coordinator's log.
    """

    path: Path
    key: str
    witness: Path | None = None
    place: int | None = None


def check_log(check: LogCheck) -> str:
    """Check every line, signature and link, and that every witnessed head is in this history; a sentence for people.

    The witness's own signatures are for a check of that log, with its owner's key.

    Raises:
        ConfigError: The key is not 64 hexadecimal digits.
        AuditLogError: What is wrong, and where.

    """
    witnessed = () if check.witness is None else tuple(witnessed_heads(check.witness, place=check.place))
    verified = verify_log(check.path, _public_key(check.key), witnessed=witnessed)
    if not verified.entries:
        text = f"{check.path}: no entry yet, so nothing that could show whose log it is"
    else:
        text = f"{check.path}: {verified.entries} entries, all signed and linked; head {verified.head.hex()}"
    if check.witness is None:
        return text
    if not witnessed:
        raise AuditLogError(f"{check.witness}: holds no head of this log's owner; is it the other side's log?")
    return f"{text}\n{check.witness}: {len(witnessed)} heads that it wrote down are all in this history"


def witnessed_heads(path: Path, *, place: int | None = None) -> Iterator[bytes]:
    """Heads of the other party that a log wrote down, in order.

    Args:
        path: An institution's log, or with ``place`` a coordinator's.
        place: Whose heads to take from a coordinator's log.

    Raises:
        AuditLogError: A line cannot be read.

    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise AuditLogError(f"{path}: cannot be read ({error.strerror})") from error
    for number, line in enumerate(lines):
        try:
            details = msgspec.json.decode(line, type=Entry).details
            yield from _heads(details.get(HEADS) if place is not None else details.get(COORDINATOR_HEAD), place)
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
            raise AuditLogError(f"{path}: entry {number} cannot be read: {error}") from error


def _heads(value: object, place: int | None) -> Iterator[bytes]:
    if not isinstance(value, str) or not value:
        return
    for entry in value.split(","):
        owner, colon, head = entry.rpartition(":")
        if not colon or int(owner) == place:
            yield bytes.fromhex(head)


def _public_key(text: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != PUBLIC_KEY_BYTES:
        raise ConfigError(f"wanted a public key of {2 * PUBLIC_KEY_BYTES} hexadecimal digits, got {text!r}")
    return key
