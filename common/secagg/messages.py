"""What coordinator and institution say to each other for one masked sum: versioned and capped.

An institution is named by its place in the manifest's roster. Signatures cover the fields through
:func:`common.crypto.primitives.digest`, never the msgpack bytes, so two encodings of one message are one message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, Literal, NamedTuple, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from common.bounds import MAX_INSTITUTIONS
from common.crypto.primitives import DIGEST_BYTES, PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Label, digest, verify_signature
from common.errors import MalformedMessage

if TYPE_CHECKING:
    from common.crypto.primitives import Identity

VERSION: Final = 1
MAX_CONTROL_BYTES: Final = 1 << 18
"""Session messages: the keys of 1024 institutions take 170 KiB."""
REQUEST_OVERHEAD_BYTES: Final = 8192
"""A round request beyond its adapter; a cohort of 1024 takes 3 KiB."""
CONTRIBUTION_OVERHEAD_BYTES: Final = 512
"""A masked contribution beyond its vector."""
CHECK_BITS: Final = 128
"""Bits of the check coordinates: uncancelled masks pass with probability 2⁻¹²⁸."""

Bits: TypeAlias = Literal[32, 64]
Place = Annotated[int, Meta(ge=0, lt=MAX_INSTITUTIONS)]
Counter = Annotated[int, Meta(ge=0, lt=2**31)]
Digest32 = Annotated[bytes, Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
PublicKey = Annotated[bytes, Meta(min_length=PUBLIC_KEY_BYTES, max_length=PUBLIC_KEY_BYTES)]
Signature = Annotated[bytes, Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]


def check_coordinates(bits: Bits) -> int:
    """Trailing coordinates that hold the constant 1.

    Example:
        >>> check_coordinates(32), check_coordinates(64)
        (4, 2)

    """
    return CHECK_BITS // bits


class Step(NamedTuple):
    """Round and attempt; later steps compare greater.

    Example:
        >>> Step(3, 0) < Step(3, 1) < Step(4, 0)
        True

    """

    round: int
    attempt: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundContext:
    """Everything that the masks of one step are bound to: two sites that differ in any of it do not cancel."""

    session: bytes
    """Transcript hash, which covers manifest, session number and every session key."""
    step: Step
    adapter: bytes
    """SHA-256 of the global adapter's bytes."""
    cohort: tuple[int, ...]
    """Places that take part, strictly increasing."""
    dimension: int
    bits: Bits

    def digest(self) -> bytes:
        """32 bytes that stand for the context."""
        return digest(
            Label.ROUND_CONTEXT,
            self.session,
            _integers(*self.step),
            self.adapter,
            _integers(*self.cohort),
            _integers(self.dimension, self.bits),
        )


class _Signed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: Annotated[int, Meta(ge=VERSION, le=VERSION)] = VERSION
    signature: Signature = bytes(SIGNATURE_BYTES)

    def content(self) -> tuple[Label, tuple[bytes, ...]]:
        """What the signature covers."""
        raise NotImplementedError

    def check_signature(self, key: bytes) -> None:
        """Check that the holder of this public key said it.

        Raises:
            BadSignature: It did not.

        """
        label, parts = self.content()
        verify_signature(key, self.signature, label, *parts)


class OpenSession(_Signed, frozen=True, kw_only=True, tag="open_session"):
    """Coordinator → all: make a session key; ``epoch`` counts the run's sessions."""

    manifest: Digest32
    epoch: Counter

    def content(self) -> tuple[Label, tuple[bytes, ...]]:
        """What the signature covers."""
        return Label.OPEN_SESSION, (self.manifest, _integers(self.epoch))


class KeyAdvert(_Signed, frozen=True, kw_only=True, tag="key_advert"):
    """Institution → coordinator → all: my X25519 key for this session."""

    manifest: Digest32
    epoch: Counter
    place: Place
    key: PublicKey

    def content(self) -> tuple[Label, tuple[bytes, ...]]:
        """What the signature covers."""
        return Label.ADVERT, (self.manifest, _integers(self.epoch, self.place), self.key)


class SessionKeys(_Signed, frozen=True, kw_only=True, tag="session_keys"):
    """Coordinator → all: every advert of the session, by place."""

    manifest: Digest32
    epoch: Counter
    adverts: Annotated[tuple[KeyAdvert, ...], Meta(min_length=2, max_length=MAX_INSTITUTIONS)]

    def transcript(self) -> bytes:
        """The session's name: it salts every pairwise key, so sites with other adverts do not cancel."""
        entries = (part for advert in self.adverts for part in (_integers(advert.place), advert.key))
        return digest(Label.SESSION, self.manifest, _integers(self.epoch), *entries)

    def content(self) -> tuple[Label, tuple[bytes, ...]]:
        """What the signature covers."""
        return Label.SESSION_KEYS, (self.transcript(),)


class RoundRequest(_Signed, frozen=True, kw_only=True, tag="round_request"):
    """Coordinator → cohort: train on this adapter, answer with a masked vector."""

    session: Digest32
    round: Counter
    attempt: Counter
    cohort: Annotated[tuple[Place, ...], Meta(min_length=2, max_length=MAX_INSTITUTIONS)]
    dimension: Counter
    bits: Bits
    head: Digest32
    """Head of the coordinator's audit log."""
    adapter: bytes

    def context(self) -> RoundContext:
        """What this request's masks are bound to."""
        return RoundContext(
            session=self.session,
            step=Step(self.round, self.attempt),
            adapter=digest(Label.ADAPTER, self.adapter),
            cohort=self.cohort,
            dimension=self.dimension,
            bits=self.bits,
        )

    def content(self) -> tuple[Label, tuple[bytes, ...]]:
        """What the signature covers."""
        return Label.ROUND_REQUEST, (self.context().digest(), self.head)


class MaskedContribution(_Signed, frozen=True, kw_only=True, tag="masked_contribution"):
    """Institution → coordinator: the masked vector, little-endian words, check coordinates last."""

    context: Digest32
    """:meth:`RoundContext.digest` as the institution saw it."""
    place: Place
    head: Digest32
    """Head of the institution's audit log."""
    vector: bytes

    def content(self) -> tuple[Label, tuple[bytes, ...]]:
        """What the signature covers."""
        return Label.CONTRIBUTION, (self.context, _integers(self.place), self.head, digest(Label.VECTOR, self.vector))


M = TypeVar("M", bound=_Signed)


def signed(message: M, identity: Identity) -> M:
    """The message with its owner's signature."""
    label, parts = message.content()
    return msgspec.structs.replace(message, signature=identity.sign(label, *parts))


def encode(message: _Signed) -> bytes:
    """Wire bytes."""
    return msgspec.msgpack.encode(message)


def decode(data: bytes, kind: type[M], *, limit: int = MAX_CONTROL_BYTES) -> M:
    """Parse wire bytes of one type.

    Raises:
        MalformedMessage: More than ``limit`` bytes, truncated, another type or version, a field of wrong type or range.

    """
    if len(data) > limit:
        raise MalformedMessage(f"{kind.__name__} of {len(data)} bytes; at most {limit} are accepted")
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedMessage(f"{len(data)} bytes are not a {kind.__name__}: {error}") from error


def _integers(*values: int) -> bytes:
    """Eight bytes each."""
    return b"".join(value.to_bytes(8, "big") for value in values)
