"""The two files that bring a site into a federation, and the fingerprints that people compare by telephone.

A site sends a *request*: its public keys, signed by its identity. The coordinator answers with a *join file*: where to
connect, whom to trust and which bundle to run, signed by the coordinator. Either file may travel by any way: a change
breaks the signature, and another signer's file has another fingerprint.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import msgspec
from msgspec import Meta

from common.config import Digest
from common.crypto.certificates import check_node_key, read_certificate
from common.crypto.primitives import Label, check_identity, digest, verify_signature
from common.errors import BadKey, BadSignature, ProvisioningError
from common.field_words import decoding_fault, not_wanted
from common.manifest.manifest import InstitutionName, PublicKeyHex

if TYPE_CHECKING:
    from pathlib import Path

    from common.crypto.primitives import Identity

MAX_FILE_BYTES: Final = 64 << 10
FINGERPRINT_DIGITS: Final = 30
"""log2(10^30) = 99.6 bits: finding a second key with a given fingerprint takes about 2^99 tries."""
_GROUP: Final = 5
T = TypeVar("T", bound=msgspec.Struct)
SignatureHex = Annotated[str, Meta(pattern=r"^[0-9a-f]{128}\Z")]
Contact = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=200,
        pattern=r"^[^\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f]+\Z",
        description="1 to 200 visible characters on one line",
    ),
]
"""No control, zero-width or direction-changing character: a person reads it in a terminal before approving."""
Address = Annotated[
    str,
    Meta(
        pattern=r"^(\[[0-9a-f:.]+\]|[A-Za-z0-9.-]{1,253}):[0-9]{1,5}\Z",
        description="host:port, such as federation.example.org:443",
    ),
]

_LABEL: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
"""Between two dots of a name (RFC 1123, section 2.1)."""
_LAST_PORT: Final = 65_535

VersionText = Annotated[str, Meta(pattern=r"^[0-9A-Za-z][0-9A-Za-z.+!-]{0,63}\Z")]


class SiteRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a site tells of itself: nothing secret."""

    version: Annotated[int, Meta(ge=1, le=1)] = 1
    name: InstitutionName
    contact: Contact
    identity: PublicKeyHex
    node_key: Annotated[str, Meta(max_length=400)]
    """OpenSSH public line of the SuperNode's key."""
    signature: SignatureHex = "0" * 128

    def fingerprint(self) -> str:
        """Covers name and both keys."""
        return _digits(digest(Label.FINGERPRINT, b"site", *self._keys()))

    def _keys(self) -> tuple[bytes, ...]:
        return self.name.encode(), bytes.fromhex(self.identity), self.node_key.encode()

    def signed_parts(self) -> tuple[bytes, ...]:
        """Everything but the signature."""
        return (*self._keys(), self.contact.encode())


class JoinFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a site needs to take part."""

    version: Annotated[int, Meta(ge=1, le=1)] = 1
    federation: Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9 ._-]+\Z")]
    site: InstitutionName
    identity: PublicKeyHex
    """The site's own, so that one site's file is of no use at another."""
    address: Address
    """Public listener, host:port."""
    authority: Annotated[str, Meta(max_length=8192)]
    """PEM of the certificate authority that the listener's certificate must come from."""
    coordinator: PublicKeyHex
    bundle: Digest
    """Of the app bundle's bytes."""
    darkroom: VersionText
    """The coordinator's version of this package: a run's noise is worked out by one version alone."""
    flower: VersionText
    """The coordinator's version of Flower: its minor versions do not understand each other."""
    signature: SignatureHex = "0" * 128

    def signed_parts(self) -> tuple[bytes, ...]:
        """Everything but the signature."""
        party = (self.federation, self.site, self.identity)
        coordinator = (self.address, self.authority, self.coordinator)
        code = (self.bundle, self.darkroom, self.flower)
        return tuple(text.encode() for text in (*party, *coordinator, *code))


def coordinator_fingerprint(public: bytes) -> str:
    """Thirty digits in groups of five."""
    return _digits(digest(Label.FINGERPRINT, b"coordinator", public))


def institution_fingerprint(public: bytes) -> str:
    """Thirty digits in groups of five, of an institution's identity: what institutions read out to each other."""
    return _digits(digest(Label.FINGERPRINT, b"institution", public))


def create_request(*, name: str, contact: str, identity: Identity, node_key: str) -> SiteRequest:
    """A signed request.

    Raises:
        ProvisioningError: A name, contact or key that cannot be used.

    """
    for option, value, kind in (("--name", name, InstitutionName), ("--contact", contact, Contact)):
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            raise ProvisioningError(not_wanted(option, kind, value)) from error
    bare = SiteRequest(name=name, contact=contact, identity=identity.public.hex(), node_key=node_key)
    signature = identity.sign(Label.SITE_REQUEST, *bare.signed_parts()).hex()
    return parse_request(encode_request(msgspec.structs.replace(bare, signature=signature)), source="request")


