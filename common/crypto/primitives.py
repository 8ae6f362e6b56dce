"""Every cryptographic primitive that Darkroom uses, with fixed sizes and purposes; no other module imports one.

Primitives: SHA-256, HMAC-SHA256 (RFC 2104), HKDF-SHA256 (RFC 5869), Argon2id (RFC 9106), Ed25519 (RFC 8032), X25519
(RFC 7748), AES-256 in CTR mode (SP 800-38A) and AES-256-GCM (SP 800-38D). Every hash, signature and derived key starts
with a :class:`Label`, and every variable part is preceded by its length, so bytes made for one purpose mean nothing in
another. Keys come from the operating system.

Secrets do not print, compare in constant time and do not pickle. Python cannot wipe memory: whoever reads the process
reads its keys.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import os
from typing import Final, NoReturn, TypeAlias, final

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from common.errors import BadKey, BadSignature, CryptoError


class Label(enum.Enum):
    """What a hash, a signature or a derived key is for; changing one makes a new protocol version."""

    ADAPTER = b"darkroom/adapter/1"
    ADVERT = b"darkroom/session-key/1"
    APPROVAL = b"darkroom/site-approval/1"
    AUDIT_ENTRY = b"darkroom/audit-entry/1"
    AUDIT_GENESIS = b"darkroom/audit-genesis/1"
    AUDIT_HASH = b"darkroom/audit-hash/1"
    CONTRIBUTION = b"darkroom/masked-contribution/1"
    ERASED_SUBJECT = b"darkroom/erased-subject/1"
    FINGERPRINT = b"darkroom/fingerprint/1"
    INTAKE_KEY = b"darkroom/intake-key/1"
    INTAKE_PICTURE = b"darkroom/intake-picture/1"
    INTAKE_PSEUDONYM = b"darkroom/intake-pseudonym/1"
    INTAKE_RECEIPT = b"darkroom/intake-receipt/1"
    INTAKE_RULES = b"darkroom/intake-rules/1"
    INTAKE_SPLIT = b"darkroom/intake-split/1"
    JOIN_FILE = b"darkroom/join-file/1"
    LEDGER_ROW = b"darkroom/ledger-row/1"
    MANIFEST = b"darkroom/manifest/1"
    MANIFEST_ACCEPTED = b"darkroom/manifest-accepted/1"
    MANIFEST_SIGNED = b"darkroom/manifest-signed/1"
    MASK = b"darkroom/mask/1"
    OPEN_SESSION = b"darkroom/open-session/1"
    PAIR = b"darkroom/pair/1"
    RELEASE = b"darkroom/release/1"
    RELEASE_COUNTERSIGNED = b"darkroom/release-countersigned/1"
    RELEASE_SIGNED = b"darkroom/release-signed/1"
    ROUND_CONTEXT = b"darkroom/round-context/1"
    ROUND_REQUEST = b"darkroom/round-request/1"
    SEAL = b"darkroom/seal/1"
    SESSION = b"darkroom/session/1"
    SESSION_KEYS = b"darkroom/session-keys/1"
    SITE_REQUEST = b"darkroom/site-request/1"
    VAULT = b"darkroom/vault/1"
    VECTOR = b"darkroom/vector/1"


Buffer: TypeAlias = bytes | bytearray | memoryview

DIGEST_BYTES: Final = 32
KEY_BYTES: Final = 32
PUBLIC_KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
NONCE_BYTES: Final = 16
SALT_BYTES: Final = 16
GCM_NONCE_BYTES: Final = 12
GCM_TAG_BYTES: Final = 16
SEAL_OVERHEAD_BYTES: Final = GCM_NONCE_BYTES + GCM_TAG_BYTES
KEYSTREAM_PIECE_BYTES: Final = 1 << 19
"""With buffer and destination it fits a processor's second-level cache."""
_BLOCK_BYTES: Final = 16
_ZEROS: Final = bytes(KEYSTREAM_PIECE_BYTES)

