"""What leaves a federation: the statement ``release.json`` that the coordinator signs, and each site's word on it.

The statement names every file of the release by its digest, so whoever holds it holds all of it. Both files are JSON
for people to read; a signature covers the content in its only accepted form, so one content has one digest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from common.audit_log import HexDigest, HexSignature  # noqa: TC001 - msgspec reads annotations at run time
from common.bounds import MAX_INSTITUTIONS
from common.config import Config, Digest, RunName
from common.crypto.primitives import SIGNATURE_BYTES, Identity, Label, digest, verify_signature
from common.errors import BadKey, BadSignature, DarkroomError
from common.field_words import decoding_fault
from common.manifest.manifest import InstitutionName, PublicKeyHex  # noqa: TC001 - msgspec reads annotations at run time
from common.release.card_facts import CardFacts, every_fault

if TYPE_CHECKING:
    from common.privacy.run_plan import PrivacyReport
    from common.privacy.statements import Statements

MAX_RELEASE_BYTES: Final = 1 << 20
MAX_WORD_BYTES: Final = 4096
_UNSIGNED: Final = "0" * 2 * SIGNATURE_BYTES
T = TypeVar("T", "Release", "SiteWord")

FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z", description="a file's plain name")]
"""Of a file directly in the release's folder: no name leads elsewhere or is hidden."""
Count = Annotated[int, Meta(ge=0, lt=2**31)]
Place = Annotated[int, Meta(ge=0, lt=MAX_INSTITUTIONS)]
Epsilon = Annotated[float, Meta(ge=0)]
Time = Annotated[
    str,
    Meta(
        pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\+00:00\Z",
        description="a time such as 2026-01-31T12:00:00+00:00",
    ),
]
RosterKind = Literal["public", "private"]


class ReleaseError(DarkroomError):
    """A release that is incomplete, altered or not agreed to: every fault at once where there are several."""


class ReleasedFile(Config, frozen=True, kw_only=True):
    """One file beside ``release.json``."""

    name: FileName
    size: Annotated[int, Meta(ge=0, lt=2**53)]
    digest: Digest


class StatedEpsilon(Config, frozen=True, kw_only=True):
    """The four ε for so many attempts; null where nothing is promised."""

    attempts: Annotated[int, Meta(ge=1, lt=2**31)]
    server: Epsilon | None
    institutions: Epsilon | None
    public: Epsilon | None
    fallback: Epsilon | None


class StatedPrivacy(Config, frozen=True, kw_only=True):
    """What is promised about one unit, at ``delta``."""

    unit: Literal["image", "subject"]
    relation: Annotated[str, Meta(max_length=100)]
    delta: Annotated[float, Meta(gt=0, lt=1)]
    secure_aggregation: bool
    accountant: Annotated[str, Meta(max_length=200)]
    sent: StatedEpsilon
    """For the attempts that were sent."""
    planned: StatedEpsilon
    """For all that the noise is sized for: what holds where a run was ended early because of what its adapter showed,
    since ε is stated for a number of attempts that does not depend on the data."""


class LogHead(Config, frozen=True, kw_only=True):
    """The last head of an institution's audit log that the coordinator was given."""

    place: Place
    head: HexDigest


class Release(Config, frozen=True, kw_only=True):
    """``release.json``: digests, public settings, promises, the coordinator's words; nothing that was measured.

    The model card follows from it, see :mod:`common.release.model_card`.
    """

    version: Annotated[int, Meta(ge=1, le=2)] = 2
    """Of 1 are records of earlier releases: they say neither how many institutions there were nor what the card has."""
    name: RunName
    """The run's."""
    manifest: HexDigest
    """Digest of the run's manifest."""
    coordinator: PublicKeyHex
    base: Digest
    family: Literal["sd1", "sd2", "sdxl"]
    adapter_spec: Digest
    adapter: Digest
    """SHA-256 of the adapter's vector, float32 and little-endian."""
    dimension: Annotated[int, Meta(ge=1, lt=2**31)]
    rounds: Annotated[int, Meta(ge=1, lt=2**31)]
    rounds_planned: Annotated[int, Meta(ge=1, lt=2**31)]
    privacy: StatedPrivacy
    roster: RosterKind
    """Public: the signed manifest, with everybody's name and key, is one of the files."""
    institutions: Annotated[int, Meta(ge=1, le=MAX_INSTITUTIONS)] | UnsetType = UNSET
    """In the roster."""
    card: CardFacts | UnsetType = UNSET
    """What the coordinator says in the model card."""
    coordinator_log: HexDigest
    """Head of the coordinator's audit log when the release was made."""
    coordinator_entries: Count
    logs: Annotated[tuple[LogHead, ...], Meta(max_length=MAX_INSTITUTIONS)]
    """By place."""
    code_version: Annotated[
        str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+!_-]{0,99}\Z", description="a version, such as 0.1.0")
    ]
    time: Time
    files: Annotated[tuple[ReleasedFile, ...], Meta(min_length=1, max_length=32)]
    """Sorted by name."""
    signature: HexSignature = _UNSIGNED

    @property
    def is_finished(self) -> bool:
        """Whether every planned round was done."""
        return self.rounds == self.rounds_planned

    def digest(self) -> bytes:
        """The release's name: 32 bytes over everything but the signature."""
        return digest(Label.RELEASE, _encode(msgspec.structs.replace(self, signature=_UNSIGNED)))


