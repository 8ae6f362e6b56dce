"""Primitives against the vectors of their standards; keys that must be refused; secrets that must not show."""

from __future__ import annotations

import copy
import hashlib
import hmac
import pickle
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from common.crypto import primitives as crypto
from common.crypto.primitives import AgreementKey, Identity, Keystream, Label, Secret
from common.errors import BadKey, BadSignature, CryptoError

if TYPE_CHECKING:
    from collections.abc import Iterator

SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")  # RFC 8032, test 1
P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P


def test_hkdf_is_rfc5869() -> None:
    ikm, salt, info = b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA))
    prk = bytes.fromhex("077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5")
    okm = bytes.fromhex("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf")
    assert crypto.derive_key(Secret(ikm), salt=salt, info=info).reveal() == okm
    assert crypto.expand_key(Secret(prk), info=info).reveal() == okm


def test_ed25519_public_key_is_rfc8032() -> None:
    public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert Identity(Secret(SEED)).public.hex() == public


def test_x25519_is_rfc7748() -> None:
    secret = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    peer = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert AgreementKey(Secret(secret)).agree(peer).reveal().hex() == shared


def test_ctr_is_sp800_38a() -> None:
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    nonce = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    output = "0bdf7df1591716335e9a8b15c860c5025a6e699d536119065433863c8f657b94"  # output blocks 1 and 2
    assert crypto.aes_ctr_keystream(key, nonce, 32).hex() == output


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 100), max_size=8))
def test_keystream_in_pieces_is_ctr_from_block_2(sizes: list[int]) -> None:
    stream, buffer = Keystream(Secret(b"k" * 32)), crypto.keystream_buffer()
    pieces = b"".join(bytes(stream.read(size, buffer=buffer)) for size in sizes)
    assert pieces == crypto.aes_ctr_keystream(b"k" * 32, bytes(15) + b"\x02", sum(sizes))


def test_long_keystream_is_ctr_from_block_2() -> None:
    """Beyond 2¹⁶ blocks, in the pieces that masking reads."""
    stream, buffer = Keystream(Secret(b"k" * 32)), crypto.keystream_buffer()
    pieces = b"".join(bytes(stream.read(1 << 17, buffer=buffer)) for _ in range(12))
    assert pieces == crypto.aes_ctr_keystream(b"k" * 32, bytes(15) + b"\x02", 12 << 17)


@pytest.mark.parametrize(("key", "nonce", "n"), [(31, 16, 1), (33, 16, 1), (16, 16, 1), (32, 12, 1), (32, 16, -1)])
def test_keystream_wants_exact_sizes(key: int, nonce: int, n: int) -> None:
    with pytest.raises(CryptoError, match="wanted"):
        crypto.aes_ctr_keystream(bytes(key), bytes(nonce), n)
    if key != crypto.KEY_BYTES:
        with pytest.raises(CryptoError, match="32-byte key"):
            Keystream(Secret(bytes(key)))


@pytest.mark.parametrize("size", [-1, crypto.KEYSTREAM_PIECE_BYTES + 1])
def test_keystream_is_read_in_pieces(size: int) -> None:
    with pytest.raises(CryptoError, match="in pieces"):
        Keystream(Secret(b"k" * 32)).read(size, buffer=crypto.keystream_buffer())


def test_labels_are_distinct_and_versioned() -> None:
    values = [label.value for label in Label]
    assert len(set(values)) == len(Label.__members__)
    assert all(value.startswith(b"darkroom/") and value.endswith(b"/1") for value in values)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.binary(max_size=9), max_size=4), st.lists(st.binary(max_size=9), max_size=4))
def test_frame_is_injective_and_digest_hashes_it(one: list[bytes], other: list[bytes]) -> None:
    frames = crypto.frame(Label.MASK, *one), crypto.frame(Label.MASK, *other)
    assert (frames[0] == frames[1]) == (one == other)
    assert frames[0] != crypto.frame(Label.PAIR, *one)
    assert crypto.digest(Label.MASK, *one) == hashlib.sha256(frames[0]).digest()


def test_signature_is_for_one_key_label_and_content() -> None:
    owner, other = Identity(Secret(SEED)), Identity.generate()
    signature = owner.sign(Label.ADVERT, b"a", b"b")
    assert len(signature) == crypto.SIGNATURE_BYTES
    crypto.verify_signature(owner.public, signature, Label.ADVERT, b"a", b"b")
    wrong: list[tuple[bytes, bytes, Label, tuple[bytes, ...]]] = [
        (other.public, signature, Label.ADVERT, (b"a", b"b")),
        (owner.public, signature, Label.CONTRIBUTION, (b"a", b"b")),
        (owner.public, signature, Label.ADVERT, (b"ab",)),
        (owner.public, signature, Label.ADVERT, (b"ab", b"")),
        (owner.public, signature[:-1], Label.ADVERT, (b"a", b"b")),
        (owner.public, bytes([signature[0] ^ 1]) + signature[1:], Label.ADVERT, (b"a", b"b")),
        (owner.public, signature[:63] + bytes([signature[63] ^ 0x20]), Label.ADVERT, (b"a", b"b")),
    ]
    for public, value, label, parts in wrong:
        with pytest.raises(BadSignature):
            crypto.verify_signature(public, value, label, *parts)


