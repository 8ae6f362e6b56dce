"""The wire between Flower's shim and a steward in a process of its own: one call that asks, one that looks after it.

gRPC with raw bytes, over a Unix socket or over TCP with both ends' certificates. Every call carries the site's token.
The shim is the coordinator's code, so whatever is written here protects the *steward* from nothing; it only turns each
failure of the link into a refusal without text.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import grpc
import msgspec

from common.crypto.primitives import Secret
from common.errors import StewardUnavailable
from common.wire.messages import MAX_MESSAGE_BYTES, Refusal, RefusalCode, encode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SERVICE: Final = "darkroom.Steward"
ANSWER: Final = f"/{SERVICE}/Answer"
HEALTH: Final = f"/{SERVICE}/Health"
TOKEN_KEY: Final = "darkroom-token"  # noqa: S105 - a name, not a token
"""Name of the call's metadata that holds the token."""
TOKEN_BYTES: Final = 32
ANSWER_SECONDS: Final = 3600.0
"""How long a shim waits for a round; the coordinator's own deadline is shorter."""
CONNECT_SECONDS: Final = 10.0

_log: Final = logging.getLogger(__name__)
_REFUSALS: Final = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: RefusalCode.BUSY,
    grpc.StatusCode.UNAUTHENTICATED: RefusalCode.NOT_ALLOWED,
    grpc.StatusCode.PERMISSION_DENIED: RefusalCode.NOT_ALLOWED,
}


_TOO_LARGE: Final = "larger than max"
"""gRPC's own words; it has one code for a message that is too large and for too many calls at once."""


class Health(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a steward says of itself; none of it depends on a picture."""

    serving: bool
    """False while it stops."""
    model_loaded: bool
    busy: bool
    policy_ok: bool
    """Whether its policy, ledger and audit log could be read when last looked at."""
    waiting: int = 0


@dataclass(frozen=True, kw_only=True)
class ClientCertificate:
    """What a shim shows to a steward on another machine, and what it demands to see."""

    authority: Path
    certificate: Path
    key: Path


@dataclass(frozen=True, kw_only=True)
class StewardAddress:
    """Where a steward listens and what it wants to hear.

    Args:
        target: ``unix:///path/steward.sock``, or ``host:port`` together with ``tls``.
        token: The site's token.
        tls: Certificates; needed for, and only for, TCP.

    """

    target: str
    token: Secret = field(repr=False)
    tls: ClientCertificate | None = None

    def __post_init__(self) -> None:
        if self.target.startswith("unix:") == (self.tls is not None):
            raise StewardUnavailable(f"{self.target}: wanted unix:///path without certificates, or host:port with them")


def read_token(path: Path) -> Secret:
    """The token in this file.

    Raises:
        StewardUnavailable: Missing, unreadable or no token. The message never quotes the content.

    """
    try:
        with path.open("rb") as file:
            content = file.read(2 * TOKEN_BYTES + 2).removesuffix(b"\n")
    except OSError as error:
        raise StewardUnavailable(f"{path}: the steward's token cannot be read ({error.strerror})") from error
    if len(content) != 2 * TOKEN_BYTES or not all(byte in b"0123456789abcdef" for byte in content):
        raise StewardUnavailable(f"{path}: wanted a token of {2 * TOKEN_BYTES} hexadecimal digits")
    return Secret(content)


class StewardSilent(StewardUnavailable):
    """A steward that is there and does not answer in time."""


@dataclass(frozen=True, kw_only=True)
class StewardLink:
    """A :class:`common.wire.messages.StewardPort` whose steward is in another process."""

    address: StewardAddress
    seconds: float = ANSWER_SECONDS

    def answer(self, request: bytes) -> bytes:
        """The steward's reply, or a refusal if there is none; never the link's own words."""
        if len(request) > MAX_MESSAGE_BYTES:
            return encode(Refusal(code=RefusalCode.WRONG_SIZE))
        try:
            return self._call(ANSWER, request, seconds=self.seconds)
        except grpc.RpcError as error:
            code = _status(error)
            _log.error("the steward at %s gave no answer: %s", self.address.target, code)
            return encode(Refusal(code=_refusal(error, code)))

    def health(self) -> Health:
        """How the steward is.

        Raises:
            StewardSilent: It listens, and does not answer in time.
            StewardUnavailable: No answer, or none that can be read.

        """
        try:
            return msgspec.msgpack.decode(self._call(HEALTH, b"", seconds=CONNECT_SECONDS), type=Health)
        except grpc.RpcError as error:
            code = _status(error)
            kind = StewardSilent if code is grpc.StatusCode.DEADLINE_EXCEEDED else StewardUnavailable
            raise kind(
                f"{self.address.target}: no answer ({code.name}); is darkroom-client steward running?"
            ) from error
        except msgspec.DecodeError as error:
            raise StewardUnavailable(f"{self.address.target}: answered as another version would: {error}") from error

    def _call(self, method: str, request: bytes, *, seconds: float) -> bytes:
        with _channel(self.address) as channel:
            call = channel.unary_unary(method, request_serializer=None, response_deserializer=None)
            token = ((TOKEN_KEY, self.address.token.reveal().decode("ascii")),)
            reply: object = call(request, timeout=seconds, metadata=token)
        if not isinstance(reply, bytes):
            raise TypeError(f"gRPC gave {type(reply).__name__}; wanted bytes")
        return reply


@contextlib.contextmanager
def _channel(address: StewardAddress) -> Iterator[Any]:
    options = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        # a proxy from the environment must not be asked for the site's own steward
        ("grpc.enable_http_proxy", 0),
    ]
    if address.tls is None:
        channel = grpc.insecure_channel(address.target, options)
    else:
        tls = address.tls
        credentials = grpc.ssl_channel_credentials(*map(read_pem, (tls.authority, tls.key, tls.certificate)))
        channel = grpc.secure_channel(address.target, credentials, options)
    with channel:
        yield channel


def read_pem(path: Path) -> bytes:
    """A key or certificate of the link, or StewardUnavailable."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise StewardUnavailable(f"{path}: cannot be read ({error.strerror})") from error


def _refusal(error: grpc.RpcError, code: Any) -> RefusalCode:  # noqa: ANN401 - gRPC ships no types
    """BUSY invites to ask again, which would never end for a message that the steward's door is too narrow for."""
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE in str(getattr(error, "details", str)()):
        return RefusalCode.WRONG_SIZE
    return _REFUSALS.get(code, RefusalCode.INTERNAL)


def _status(error: Any) -> Any:  # noqa: ANN401 - gRPC ships no types
    return error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
