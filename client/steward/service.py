"""The steward's service: gRPC on a Unix socket, one call that asks and one that looks after it.

Whoever calls is the coordinator's code under the SuperNode's user, so a call is hostile before its token is checked and
after. gRPC's Python server does not show the peer's process credentials (SO_PEERCRED), so the modes of folder and
socket and the token stand in for that check.

Guarantee: one request is acted on at a time; at most ``waiting`` others wait; every other call is refused at once,
before its body is read. A call without the token learns nothing but that. What the steward raises never leaves. So many
refusals a minute are answered; whoever provokes more is told BUSY and counted, because each one is an audit entry.

One log line a request says what was asked and how it ended, without a value that depends on a picture. It is read from
hostile bytes into narrow types: a kind is one of few letters, a round is a small number, and whatever does not fit is
written as ``unreadable``.
"""

from __future__ import annotations

import hmac
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final

import grpc
import msgspec
from msgspec import Meta

from client.governance.refusals import place_of
from client.steward.admission import Admission, Passage, RefusalAllowance
from client.steward.socket import open_to_group
from common.durable_files import owner_only_files
from common.errors import StewardUnavailable
from common.wire.messages import MAX_MESSAGE_BYTES, Refusal, RefusalCode, encode
from common.wire.steward_link import ANSWER, HEALTH, TOKEN_KEY, Health, read_pem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from client.site.settings import TcpConfig
    from client.steward.socket import SocketPlace
    from common.crypto.primitives import Secret
    from common.wire.messages import StewardPort


MAX_CALLS: Final = 512
"""Calls that gRPC holds at once; those beyond get its own RESOURCE_EXHAUSTED and are not counted."""
SPARE_THREADS: Final = 8
"""Threads that turn calls away while the others act and wait."""
MAX_METADATA_BYTES: Final = 4096
_UNREADABLE: Final = "unreadable"
_ANSWERED: Final = "answered"
_BUCKETS: Final = (0.1, 1.0, 10.0, 60.0, 600.0)
"""Seconds. A duration tells how many pictures were sampled, so the log, which others may read, has its class only."""
_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the service takes."""

    message_bytes: int = MAX_MESSAGE_BYTES
    waiting: int = 4
    wait_seconds: float = 300.0
    body_seconds: float = 60.0
    """How long a caller may take to send a request's bytes."""
    refusals_per_minute: int = 120


