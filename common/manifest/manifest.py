"""The run manifest: everything that institutions and coordinator must agree on, as bytes that both sides sign.

The coordinator signs the canonical bytes; each institution countersigns their digest on acceptance, and every session
key is signed over the same digest. So two parties that exchange a valid message hold the same manifest, bit for bit:
there is no field that one of them could have read differently. The digest is the run's name.

Canonical bytes are JSON with sorted keys and every field present. Bytes that are not what encoding their own content
gives (other spacing, a repeated key, ``1`` for ``1.0``) are refused, so one content has one digest.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
from msgspec import Meta

from common import bounds  # noqa: TC001 - msgspec reads annotations at run time
from common.bounds import MAX_INSTITUTIONS
from common.config import Config, Digest, RunConfig
from common.crypto.primitives import SIGNATURE_BYTES, Label, check_identity, digest, verify_signature
from common.errors import BadKey, BadSignature, ConfigErrors, ManifestError, UnknownInstitution
from common.field_words import decoding_fault

if TYPE_CHECKING:
    from collections.abc import Iterator

    from common.crypto.primitives import Identity

VERSION: Final = 1
MAX_MANIFEST_BYTES: Final = 1 << 20

Hex16 = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z", description="32 hexadecimal digits")]
PublicKeyHex = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z", description="a public key, 64 small hexadecimal digits")]
InstitutionName = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9][a-z0-9-]{0,62}\Z",
        description="a name of 1 to 63 small letters, digits and hyphens, the first no hyphen",
    ),
]
Signature = Annotated[bytes, Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]


class Member(Config, frozen=True, kw_only=True):
    """An institution of the run and its long-term Ed25519 key."""

    name: InstitutionName
    key: PublicKeyHex


class PrivacyTerms(Config, frozen=True, kw_only=True):
    """The differential privacy that every contribution carries."""

    unit: Literal["image", "subject"]
    relation: Literal["add_remove_one"] = "add_remove_one"
    epsilon: bounds.Epsilon
    """Promised for the whole run against the coordinator and the tolerated colluders."""
    delta: bounds.Delta
    clip: bounds.Clip
    """L2 bound of one unit's gradient."""
    sampling_rate: bounds.SamplingRate
    noise_multiplier: bounds.NoiseMultiplier
    """Standard deviation over sensitivity of the noise that the colluders do not know."""
    maximum_units: bounds.MaximumUnits
    """Hard cap on the units in one round's sum over all institutions."""
    slack: bounds.LostProbability = 0.0
    """Total variation per round between the noise that is added and the accountant's Gaussian."""
    lost: bounds.LostProbability = 0.0
    """Chance per round that the cap on units is passed."""


class SecureAggregationTerms(Config, frozen=True, kw_only=True):
    """How sums are masked."""

    bits: Literal[32, 64] = 32
    scale: Annotated[None, Meta(description="nothing")] = None
    """Integers per unit of the vector follow from the privacy terms; the signed bytes have the key, so it stays."""
    minimum_cohort: bounds.Cohort
    colluders: bounds.Colluders
    """Institutions that may work with the coordinator without weakening the promise to the others."""


class Manifest(Config, frozen=True, kw_only=True):
    """One run, as signed."""

    version: Annotated[int, Meta(ge=VERSION, le=VERSION)] = VERSION
    run: Hex16
    """Random: two runs with equal settings are still two runs."""
    config: RunConfig
    base_digest: Digest
    adapter_digest: Digest
    """Digest of the adapter specification: names, shapes, order."""
    dimension: bounds.Dimension
    """Trained numbers in the adapter."""
    coordinator: PublicKeyHex
    roster: Annotated[tuple[Member, ...], Meta(min_length=1, max_length=MAX_INSTITUTIONS)]
    """Sorted by name; an institution's place in it is its number in every message."""
    privacy: PrivacyTerms | None = None
    secure_aggregation: SecureAggregationTerms | None = None
    code_version: Annotated[str, Meta(min_length=1, max_length=100)]

    def faults(self) -> Iterator[str]:
        """Rules that types cannot say."""
        yield from (f"config.{fault}" for fault in self.config.faults())
        if self.config.base.digest not in {None, self.base_digest}:
            yield f"base_digest: {self.base_digest} is not config.base.digest, {self.config.base.digest}"
        yield from self._roster_faults()
        if self.secure_aggregation is not None:
            yield from _aggregation_faults(self.secure_aggregation, institutions=len(self.roster))
            if self.privacy is None:
                yield "secure_aggregation: wanted with privacy terms only: a sum without noise protects nobody in it"

    def _roster_faults(self) -> Iterator[str]:
        names = [member.name for member in self.roster]
        keys = [self.coordinator, *(member.key for member in self.roster)]
        if names != sorted(set(names)):
            yield "roster: wanted each institution once, sorted by name"
        if len(set(keys)) < len(keys):
            yield "roster: wanted a key of its own for each institution and the coordinator"
        for owner, key in zip(["coordinator", *names], keys, strict=True):
            try:
                check_identity(bytes.fromhex(key))
            except BadKey as error:
                yield f"{owner}: {error}"

    def place_of(self, key: bytes) -> int:
        """Where the institution with this public key stands in the roster.

        Raises:
            UnknownInstitution: Nowhere.

        """
        for place, member in enumerate(self.roster):
            if member.key == key.hex():
                return place
        raise UnknownInstitution(f"key {key.hex()} is not in the roster of run {self.config.name!r}")