SMALL_ORDER_IDENTITIES: Final = frozenset(
    bytes.fromhex(point)
    for point in (
        "00" * 32,
        "01" + "00" * 31,
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
    )
)
"""Encodings, sign bit cleared, of the Ed25519 points of order 1, 2, 4 and 8: one signature would fit many messages."""

_FIELD: Final = 2**255 - 19
"""Of both curves: a coordinate is written as a number below it."""
_ORDER: Final = 2**252 + 27_742_317_777_372_353_535_851_937_790_883_648_493
"""L, of the group that honest session keys are in; the whole curve has 8·L points."""
_MINUS_ONE: Final = X25519PrivateKey.from_private_bytes((5 * _ORDER - 1).to_bytes(KEY_BYTES, "little"))
"""Public: 5·L - 1, which RFC 7748's clamping leaves as it is, takes a point to its negative, whose coordinate is the
same, if its order divides 5·L, and so L. A point of another order, or of the curve's twist, comes out as another."""


@final
class Secret:
    """Bytes that must not be printed, logged, compared in variable time or pickled."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def reveal(self) -> bytes:
        """The bytes, for a primitive or for a key file and for nothing else."""
        return self._value

    def __len__(self) -> int:
        return len(self._value)

    def __repr__(self) -> str:
        return f"Secret({len(self._value)} bytes)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other._value)

    __hash__ = None  # type: ignore[assignment] # a hash in a table is compared in variable time

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret does not pickle")


def random_key() -> Secret:
    """32 bytes from the operating system."""
    return Secret(os.urandom(KEY_BYTES))


def random_name(size: int) -> bytes:
    """A salt or a name that nobody can guess and that is not secret."""
    return os.urandom(size)


def frame(label: Label, *parts: Buffer) -> bytes:
    """Label and parts, each preceded by its length in eight bytes: different lists never give the same bytes."""
    pieces = (label.value, *parts)
    return b"".join(piece for part in pieces for piece in (len(part).to_bytes(8, "big"), part))


def digest(label: Label, *parts: Buffer) -> bytes:
    """SHA-256 over :func:`frame`, without copying the parts; memoryviews must be of single bytes."""
    state = hashlib.sha256()
    for part in (label.value, *parts):
        state.update(len(part).to_bytes(8, "big"))
        state.update(part)
    return state.digest()


def derive_key(shared: Secret, *, salt: bytes, info: bytes) -> Secret:
    """HKDF-SHA256, extract and expand, 32 bytes."""
    return Secret(HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(shared.reveal()))


def expand_key(key: Secret, *, info: bytes) -> Secret:
    """HKDF-Expand only, 32 bytes; the key must already be uniform."""
    return Secret(HKDFExpand(algorithm=SHA256(), length=KEY_BYTES, info=info).derive(key.reveal()))


def keyed_tag(key: Secret, label: Label, *parts: Buffer) -> bytes:
    """HMAC-SHA256 over :func:`frame`, 32 bytes: equal for equal parts, and random to whoever lacks the key."""
    return hmac.digest(key.reveal(), frame(label, *parts), "sha256")


def stretch_passphrase(passphrase: Secret, *, salt: bytes, memory_kib: int, passes: int, lanes: int) -> Secret:
    """Argon2id, 32 bytes: each guess costs ``memory_kib`` of memory and ``passes`` over it.

    Raises:
        CryptoError: Parameters that RFC 9106 forbids, or memory that is not to be had.

    """
    try:
        stretched = Argon2id(salt=salt, length=KEY_BYTES, iterations=passes, lanes=lanes, memory_cost=memory_kib)
        return Secret(stretched.derive(passphrase.reveal()))
    except (ValueError, MemoryError) as error:
        raise CryptoError(
            f"Argon2id with {memory_kib} KiB, {passes} passes, {lanes} lanes: refused ({error})"
        ) from error


def check_identity(public: bytes) -> None:
    """Refuse a public key that no honest party makes.

    Guarantee: of the encodings of one point, one at most passes, so keys that differ are different keys.

    Raises:
        BadKey: Not 32 bytes, a point of small order, or a second encoding of a point.

    """
    if len(public) != PUBLIC_KEY_BYTES:
        raise BadKey(f"wanted an Ed25519 public key of {PUBLIC_KEY_BYTES} bytes, got {len(public)}")
    unsigned = public[:-1] + bytes([public[-1] & 0x7F])
    if unsigned in SMALL_ORDER_IDENTITIES:
        raise BadKey("an Ed25519 public key of small order signs nothing; ask its owner for a real one")
    if int.from_bytes(unsigned, "little") >= _FIELD:  # RFC 8032, 5.1.3: decoding fails
        raise BadKey("not the canonical encoding of an Ed25519 public key, so one key could pass for two")


@final
class Identity:
    """A party's long-term Ed25519 key."""

    __slots__ = ("_key", "public")

    def __init__(self, seed: Secret) -> None:
        """Rebuild the key from its 32-byte seed, or raise CryptoError."""
        if len(seed) != KEY_BYTES:
            raise CryptoError(f"wanted an identity seed of {KEY_BYTES} bytes, got {len(seed)}")
        self._key = Ed25519PrivateKey.from_private_bytes(seed.reveal())
        self.public: Final = self._key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> Identity:
        """A fresh key from the operating system."""
        return cls(random_key())

    def seed(self) -> Secret:
        """What a key file holds."""
        return Secret(self._key.private_bytes_raw())

    def sign(self, label: Label, *parts: Buffer) -> bytes:
        """64-byte signature over the labelled digest of the parts."""
        return self._key.sign(digest(label, *parts))

    def __repr__(self) -> str:
        return f"Identity(public={self.public.hex()})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an identity does not pickle")


