"""A party's own record of what was asked and answered: append-only, hash-chained, every entry signed.

One JSON line per entry; its hash covers the line and so, through ``previous``, all lines before it. The hash of the
last line is the *head*. An institution's travels with each contribution, the coordinator's comes with each request, and
each side writes the other's down: whoever rewrites history must also change what the other side holds, which
:func:`check_log` compares.

Entries say what happened (round, attempt, cohort, refusal, charged row). Nothing about an image, a caption or a count
of records belongs in one.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from common.crypto.primitives import DIGEST_BYTES, PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Label, digest, verify_signature
from common.durable_files import sync
from common.errors import AuditLogError, BadSignature, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

    from common.crypto.primitives import Identity


MAX_LINE_BYTES: Final = 1 << 16
COORDINATOR_HEAD: Final = "coordinator_head"
"""Detail of an institution's entry: the coordinator's head that came with a request."""
ADAPTER: Final = "adapter"
"""Detail of an institution's entry ``charged``: SHA-256, in hex, of the adapter that came with the request."""
HEADS: Final = "heads"
"""Detail of a coordinator's entry: ``place:head`` of every institution that answered, separated by commas."""
Detail: TypeAlias = str | int | float | bool
HexDigest = Annotated[
    str, Meta(pattern=rf"^[0-9a-f]{{{2 * DIGEST_BYTES}}}\Z", description=f"{2 * DIGEST_BYTES} hexadecimal digits")
]
HexSignature = Annotated[
    str, Meta(pattern=rf"^[0-9a-f]{{{2 * SIGNATURE_BYTES}}}\Z", description=f"{2 * SIGNATURE_BYTES} hexadecimal digits")
]


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line."""

    version: Annotated[int, Meta(ge=1, le=1)] = 1
    index: Annotated[int, Meta(ge=0)]
    previous: HexDigest
    time: str
    kind: Annotated[str, Meta(pattern=r"^[a-z][a-z_]{0,40}\Z")]
    details: dict[str, Detail]
    signature: HexSignature = "0" * 2 * SIGNATURE_BYTES

    def content(self) -> bytes:
        """What the signature covers: the whole line but the signature."""
        blank = msgspec.structs.replace(self, signature="0" * 2 * SIGNATURE_BYTES)
        return msgspec.json.encode(blank, order="sorted")


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """What a checked log ends in."""

    entries: int
    head: bytes


@dataclass(kw_only=True, slots=True)
class AuditLog:
    """The log of one party, open for appending by one process."""

    path: Path
    identity: Identity
    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))
    _state: Verified = field(init=False)

    def __post_init__(self) -> None:
        """Make the file if there is none, else check it all; cut off a last line that a crash left unfinished.

        An unfinished line was never acknowledged, so its head went nowhere; that it was cut is itself written down.

        Raises:
            AuditLogError: Damaged, or the disk does not take it.

        """
        cut = _cut_unfinished_line(self.path)
        self._state = verify_log(self.path, self.identity.public)
        if cut:
            self.append("recovered", {"bytes_cut": cut})

    @property
    def head(self) -> bytes:
        """32 bytes that stand for the whole history."""
        return self._state.head

    def append(self, kind: str, details: dict[str, Detail]) -> bytes:
        """Write an entry to disk and return the new head.

        Raises:
            AuditLogError: The entry is too large, the disk does not take it, or somebody else wrote to the log.

        """
        entry = Entry(
            index=self._state.entries,
            previous=self._state.head.hex(),
            time=self.now().isoformat(),
            kind=kind,
            details=details,
        )
        signature = self.identity.sign(Label.AUDIT_ENTRY, entry.content())
        line = msgspec.json.encode(msgspec.structs.replace(entry, signature=signature.hex()), order="sorted")
        head = _check_line(line, owner=self.identity.public, index=entry.index, previous=self._state.head)
        _append_line(self.path, line, after=self._state.head, empty=genesis(self.identity.public))
        self._state = Verified(entries=entry.index + 1, head=head)
        return head


def genesis(owner: bytes) -> bytes:
    """The head of an empty log: 32 bytes that name its owner's public key."""
    return digest(Label.AUDIT_GENESIS, owner)


def verify_log(
    path: Path,
    owner: bytes,
    *,
    witnessed: Collection[bytes] = (),
    unfinished: Literal["refuse", "leave"] = "refuse",
) -> Verified:
    """Check every line, signature and link.

    Args:
        path: The log.
        owner: The institution's Ed25519 public key.
        witnessed: Heads that the other side received; each must be in this history.
        unfinished: Whether a last line without its end is damage, or another process's that writes just now.

    Raises:
        AuditLogError: A line is damaged, missing, out of order or not signed, or a witnessed head is not there.

    """
    head, entries, seen = genesis(owner), 0, {genesis(owner)}
    for line in _lines(path, unfinished=unfinished):
        head = _check_line(line, owner=owner, index=entries, previous=head)
        entries += 1
        seen.add(head)
    if lost := [each for each in witnessed if each not in seen]:
        raise AuditLogError(f"{path}: head {lost[0].hex()} was sent out but is not in this history; it was rewritten")
    return Verified(entries=entries, head=head)