def encode_request(request: SiteRequest) -> bytes:
    """The request file's bytes."""
    return msgspec.json.format(msgspec.json.encode(request)) + b"\n"


def is_reachable(address: str) -> bool:
    """Whether ``host:port`` is something that a connection can be tried to.

    Resolvers and TLS libraries have an exception of their own for each way in which it is not.
    """
    host, _, port = address.rpartition(":")
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= _LAST_PORT:
        return False
    if not (host.startswith("[") and host.endswith("]")):
        return all(map(_LABEL.fullmatch, host.split(".")))  # an IPv4 address, too
    try:
        ipaddress.IPv6Address(host[1:-1])
    except ValueError:
        return False
    return True


def parse_request(data: bytes, *, source: str) -> SiteRequest:
    """A request whose signature and keys are checked.

    Raises:
        ProvisioningError: Too large, malformed, a weak or wrong key, or not signed by its own identity.

    """
    request = _decode(data, SiteRequest, source=source)
    check_node_key(request.node_key)
    _check(request.identity, request.signature, Label.SITE_REQUEST, request.signed_parts(), source=source)
    return request


def sign_join_file(join: JoinFile, coordinator: Identity) -> bytes:
    """The join file's bytes."""
    signature = coordinator.sign(Label.JOIN_FILE, *join.signed_parts()).hex()
    return msgspec.json.format(msgspec.json.encode(msgspec.structs.replace(join, signature=signature))) + b"\n"


def read_join_file(data: bytes, *, source: str) -> JoinFile:
    """A join file that is signed by the coordinator that it names, whoever that is and whoever it is for.

    Raises:
        ProvisioningError: Malformed or changed.

    """
    join = _decode(data, JoinFile, source=source)
    _check(join.coordinator, join.signature, Label.JOIN_FILE, join.signed_parts(), source=source)
    return join


def parse_join_file(data: bytes, *, identity: bytes, fingerprint: str, source: str) -> JoinFile:
    """A join file, made for this site by the coordinator whose fingerprint the user was told.

    Raises:
        ProvisioningError: Malformed, changed, for another site, or by another coordinator.

    """
    join = read_join_file(data, source=source)
    if join.identity != identity.hex():
        raise ProvisioningError(f"{source}: made for {join.site} with another identity than this site's")
    said = coordinator_fingerprint(bytes.fromhex(join.coordinator))
    typed = re.sub(r"[\s-]", "", fingerprint)
    if typed != said.replace(" ", ""):
        # the right one is not told: whoever could copy it from here would compare nothing
        short = "" if len(typed) == FINGERPRINT_DIGITS else f", which has {FINGERPRINT_DIGITS} digits"
        raise ProvisioningError(
            f"{source}: not signed by the coordinator with the fingerprint {fingerprint!r} that you gave{short}; type "
            "it as you heard it. If it is as you heard it, do not use this file: telephone the coordinator at a number "
            "that you did not get together with it"
        )
    read_certificate(join.authority.encode(), source=f"{source}: authority")
    return join


_KINDS: Final[dict[type[msgspec.Struct], str]] = {SiteRequest: "site's request", JoinFile: "join file"}


def read_small_file(path: Path) -> bytes:
    """The file's bytes, at most one more than is ever accepted.

    Raises:
        ProvisioningError: It cannot be read.

    """
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ProvisioningError(f"{path}: cannot be read ({error.strerror}); give the file that was sent") from error


def _decode(data: bytes, into: type[T], *, source: str) -> T:
    if len(data) > MAX_FILE_BYTES:
        raise ProvisioningError(f"{source}: more than {MAX_FILE_BYTES} bytes; this is no such file")
    try:
        return msgspec.json.decode(data, type=into)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        for other, name in _KINDS.items():
            with contextlib.suppress(ValueError, RecursionError):
                msgspec.json.decode(data, type=other)
                raise ProvisioningError(f"{source}: is a {name}; give a {_KINDS[into]} here") from error
        raise ProvisioningError(
            f"{source}: not a {_KINDS[into]}, or a damaged one ({decoding_fault(error, into)}); get it again"
        ) from error


def _check(public: str, signature: str, label: Label, parts: tuple[bytes, ...], *, source: str) -> None:
    try:
        check_identity(bytes.fromhex(public))
        verify_signature(bytes.fromhex(public), bytes.fromhex(signature), label, *parts)
    except (BadKey, BadSignature) as error:
        raise ProvisioningError(f"{source}: was changed, or is not signed by the key that it names") from error


def _digits(hashed: bytes) -> str:
    number = int.from_bytes(hashed, "big") % 10**FINGERPRINT_DIGITS
    text = f"{number:0{FINGERPRINT_DIGITS}d}"
    return " ".join(text[start : start + _GROUP] for start in range(0, FINGERPRINT_DIGITS, _GROUP))