def _order_divides_8(encoded: bytes) -> bool:
    """Whether the point with this encoding (any sign) has small order, by the curve's own addition law."""
    y = (int.from_bytes(encoded, "little") & (2**255 - 1)) % P
    x2 = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(x2, (P + 3) // 8, P)
    x = x if x * x % P == x2 else x * pow(2, (P - 1) // 4, P) % P
    assert x * x % P == x2
    for _ in range(3):
        k = D * x * x * y * y % P
        x, y = 2 * x * y * pow(1 + k, -1, P) % P, (y * y + x * x) * pow(1 - k, -1, P) % P
    return (x, y) == (0, 1)


def test_small_order_list_is_right() -> None:
    assert all(_order_divides_8(point) for point in crypto.SMALL_ORDER_IDENTITIES)
    assert not _order_divides_8(Identity(Secret(SEED)).public)
    # y = 1, -1, 0 and two of order 8, each with both signs; p and p + 1 are second spellings
    assert len(crypto.SMALL_ORDER_IDENTITIES) == 7


@pytest.mark.parametrize("sign", [0, 0x80])
@pytest.mark.parametrize("point", sorted(crypto.SMALL_ORDER_IDENTITIES))
def test_small_order_identity_is_refused(point: bytes, sign: int) -> None:
    with pytest.raises(BadKey, match="small order"):
        crypto.verify_signature(point[:-1] + bytes([point[-1] | sign]), bytes(64), Label.ADVERT)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_keys_of_wrong_size_are_refused(size: int) -> None:
    with pytest.raises(BadKey):
        crypto.check_identity(bytes(size))
    with pytest.raises(BadKey):
        AgreementKey.generate().agree(b"\x09" * size)
    with pytest.raises(CryptoError):
        Identity(Secret(bytes(size)))
    with pytest.raises(CryptoError):
        AgreementKey(Secret(bytes(size)))


X25519_SMALL = (
    "00" * 32,
    "01" + "00" * 31,
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ec" + "ff" * 30 + "7f",
    "ed" + "ff" * 30 + "7f",
    "ee" + "ff" * 30 + "7f",
)


@pytest.mark.parametrize("point", X25519_SMALL)
def test_small_order_agreement_is_refused(point: str) -> None:
    """In whatever way it is written; the raw function of the library gives zero, or refuses, for each."""
    key = bytes.fromhex(point)
    for spelling in (key, key[:-1] + bytes([key[-1] | 0x80])):
        with pytest.raises(BadKey, match=r"small order|canonical"):
            AgreementKey.generate().agree(spelling)
        with pytest.raises(ValueError):  # noqa: PT011 - the library's own, which says no more
            X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(spelling))


def _spellings(public: bytes) -> Iterator[bytes]:
    """Of one X25519 coordinate, all that RFC 7748 reads as the same."""
    number = int.from_bytes(public, "little")
    for same in (number, number + P):
        if same < 2**255:
            yield same.to_bytes(32, "little")
            yield (same | 1 << 255).to_bytes(32, "little")


@pytest.mark.parametrize("public", [AgreementKey(Secret(SEED)).public, b"\x09" + bytes(31), b"\x10" + bytes(31)])
def test_one_session_key_cannot_be_written_in_two_ways(public: bytes) -> None:
    spellings = list(_spellings(public))
    ours = X25519PrivateKey.generate()
    secrets = {ours.exchange(X25519PublicKey.from_public_bytes(each)) for each in spellings}
    assert len(secrets) == 1
    assert len(spellings) >= 2
    crypto.check_agreement_key(public)
    for other in spellings[1:]:
        with pytest.raises(BadKey, match="pass for two"):
            crypto.check_agreement_key(other)


def _plus_two_torsion(public: bytes) -> bytes:
    """The coordinate of the point plus (0, 0), which is of order 2: u becomes 1/u."""
    return pow(int.from_bytes(public, "little"), -1, P).to_bytes(32, "little")


def test_a_session_key_plus_a_point_of_small_order_is_refused() -> None:
    """X25519's scalars are multiples of 8, so the sum agrees on the same secrets and would pass for a second key."""
    public, ours = AgreementKey(Secret(SEED)).public, X25519PrivateKey.generate()
    other = _plus_two_torsion(public)
    assert other != public
    assert len({ours.exchange(X25519PublicKey.from_public_bytes(each)) for each in (public, other)}) == 1
    with pytest.raises(BadKey, match="pass for two"):
        crypto.check_agreement_key(other)
    with pytest.raises(BadKey, match="pass for two"):
        AgreementKey.generate().agree(other)


def test_every_session_key_that_is_made_is_taken() -> None:
    for _ in range(64):
        crypto.check_agreement_key(AgreementKey.generate().public)


def test_session_keys_of_the_twist_are_refused() -> None:
    """Some small coordinates are no point of the curve; of those that are, one in eight is of order L."""
    taken = [u for u in range(2, 19) if _is_taken(u.to_bytes(32, "little"))]
    assert taken == [9, 16]


def _is_taken(public: bytes) -> bool:
    try:
        crypto.check_agreement_key(public)
    except BadKey:
        return False
    return True


@pytest.mark.parametrize("y", range(2, 19))
@pytest.mark.parametrize("sign", [0, 1 << 255])
def test_one_identity_cannot_be_written_in_two_ways(y: int, sign: int) -> None:
    """Every y that has a second spelling below 2²⁵⁵; y = 0 and 1 are of small order."""
    crypto.check_identity((y | sign).to_bytes(32, "little"))
    with pytest.raises(BadKey, match="pass for two"):
        crypto.check_identity((y + P | sign).to_bytes(32, "little"))


def test_agreement_is_symmetric_and_fresh() -> None:
    one, other = AgreementKey.generate(), AgreementKey.generate()
    assert one.agree(other.public) == other.agree(one.public)
    assert one.public != other.public


@pytest.mark.parametrize("holder", [Secret(SEED), Identity(Secret(SEED)), AgreementKey(Secret(SEED))])
def test_secrets_do_not_show(holder: object) -> None:
    for text in (repr(holder), str(holder), f"{holder}", repr([holder]), repr({"k": holder})):
        assert SEED.hex() not in text
        assert repr(SEED) not in text
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="pickle"):
            attempt(holder)