class SiteWord(Config, frozen=True, kw_only=True):
    """``signatures/SITE.json``: a site found what the release says of it to be so."""

    version: Annotated[int, Meta(ge=1, le=1)] = 1
    release: HexDigest
    place: Place
    institution: InstitutionName | None
    """Null where the roster is not public."""
    attempts: Annotated[int, Meta(ge=1, lt=2**31)]
    """Contributions to this run in the site's own ledger."""
    time: Time
    signature: HexSignature = _UNSIGNED

    def content(self) -> bytes:
        """What the signature covers."""
        return _encode(msgspec.structs.replace(self, signature=_UNSIGNED))


def sign_release(release: Release, coordinator: Identity) -> Release:
    """The same, signed.

    Raises:
        ReleaseError: The key is not the coordinator's that the release names.

    """
    if coordinator.public.hex() != release.coordinator:
        raise ReleaseError(f"the release names coordinator {release.coordinator}, not {coordinator.public.hex()}")
    signature = coordinator.sign(Label.RELEASE_SIGNED, release.digest()).hex()
    return msgspec.structs.replace(release, signature=signature)


def sign_word(word: SiteWord, site: Identity) -> SiteWord:
    """The same, signed."""
    signature = site.sign(Label.RELEASE_COUNTERSIGNED, word.content()).hex()
    return msgspec.structs.replace(word, signature=signature)


def file_bytes(statement: Release | SiteWord) -> bytes:
    """The file's bytes: sorted keys, two blanks of indent, a newline at the end."""
    return msgspec.json.format(_encode(statement), indent=2) + b"\n"


def parse_release(data: bytes) -> Release:
    """A release whose signature, by the coordinator *that it names*, is checked.

    Raises:
        ReleaseError: Too large, unreadable, not in the accepted form, not signed so, or with words that no card has.

    """
    release = _parse(data, Release, most=MAX_RELEASE_BYTES, source="release.json")
    try:
        key, signature = bytes.fromhex(release.coordinator), bytes.fromhex(release.signature)
        verify_signature(key, signature, Label.RELEASE_SIGNED, release.digest())
    except (BadKey, BadSignature) as error:
        raise ReleaseError("release.json: was changed, or is not signed by the coordinator that it names") from error
    if (release.version == 1) != (release.card is UNSET) or (release.card is UNSET) != (release.institutions is UNSET):
        raise ReleaseError("release.json: wanted card and institutions, both in version 2 and none in version 1")
    if release.card and (faults := tuple(every_fault(release.card))):
        raise ReleaseError(f"release.json: words that a model card may not have: card.{'; card.'.join(faults)}")
    return release


def parse_word(data: bytes, *, key: str, source: str) -> SiteWord:
    """A site's word, signed with this key.

    Raises:
        ReleaseError: Too large, unreadable, not in the accepted form, or not signed so.

    """
    word = _parse(data, SiteWord, most=MAX_WORD_BYTES, source=source)
    try:
        signature = bytes.fromhex(word.signature)
        verify_signature(bytes.fromhex(key), signature, Label.RELEASE_COUNTERSIGNED, word.content())
    except (BadKey, BadSignature) as error:
        raise ReleaseError(f"{source}: was changed, or is not signed with the key {key} of the roster") from error
    return word


def stated_epsilon(report: PrivacyReport) -> StatedEpsilon:
    """The four figures of a report, unrounded.

    Raises:
        ReleaseError: Nothing is promised.

    """
    stated = _statements(report)
    return StatedEpsilon(
        attempts=report.attempts,
        server=stated.server.epsilon,
        institutions=stated.institutions.epsilon,
        public=stated.public.epsilon,
        fallback=stated.fallback.epsilon,
    )


def stated_privacy(sent: PrivacyReport, planned: PrivacyReport) -> StatedPrivacy:
    """What a release states.

    Raises:
        ReleaseError: Nothing is promised.

    """
    stated = _statements(sent)
    return StatedPrivacy(
        unit=stated.settings.unit,
        relation=stated.relation,
        delta=stated.settings.delta,
        secure_aggregation=sent.aggregation == "secure",
        accountant=stated.accountant,
        sent=stated_epsilon(sent),
        planned=stated_epsilon(planned),
    )


def _statements(report: PrivacyReport) -> Statements:
    if report.statements is None:
        raise ReleaseError("this run is not private, and what is not private is not released")
    return report.statements


def _encode(statement: Release | SiteWord) -> bytes:
    return msgspec.json.encode(statement, order="sorted")


def _parse(data: bytes, into: type[T], *, most: int, source: str) -> T:
    if len(data) > most:
        raise ReleaseError(f"{source}: more than {most} bytes; this is no such file")
    try:
        parsed = msgspec.json.decode(data, type=into)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ReleaseError(f"{source}: cannot be read: {decoding_fault(error, into)}") from error
    if file_bytes(parsed) != data:
        raise ReleaseError(f"{source}: is not in the form in which it was signed; use the file as it was made")
    return parsed
