"""What travels between coordinator and institution: msgpack bytes, versioned, size-capped, decoded into one type.

The same bytes go through Flower, through the simulation and through a steward's socket; nothing else does. Refusals
carry a code and never a text, because an exception's text can hold a path, a caption or a value of private data.

What the untrusted shim knows of a steward stands here too, since it travels in Flower's bundle with ``common`` alone:
:class:`StewardPort`, and the names under which Flower carries the bytes.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, Protocol, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from common.config import Digest
from common.errors import ProtocolError
from common.manifest.manifest import MAX_MANIFEST_BYTES

VERSION: Final = 1
MAX_MESSAGE_BYTES: Final = 512 * 2**20
"""Larger messages are refused before they are decoded."""
MAX_CONTROL_BYTES: Final = 1 << 18
"""Longest message of a session's opening."""
MESSAGE_TYPE: Final = "query.ask"
"""Flower's message type for every request; what is asked stands in the bytes."""
ACTION: Final = "ask"
"""The action part of :data:`MESSAGE_TYPE`."""
RECORD: Final = "darkroom"
"""Name of the only record of a message's content."""
FIELD: Final = "message"
"""Name of the record's only field: the wire bytes of ``common.wire.messages``."""
Round = Annotated[int, Meta(ge=0, lt=2**31)]
Control = Annotated[bytes, Meta(max_length=MAX_CONTROL_BYTES)]


class StewardPort(Protocol):
    """An institution's steward, as anybody outside of it sees it: one question, one answer."""

    def answer(self, request: bytes) -> bytes:
        """Encoded reply of ``common.wire.messages`` to an encoded request; a refusal is a reply, too."""
        ...


class RefusalCode(StrEnum):
    """Why an institution answers nothing; the institution's own log has the details."""

    MALFORMED = "malformed"
    WRONG_SPEC = "wrong_spec"
    WRONG_SIZE = "wrong_size"
    NOT_FINITE = "not_finite"
    NOT_ALLOWED = "not_allowed"
    NO_DATA = "no_data"
    BAD_MANIFEST = "bad_manifest"
    """Not signed by the coordinator it names, or terms that do not follow from its own settings."""
    AWAITING_APPROVAL = "awaiting_approval"
    NO_SESSION = "no_session"
    """No session key for this: the coordinator should open a new session."""
    REPLAYED = "replayed"
    """A round and attempt at or before the last one that was answered."""
    OVER_BUDGET = "over_budget"
    BUSY = "busy"
    """Too many requests at once, or a steward that is stopping; the same request may be sent again later."""
    INTERNAL = "internal"


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all of them have."""

    version: Annotated[int, Meta(ge=VERSION, le=VERSION)] = VERSION


class Contribute(Message, frozen=True, kw_only=True, tag="contribute"):
    """Coordinator → institution: train on this global adapter (float32, little-endian) and answer with the update."""

    round: Round
    attempt: Round
    spec_digest: Digest
    adapter: bytes


class Evaluate(Message, frozen=True, kw_only=True, tag="evaluate"):
    """Coordinator → institution: hold-out loss of this global adapter."""

    round: Round
    spec_digest: Digest
    adapter: bytes


class Propose(Message, frozen=True, kw_only=True, tag="propose"):
    """Coordinator → institution: take part in this run; the bytes of :func:`common.manifest.manifest.sign_manifest`."""

    manifest: Annotated[bytes, Meta(max_length=MAX_MANIFEST_BYTES + 1024)]


class Accepted(Message, frozen=True, kw_only=True, tag="accepted"):
    """Institution → coordinator: the bytes of :func:`common.manifest.manifest.countersign`."""

    countersignature: Annotated[bytes, Meta(max_length=1024)]


class OpenSecureSession(Message, frozen=True, kw_only=True, tag="open_secure_session"):
    """Coordinator → institution: a :class:`common.secagg.messages.OpenSession`, encoded."""

    message: Control


class SessionKeyAdvert(Message, frozen=True, kw_only=True, tag="session_key_advert"):
    """Institution → coordinator: a :class:`common.secagg.messages.KeyAdvert`, encoded."""

    message: Control


class ShareSessionKeys(Message, frozen=True, kw_only=True, tag="share_session_keys"):
    """Coordinator → institution: a :class:`common.secagg.messages.SessionKeys`, encoded."""

    message: Control


class SessionReady(Message, frozen=True, kw_only=True, tag="session_ready"):
    """Institution → coordinator: the session's keys are derived; a round may come."""


class ContributeMasked(Message, frozen=True, kw_only=True, tag="contribute_masked"):
    """Coordinator → institution: a :class:`common.secagg.messages.RoundRequest`, encoded."""

    message: bytes


class MaskedAnswer(Message, frozen=True, kw_only=True, tag="masked_answer"):
    """Institution → coordinator: a :class:`common.secagg.messages.MaskedContribution`, encoded."""

    message: bytes


class Refusal(Message, frozen=True, kw_only=True, tag="refusal"):
    """Institution → coordinator: no answer, and the kind of reason."""

    code: RefusalCode


PlainRequest: TypeAlias = Contribute | Evaluate
SecureRequest: TypeAlias = Propose | OpenSecureSession | ShareSessionKeys | ContributeMasked
Request: TypeAlias = PlainRequest | SecureRequest
SecureReply: TypeAlias = Accepted | SessionKeyAdvert | SessionReady | MaskedAnswer
M = TypeVar("M")
_REQUESTS: Final[msgspec.msgpack.Decoder[Request]] = msgspec.msgpack.Decoder(Request)


def encode(message: Message) -> bytes:
    """The message's wire bytes."""
    return msgspec.msgpack.encode(message)


def decode_request(data: bytes) -> Request:
    """Parse a coordinator's bytes.

    Raises:
        ProtocolError: Too large, not msgpack, another version, or a field of wrong type or range.

    """
    return decode_as(data, _REQUESTS)


def decode_as(data: bytes, decoder: msgspec.msgpack.Decoder[M]) -> M:
    """What the decoder makes of bytes from outside.

    Raises:
        ProtocolError: As :func:`decode_request`.

    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise ProtocolError(f"message of {len(data)} bytes; at most {MAX_MESSAGE_BYTES} are accepted")
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"message of {len(data)} bytes cannot be read: {error}") from error