def test_secrets_compare_by_value_and_do_not_hash() -> None:
    assert Secret(b"a") == Secret(b"a")
    assert Secret(b"a") != Secret(b"b")
    assert Secret(b"a") != b"a"
    with pytest.raises(TypeError, match="unhashable"):
        hash(Secret(b"a"))
    assert Identity(Secret(SEED)).seed() == Secret(SEED)


def test_sealed_text_opens_only_as_it_was() -> None:
    key = crypto.random_key()
    sealed = crypto.seal(key, b"plain", context=b"identity key")
    assert crypto.open_sealed(key, sealed, context=b"identity key") == b"plain"
    assert len(sealed) == 5 + crypto.SEAL_OVERHEAD_BYTES
    assert sealed != crypto.seal(key, b"plain", context=b"identity key")
    for index in range(len(sealed)):
        altered = sealed[:index] + bytes([sealed[index] ^ 1]) + sealed[index + 1 :]
        with pytest.raises(CryptoError, match="altered"):
            crypto.open_sealed(key, altered, context=b"identity key")
    for other_key, text, context in (
        (crypto.random_key(), sealed, b"identity key"),
        (key, sealed, b"another"),
        (key, sealed[:-1], b"identity key"),
        (key, sealed[:27], b"identity key"),
        (key, b"", b"identity key"),
    ):
        with pytest.raises(CryptoError):
            crypto.open_sealed(other_key, text, context=context)


def test_keyed_tags_are_hmac_over_the_frame() -> None:
    # RFC 4231, case 2, says that the function below is HMAC-SHA256
    vector = hmac.digest(b"Jefe", b"what do ya want for nothing?", "sha256")
    assert vector.hex() == "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    key = Secret(bytes(range(32)))
    assert crypto.keyed_tag(key, Label.VAULT, b"a", b"bc") == hmac.digest(
        key.reveal(), crypto.frame(Label.VAULT, b"a", b"bc"), "sha256"
    )
    others = {crypto.keyed_tag(key, Label.VAULT, b"ab", b"c"), crypto.keyed_tag(key, Label.SEAL, b"a", b"bc")}
    assert crypto.keyed_tag(key, Label.VAULT, b"a", b"bc") not in others
    assert len(others) == 2


def test_passphrases_are_stretched_by_argon2id() -> None:
    """The reference implementation's own vector (version 0x13)."""
    stretched = crypto.stretch_passphrase(Secret(b"password"), salt=b"somesalt", memory_kib=1 << 16, passes=2, lanes=1)
    assert stretched.reveal().hex() == "09316115d5cf24ed5a15a31a3ba326e5cf32edc24702987c02b6566f61913cf7"


@pytest.mark.parametrize(("memory_kib", "passes", "lanes"), [(1, 1, 1), (1 << 13, 0, 1), (1 << 13, 1, 0)])
def test_parameters_that_argon2_forbids_are_refused(memory_kib: int, passes: int, lanes: int) -> None:
    with pytest.raises(CryptoError, match="Argon2id"):
        crypto.stretch_passphrase(
            Secret(b"password"), salt=bytes(16), memory_kib=memory_kib, passes=passes, lanes=lanes
        )


def test_names_are_random() -> None:
    assert len({crypto.random_name(16) for _ in range(100)}) == 100
    assert len(crypto.random_name(24)) == 24