def _aggregation_faults(terms: SecureAggregationTerms, *, institutions: int) -> Iterator[str]:
    if institutions < terms.minimum_cohort:
        yield (
            f"secure_aggregation.minimum_cohort: {terms.minimum_cohort}, but the roster holds {institutions}; approve "
            "more sites, or lower minimum_institutions in [server] of the run's configuration"
        )
    if terms.minimum_cohort < terms.colluders + 2:
        # with one honest institution left, the sum less the colluders' own inputs is that institution's update
        yield (
            f"secure_aggregation.minimum_cohort: wanted at least colluders + 2 = {terms.colluders + 2}, "
            f"got {terms.minimum_cohort}"
        )


class SignedManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Canonical bytes and the coordinator's signature over their digest."""

    manifest: bytes
    signature: Signature


class Countersignature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An institution's word that it takes part in exactly this run."""

    institution: InstitutionName
    digest: Annotated[bytes, Meta(min_length=32, max_length=32)]
    signature: Signature


def new_run() -> str:
    """A fresh value for :attr:`Manifest.run`."""
    return secrets.token_hex(16)


def canonical_bytes(manifest: Manifest) -> bytes:
    """The only bytes that stand for this manifest.

    Raises:
        ManifestError: Too large, or a value of wrong type or range.
        ConfigErrors: The manifest contradicts itself; every fault is listed.

    """
    return _encode(_parse(_encode(manifest)))


def parse_manifest(data: bytes) -> Manifest:
    """Read canonical bytes.

    Raises:
        ManifestError: Too large, not canonical, or a field of wrong type or range.
        ConfigErrors: The manifest contradicts itself; every fault is listed.

    """
    manifest = _parse(data)
    if _encode(manifest) != data:
        raise ManifestError("the manifest's bytes are not canonical; use the file that the coordinator signed")
    return manifest


def manifest_digest(data: bytes) -> bytes:
    """The run's name: 32 bytes over the canonical bytes."""
    return digest(Label.MANIFEST, data)


def sign_manifest(manifest: Manifest, coordinator: Identity) -> bytes:
    """The signed manifest's file bytes.

    Raises:
        ManifestError: The key is not the manifest's coordinator's, or a value is out of range.
        ConfigErrors: The manifest contradicts itself.

    """
    data = canonical_bytes(manifest)
    if coordinator.public.hex() != manifest.coordinator:
        raise ManifestError(f"the manifest names coordinator {manifest.coordinator}, not {coordinator.public.hex()}")
    signature = coordinator.sign(Label.MANIFEST_SIGNED, manifest_digest(data))
    return msgspec.msgpack.encode(SignedManifest(manifest=data, signature=signature))


def open_manifest(signed: bytes) -> tuple[Manifest, bytes]:
    """The manifest and its digest, once the signature of the coordinator *that it names* is checked.

    Whether that coordinator is one to work with is the site policy's question.

    Raises:
        ManifestError: Too large, unreadable, not canonical or not signed by its coordinator.
        ConfigErrors: The manifest contradicts itself.

    """
    if len(signed) > MAX_MANIFEST_BYTES + 1024:
        raise ManifestError(f"signed manifest of {len(signed)} bytes; at most {MAX_MANIFEST_BYTES} are read")
    try:
        envelope = msgspec.msgpack.decode(signed, type=SignedManifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(f"not a signed manifest: {decoding_fault(error, SignedManifest)}") from error
    manifest = parse_manifest(envelope.manifest)
    name = manifest_digest(envelope.manifest)
    try:
        verify_signature(bytes.fromhex(manifest.coordinator), envelope.signature, Label.MANIFEST_SIGNED, name)
    except BadSignature as error:
        raise ManifestError(f"the manifest is not signed by its coordinator: {error}") from error
    return manifest, name


def countersign(manifest: Manifest, identity: Identity) -> bytes:
    """An institution's acceptance, after its policy allowed the manifest.

    Raises:
        UnknownInstitution: The key is not in the roster.

    """
    member = manifest.roster[manifest.place_of(identity.public)]
    name = manifest_digest(canonical_bytes(manifest))
    signature = identity.sign(Label.MANIFEST_ACCEPTED, name, member.name.encode())
    return msgspec.msgpack.encode(Countersignature(institution=member.name, digest=name, signature=signature))


def verify_countersignature(manifest: Manifest, data: bytes) -> Member:
    """The institution that accepted this manifest.

    Raises:
        ManifestError: Unreadable, or for another manifest.
        UnknownInstitution: Not in the roster.
        BadSignature: Not made with the roster's key.

    """
    try:
        word = msgspec.msgpack.decode(data, type=Countersignature)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(f"not a countersignature: {decoding_fault(error, Countersignature)}") from error
    name = manifest_digest(canonical_bytes(manifest))
    if word.digest != name:
        raise ManifestError(f"{word.institution} countersigned manifest {word.digest.hex()}, not {name.hex()}")
    members = {member.name: member for member in manifest.roster}
    if word.institution not in members:
        raise UnknownInstitution(f"{word.institution!r} is not in the roster")
    key = bytes.fromhex(members[word.institution].key)
    verify_signature(key, word.signature, Label.MANIFEST_ACCEPTED, name, word.institution.encode())
    return members[word.institution]


def _encode(manifest: Manifest) -> bytes:
    return msgspec.json.encode(manifest, order="sorted")


def _parse(data: bytes) -> Manifest:
    if len(data) > MAX_MANIFEST_BYTES:
        raise ManifestError(f"manifest of {len(data)} bytes; at most {MAX_MANIFEST_BYTES} are read")
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(f"not a manifest: {decoding_fault(error, Manifest)}") from error
    if faults := tuple(manifest.faults()):
        raise ConfigErrors("manifest", faults)
    return manifest