@dataclass(frozen=True, kw_only=True)
class StewardService:
    """Answers calls in the words of a steward.

    Args:
        steward: Who answers.
        token: What every call must carry.
        limits: What is taken at most.
        turned_away: Notes refusals that the steward never sees, by reason; called by one thread at a time.
        condition: Whether the base model is loaded, and whether policy, ledger and audit log are in order.

    """

    steward: StewardPort
    token: Secret
    turned_away: Callable[[dict[str, int]], None]
    limits: Limits = Limits()
    condition: Callable[[], tuple[bool, bool]] = lambda: (True, True)
    admission: Admission = field(init=False)
    _allowance: RefusalAllowance = field(init=False, repr=False)

    def __post_init__(self) -> None:
        gate = Admission(waiting=self.limits.waiting, seconds=self.limits.wait_seconds)
        object.__setattr__(self, "admission", gate)
        object.__setattr__(self, "_allowance", RefusalAllowance(per_minute=self.limits.refusals_per_minute))

    # gRPC's names for a handler's parts
    def service(self, call: Any) -> Any:  # noqa: ANN401 - gRPC ships no types
        """The handler of one call. A handler of *streams* sees the call before a byte of its body is read."""
        if call.method not in {ANSWER, HEALTH}:
            return grpc.stream_unary_rpc_method_handler(_abort_with(grpc.StatusCode.UNIMPLEMENTED))
        if not self._has_token(call.invocation_metadata):
            self.admission.turn_away("unauthenticated")
            return grpc.stream_unary_rpc_method_handler(_abort_with(grpc.StatusCode.UNAUTHENTICATED))
        return grpc.stream_unary_rpc_method_handler(self._answer if call.method == ANSWER else self._health)

    def _has_token(self, metadata: Any) -> bool:  # noqa: ANN401 - as above
        wanted = self.token.reveal()
        shown = [value for key, value in metadata or () if key == TOKEN_KEY]
        given = shown[0] if len(shown) == 1 else ""
        given = given if isinstance(given, bytes) else given.encode("utf-8", "surrogatepass")
        return hmac.compare_digest(given, wanted)

    def _answer(self, bodies: Iterator[bytes], context: Any) -> bytes:  # noqa: ANN401 - as above
        with self.admission.passage(context.is_active) as passage:
            if passage is Passage.PASSED:
                return self._act(bodies, context)
        self.admission.turn_away(f"busy_{passage}")
        return encode(Refusal(code=RefusalCode.BUSY))

    def _act(self, bodies: Iterator[bytes], context: Any) -> bytes:  # noqa: ANN401 - as above
        start = time.monotonic()
        if self._allowance.used_up(start):
            self.admission.turn_away("too_many_refusals")
            return encode(Refusal(code=RefusalCode.BUSY))
        request = self._body(bodies, context)
        if request is None:
            self._allowance.note(start)
            self.admission.turn_away("no_body")
            _log.info("request %s", _Line(request=None, outcome="no_body", seconds=time.monotonic() - start))
            return encode(Refusal(code=RefusalCode.MALFORMED))
        reply = self._reply(request)
        outcome = _outcome_of(reply)
        if outcome != _ANSWERED:
            self._allowance.note(start)
        if not context.is_active():
            outcome = "abandoned"
        _log.info(
            "request %s", _Line(request=_read_heading(request), outcome=outcome, seconds=time.monotonic() - start)
        )
        self.note_turned_away()
        return reply

    def _body(self, bodies: Iterator[bytes], context: Any) -> bytes | None:  # noqa: ANN401 - as above
        """The only message of the call; None if it is too large, late, or not there."""
        late = threading.Timer(self.limits.body_seconds, context.cancel)
        late.daemon = True
        late.start()
        try:
            return next(bodies, None)
        except Exception as error:  # noqa: BLE001 - gRPC tells of a cancelled or oversized call in several ways
            _log.info("a call ended before its request came: %s", type(error).__name__)
            return None
        finally:
            late.cancel()

    def _reply(self, request: bytes) -> bytes:
        try:
            return self.steward.answer(request)
        except Exception as error:  # noqa: BLE001 - its text may hold a path or a caption, and gRPC would send it
            _log.error("the steward failed: %s", place_of(error))
            return encode(Refusal(code=RefusalCode.INTERNAL))

    def _health(self, bodies: Iterator[bytes], context: Any) -> bytes:  # noqa: ANN401 - as above
        del bodies, context
        return msgspec.msgpack.encode(self.health())

    def health(self) -> Health:
        """How the service is; asks neither the model nor the disk."""
        loaded, in_order = self.condition()
        busy = self.admission.busy
        return Health(
            serving=not self.admission.closed,
            model_loaded=loaded,
            policy_ok=in_order,
            busy=busy,
            waiting=max(0, self.admission.present - busy),
        )

    def note_turned_away(self) -> None:
        """Write the calls turned away so far as one entry; called from inside the admission."""
        if counts := self.admission.drain_turned_away():
            self.turned_away(counts)
            _log.warning("turned away: %s", ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items())))


@dataclass(frozen=True, kw_only=True)
class Serving:
    """A service whose doors are open."""

    service: StewardService
    server: Any

    def stop(self, *, grace: float) -> bool:
        """Let nobody in, wait for whoever is inside; False if it did not end in time and was abandoned."""
        self.service.admission.close()
        ended: bool = self.server.stop(grace).wait(grace + 5.0)
        return ended and not self.service.admission.busy