def verify_signature(public: bytes, signature: bytes, label: Label, *parts: Buffer) -> None:
    """Check a signature made by :meth:`Identity.sign`.

    Raises:
        BadKey: The public key is weak or of wrong size.
        BadSignature: Made by another key, for another purpose or over other content.

    """
    check_identity(public)
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, digest(label, *parts))
    except (InvalidSignature, ValueError) as error:
        raise BadSignature(f"the signature for {label.value.decode()} is not by key {public.hex()}") from error


def check_agreement_key(public: bytes) -> None:
    """Refuse a session key that no honest party makes.

    RFC 7748 has X25519 ignore bit 255 and reduce the rest modulo the field's prime, so a copied key could be written in
    another way and pass for a second institution's. Every scalar is a multiple of 8 besides, so a copied key plus a
    point of order 2, 4 or 8 is another point that agrees on the same secrets. What is multiplied here is public.

    Guarantee: what passes is the canonical coordinate of a point of order L, so keys that differ agree on different
    secrets, whoever they agree with.

    Raises:
        BadKey: Not 32 bytes, a second encoding of a point, or a point of another order than L.

    """
    if len(public) != PUBLIC_KEY_BYTES:
        raise BadKey(f"wanted an X25519 session key of {PUBLIC_KEY_BYTES} bytes, got {len(public)}")
    if int.from_bytes(public, "little") >= _FIELD:
        raise BadKey(f"session key {public.hex()} is not in canonical encoding, so one key could pass for two")
    try:
        negative = _MINUS_ONE.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:  # the library's word for a secret of zeros
        raise BadKey(f"session key {public.hex()} is of small order: every secret with it would be zero") from error
    if negative != public:
        raise BadKey(f"session key {public.hex()} is no multiple of the base point, so one key could pass for two")