def read_entries(path: Path) -> Iterator[Entry]:
    """The entries of a log that was verified; a last line that is being written is left out.

    Raises:
        AuditLogError: It cannot be read.

    """
    try:
        for line in _lines(path, unfinished="leave"):
            yield msgspec.json.decode(line, type=Entry)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise AuditLogError(f"{path}: cannot be read: {error}") from error


def check_log(path: Path, key: str, *, witness: Path | None = None, place: int | None = None) -> str:
    """Check every line, signature and link, and that every witnessed head is in this history; a sentence for people.

    The witness's own signatures are for a check of that log, with its owner's key.

    Args:
        path: The log.
        key: Its owner's public key.
        witness: The other side's log, with what it saw.
        place: The owner's place in the roster, where the witness is a coordinator's log.

    Raises:
        ConfigError: The key is not 64 hexadecimal digits.
        AuditLogError: What is wrong, and where.

    """
    witnessed = () if witness is None else tuple(witnessed_heads(witness, place=place))
    verified = verify_log(path, parse_public_key(key), witnessed=witnessed)
    if not verified.entries:
        text = f"{path}: no entry yet, so nothing that could show whose log it is"
    else:
        text = f"{path}: {verified.entries} entries, all signed and linked; head {verified.head.hex()}"
    if witness is None:
        return text
    if not witnessed:
        raise AuditLogError(f"{witness}: holds no head of this log's owner; is it the other side's log?")
    return f"{text}\n{witness}: {len(witnessed)} heads that it wrote down are all in this history"


def witnessed_heads(path: Path, *, place: int | None = None) -> Iterator[bytes]:
    """Heads of the other party that a log wrote down, in order.

    Args:
        path: An institution's log, or with ``place`` a coordinator's.
        place: Whose heads to take from a coordinator's log.

    Raises:
        AuditLogError: A line cannot be read.

    """
    for number, line in enumerate(_lines(path, unfinished="refuse")):
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


def parse_public_key(text: str) -> bytes:
    """The 32 bytes of a key as people write it, 64 hexadecimal digits, or ConfigError."""
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != PUBLIC_KEY_BYTES:
        raise ConfigError(f"wanted a public key of {2 * PUBLIC_KEY_BYTES} hexadecimal digits, got {text!r}")
    return key


def _check_line(line: bytes, *, owner: bytes, index: int, previous: bytes) -> bytes:
    """The head after this line."""
    if len(line) > MAX_LINE_BYTES:
        raise AuditLogError(f"entry {index}: {len(line)} bytes; at most {MAX_LINE_BYTES} are allowed")
    try:
        entry = msgspec.json.decode(line, type=Entry)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise AuditLogError(f"entry {index}: cannot be read: {error}") from error
    if index == entry.index == 0 and entry.previous != previous.hex():
        raise AuditLogError(
            f"entry 0: begins the log of another key than {owner.hex()}; if nobody changed the file, that is not its "
            "owner's key: a site's stands in the manifest's roster, the coordinator's in a site's join file and policy"
        )
    if (entry.index, entry.previous) != (index, previous.hex()):
        raise AuditLogError(f"entry {index}: does not follow the one before it; lines were removed, added or moved")
    if msgspec.json.encode(entry, order="sorted") != line:
        raise AuditLogError(f"entry {index}: not in canonical form; it was edited")
    try:
        verify_signature(owner, bytes.fromhex(entry.signature), Label.AUDIT_ENTRY, entry.content())
    except BadSignature as error:
        raise AuditLogError(f"entry {index}: not signed by the log's owner") from error
    return digest(Label.AUDIT_HASH, line)


def _lines(path: Path, *, unfinished: Literal["refuse", "leave"]) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while line := file.readline(MAX_LINE_BYTES + 2):
                if not line.endswith(b"\n"):
                    if unfinished == "leave" and len(line) <= MAX_LINE_BYTES:
                        return
                    raise AuditLogError(f"{path}: its last line is unfinished or too long")
                yield line[:-1]
    except OSError as error:
        raise AuditLogError(f"{path}: cannot be read ({error.strerror})") from error


def _cut_unfinished_line(path: Path) -> int:
    """Bytes after the last newline, removed."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # another process may be writing the line that looks unfinished
            size = file.seek(0, os.SEEK_END)
            start = max(0, size - MAX_LINE_BYTES - 2)
            file.seek(start)
            tail = file.read()
            keep = start + tail.rfind(b"\n") + 1
            if keep < size and (start == 0 or b"\n" in tail):
                file.truncate(keep)
                sync(file)
                return size - keep
    except OSError as error:
        raise AuditLogError(f"{path}: cannot be opened ({error.strerror})") from error
    return 0


def _append_line(path: Path, line: bytes, *, after: bytes, empty: bytes) -> None:
    """Write and sync one line, if the file's head is still ``after``."""
    try:
        with path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - MAX_LINE_BYTES - 2))
            tail = file.read().split(b"\n")
            if (digest(Label.AUDIT_HASH, tail[-2]) if len(tail) > 1 else empty) != after:
                raise AuditLogError(f"{path}: another process wrote to it; one steward per log")
            file.write(line + b"\n")
            sync(file)
    except OSError as error:
        raise AuditLogError(f"{path}: cannot be written ({error.strerror}); nothing may be sent") from error