def serve(service: StewardService, place: SocketPlace, tcp: TcpConfig | None = None) -> Serving:
    """Open the doors; the caller holds the place (:func:`client.steward.socket.held`).

    Raises:
        StewardUnavailable: A door cannot be opened, or a key or certificate cannot be read.

    """
    threads = ThreadPoolExecutor(max_workers=1 + service.limits.waiting + SPARE_THREADS)
    options = [
        ("grpc.max_receive_message_length", service.limits.message_bytes),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.so_reuseport", 0),  # else a second steward could share the port
    ]
    server = grpc.server(threads, handlers=(_handler(service),), options=options, maximum_concurrent_rpcs=MAX_CALLS)
    try:
        credentials = None if tcp is None else _credentials(tcp)
        with owner_only_files():
            server.add_insecure_port(place.target)
        if tcp is not None:
            server.add_secure_port(tcp.address, credentials)
    except (RuntimeError, ValueError) as error:
        where = place.path if tcp is None else f"{place.path} or {tcp.address}"
        raise StewardUnavailable(
            f"{where}: cannot be listened on; is the address free and the certificate whole?"
        ) from error
    server.start()
    open_to_group(place)
    return Serving(service=service, server=server)


def _handler(service: StewardService) -> Any:  # noqa: ANN401 - gRPC ships no types
    class Handler(grpc.GenericRpcHandler):
        def service(self, handler_call_details: Any) -> Any:  # noqa: ANN401 - as above
            return service.service(handler_call_details)

    return Handler()


def _credentials(tcp: TcpConfig) -> Any:  # noqa: ANN401 - gRPC ships no types
    certificate, key, authority = map(read_pem, (tcp.certificate, tcp.key, tcp.client_authority))
    return grpc.ssl_server_credentials([(key, certificate)], root_certificates=authority, require_client_auth=True)


def _abort_with(code: Any) -> Callable[[Any, Any], Any]:  # noqa: ANN401 - gRPC ships no types
    def abort(_bodies: Any, context: Any) -> Any:  # noqa: ANN401 - as above
        context.abort(code, "")

    return abort


class _Heading(msgspec.Struct, frozen=True, kw_only=True):
    """The few fields that a log line shows of any message; others are skipped."""

    type: Annotated[str, Meta(pattern=r"^[a-z_]{1,40}\Z")]
    round: Annotated[int, Meta(ge=0, lt=2**31)] | None = None
    attempt: Annotated[int, Meta(ge=0, lt=2**31)] | None = None
    session: Annotated[bytes, Meta(min_length=32, max_length=32)] | None = None
    message: bytes | None = None
    """A message of secure aggregation inside this one."""
    code: Annotated[str, Meta(pattern=r"^[a-z_]{1,40}\Z")] | None = None


_HEADINGS: Final = msgspec.msgpack.Decoder(_Heading)


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A request and its end."""

    request: _Heading | None
    outcome: str
    seconds: float

    def __str__(self) -> str:
        """``key=value`` pairs in a fixed order."""
        asked = self.request
        session = None if asked is None or asked.session is None else asked.session.hex()[:16]
        pairs = {
            "kind": _UNREADABLE if asked is None else asked.type,
            "session": session,
            "round": None if asked is None else asked.round,
            "attempt": None if asked is None else asked.attempt,
            "outcome": self.outcome,
            "seconds": _bucket(self.seconds),
        }
        return " ".join(f"{key}={'-' if value is None else value}" for key, value in pairs.items())


def _read_heading(message: bytes) -> _Heading | None:
    """The heading of encoded bytes, with the round of the message inside them; None if they have none."""
    try:
        outer = _HEADINGS.decode(message)
        if outer.message is None:
            return outer
        inner = _HEADINGS.decode(outer.message)
        return _Heading(type=outer.type, round=inner.round, attempt=inner.attempt, session=inner.session)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError):
        return None


def _outcome_of(reply: bytes) -> str:
    """``answered``, or the refusal's code."""
    heading = _read_heading(reply)
    if heading is None:
        return _UNREADABLE
    return heading.code or "refused" if heading.type == "refusal" else _ANSWERED


def _bucket(seconds: float) -> str:
    """The class of a duration."""
    for limit in _BUCKETS:
        if seconds < limit:
            return f"<{limit:g}"
    return f">={_BUCKETS[-1]:g}"