@final
class AgreementKey:
    """One session's X25519 key; lives in memory only."""

    __slots__ = ("_key", "public")

    def __init__(self, secret: Secret) -> None:
        if len(secret) != KEY_BYTES:
            raise CryptoError(f"wanted an agreement key of {KEY_BYTES} bytes, got {len(secret)}")
        self._key = X25519PrivateKey.from_private_bytes(secret.reveal())
        self.public: Final = self._key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> AgreementKey:
        """A fresh key from the operating system."""
        return cls(random_key())

    def agree(self, peer: bytes) -> Secret:
        """The raw shared secret; derive keys from it before use.

        Raises:
            BadKey: As :func:`check_agreement_key`.

        """
        check_agreement_key(peer)
        return Secret(self._key.exchange(X25519PublicKey.from_public_bytes(peer)))

    def __repr__(self) -> str:
        return f"AgreementKey(public={self.public.hex()})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an agreement key does not pickle")


@final
class Keystream:
    """AES-256-CTR keystream from counter block 2, read piece by piece; a key must serve one stream only.

    AES-GCM under a zero nonce encrypts with exactly this keystream, and OpenSSL computes it on wider vector units than
    plain CTR: 2.4 times as fast where it was measured. The authentication tag is never asked for.
    """

    def __init__(self, key: Secret) -> None:
        if len(key) != KEY_BYTES:
            raise CryptoError(f"wanted a {KEY_BYTES}-byte key, got {len(key)} bytes")
        self._encryptor = Cipher(algorithms.AES(key.reveal()), modes.GCM(bytes(GCM_NONCE_BYTES))).encryptor()

    def read(self, size: int, *, buffer: bytearray) -> memoryview:
        """The next ``size`` ≤ :data:`KEYSTREAM_PIECE_BYTES` bytes; streams may take turns with one buffer."""
        if not 0 <= size <= KEYSTREAM_PIECE_BYTES:
            raise CryptoError(f"a keystream is read in pieces of at most {KEYSTREAM_PIECE_BYTES} bytes, got {size}")
        self._encryptor.update_into(memoryview(_ZEROS)[:size], buffer)
        return memoryview(buffer)[:size]


def keystream_buffer() -> bytearray:
    """Room for one piece and for the block that the library wants to spare."""
    return bytearray(KEYSTREAM_PIECE_BYTES + _BLOCK_BYTES - 1)


def aes_ctr_keystream(key: bytes, nonce: bytes, n: int) -> bytes:
    """The first ``n`` bytes of AES-256-CTR, counting up from ``nonce`` as one big-endian number.

    Raises:
        CryptoError: The key is not 32 bytes, the nonce is not 16, or n is negative.

    """
    if len(key) != KEY_BYTES or len(nonce) != NONCE_BYTES or n < 0:
        raise CryptoError(f"wanted a {KEY_BYTES}-byte key, a {NONCE_BYTES}-byte nonce and n of 0 or more")
    return Cipher(algorithms.AES(key), modes.CTR(nonce)).encryptor().update(bytes(n))


def seal(key: Secret, plaintext: bytes, *, context: bytes) -> bytes:
    """AES-256-GCM under a random nonce: nonce ‖ ciphertext ‖ tag, bound to ``context``; at most 2³² calls per key."""
    nonce = os.urandom(GCM_NONCE_BYTES)
    return nonce + AESGCM(key.reveal()).encrypt(nonce, plaintext, frame(Label.SEAL, context))


def open_sealed(key: Secret, sealed: bytes, *, context: bytes) -> bytes:
    """Undo :func:`seal`.

    Raises:
        CryptoError: Too short, another key, another context or altered.

    """
    if len(sealed) < SEAL_OVERHEAD_BYTES:
        raise CryptoError(f"wanted sealed text of at least {SEAL_OVERHEAD_BYTES} bytes, got {len(sealed)}")
    nonce, ciphertext = sealed[:GCM_NONCE_BYTES], sealed[GCM_NONCE_BYTES:]
    try:
        return AESGCM(key.reveal()).decrypt(nonce, ciphertext, frame(Label.SEAL, context))
    except InvalidTag as error:
        raise CryptoError("sealed text was altered, or was sealed with another key or for another purpose") from error
