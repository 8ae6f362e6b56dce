"""Which runs this site's people agreed to: one signed word a run, in a folder that the steward only reads.

Proposals arrive over the wire and are kept for people to read; a proposal starts nothing. The word ``approved`` or
``revoked``, which is what a word that takes an approval back has always said in its bytes, is signed with the site's
identity, so a file that somebody else drops into the folder approves nothing.

Guarantee: :meth:`ApprovalStore.is_approved` is true only while the last word in the folder about that digest is
``approved`` and signed by this identity. Whoever can put back an older copy of the folder can undo a withdrawal.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from common.crypto.primitives import SIGNATURE_BYTES, Label, verify_signature
from common.durable_files import write_atomically
from common.errors import ApprovalError, BadSignature, ConfigErrors, ManifestError
from common.field_words import decoding_fault
from common.manifest.manifest import MAX_MANIFEST_BYTES, open_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from common.crypto.primitives import Identity
    from common.manifest.manifest import Manifest

MAX_PENDING: Final = 32
MAX_SIGNED_BYTES: Final = MAX_MANIFEST_BYTES + 1024
Decision: TypeAlias = Literal["approved", "revoked"]

_MAX_WORD_BYTES: Final = 4096
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_log: Final = logging.getLogger(__name__)


class Word(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What this site says of one run."""

    digest: Annotated[bytes, Meta(min_length=32, max_length=32)]
    decision: Decision
    time: Annotated[str, Meta(max_length=40)]
    signature: Annotated[bytes, Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A run that the site knows of."""

    digest: bytes
    manifest: Manifest
    word: Word | None

    @property
    def state(self) -> str:
        """``pending``, ``approved`` or ``withdrawn``."""
        if self.word is None:
            return "pending"
        return "approved" if self.word.decision == "approved" else "withdrawn"


@dataclass(frozen=True, kw_only=True)
class ApprovalStore:
    """A folder with ``pending/`` and ``decided/``: DIGEST.manifest from the coordinator, DIGEST.word from the site.

    Args:
        folder: The store.
        identity: The site's.
        coordinators: Ed25519 keys, in hex, whose proposals are kept; others could fill the folder.

    """

    folder: Path
    identity: Identity = field(repr=False)
    coordinators: Collection[str]
    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))

    def is_approved(self, digest: bytes) -> bool:
        """Whether the site's last word on this run is ``approved``; a damaged word is none."""
        try:
            word = self._word(digest.hex())
        except ApprovalError as error:
            _log.warning("a run counts as not approved: %s", error)
            return False
        return word is not None and word.decision == "approved"

    def note_proposal(self, signed: bytes) -> None:
        """Keep a signed manifest for people to look at, unless so many wait already.

        Raises:
            ManifestError: Unreadable, not signed, or from a coordinator that the site's policy does not name.
            ConfigErrors: The manifest contradicts itself.

        """
        manifest, digest = open_manifest(signed)
        if manifest.coordinator not in self.coordinators:
            raise ManifestError("proposed by a coordinator whose key policy.coordinators does not name")
        name = digest.hex()
        if any((self.folder / place / f"{name}.manifest").exists() for place in ("pending", "decided")):
            return
        if len(list(self._place("pending").glob("*.manifest"))) >= MAX_PENDING:
            _log.warning("run %s is proposed but not kept: %d proposals wait already", name[:16], MAX_PENDING)
            return
        write_atomically(self._place("pending") / f"{name}.manifest", signed, mode=0o600)
        _log.info("run %s is proposed; look at it with: darkroom-client approve %s", name[:16], name[:16])

    def approve(self, signed: bytes) -> Proposal:
        """Write down that the site takes part in this run.

        Raises:
            ManifestError: Unreadable or not signed by its coordinator.
            UnknownInstitution: This site is not in the run's roster.

        """
        manifest, digest = open_manifest(signed)
        manifest.place_of(self.identity.public)
        return self._decide(signed, manifest, digest, "approved")

    def withdraw(self, digest: bytes) -> Proposal:
        """Write down that the site takes no further part in this run.

        Raises:
            ApprovalError: The run is not known.

        """
        signed = self.signed_manifest(digest.hex())
        manifest, found = open_manifest(signed)
        return self._decide(signed, manifest, found, "revoked")

    def _decide(self, signed: bytes, manifest: Manifest, digest: bytes, decision: Decision) -> Proposal:
        time, name = self.now().isoformat(), digest.hex()
        signature = self.identity.sign(Label.APPROVAL, digest, decision.encode(), time.encode())
        word = Word(digest=digest, decision=decision, time=time, signature=signature)
        decided = self._place("decided")
        write_atomically(decided / f"{name}.manifest", signed, mode=0o600)
        write_atomically(decided / f"{name}.word", msgspec.msgpack.encode(word), mode=0o600)
        (self._place("pending") / f"{name}.manifest").unlink(missing_ok=True)
        return Proposal(digest=digest, manifest=manifest, word=word)

    def signed_manifest(self, beginning: str) -> bytes:
        """The signed manifest whose digest begins so.

        Raises:
            ApprovalError: There is none, or more than one.

        """
        if not re.fullmatch(r"[0-9a-f]{4,64}", beginning):
            raise ApprovalError(
                f"{beginning!r} is no file here, nor the beginning of a run's digest, 4 to 64 of its hexadecimal "
                "digits; darkroom-client approvals lists the runs that were proposed"
            )
        places = (self.folder / "pending", self.folder / "decided")
        found = sorted({path.name: path for place in places for path in place.glob(f"{beginning}*.manifest")}.items())
        if len(found) != 1:
            several = f"{len(found)} runs here begin" if found else "no run here begins"
            raise ApprovalError(f"{several} with {beginning}; darkroom-client approvals lists all of them")
        return _read(found[0][1], MAX_SIGNED_BYTES)

    def proposals(self) -> tuple[Proposal, ...]:
        """Every run that the site knows of: decided ones in the order of their words, then pending ones."""
        found = []
        for path in (*self._manifests("decided"), *self._manifests("pending")):
            try:
                manifest, digest = open_manifest(_read(path, MAX_SIGNED_BYTES))
                word = self._word(digest.hex())
            except (ManifestError, ConfigErrors, ApprovalError) as error:
                _log.warning("%s is passed over: %s", path.name, error)
                continue
            found.append(Proposal(digest=digest, manifest=manifest, word=word))
        return tuple(sorted(found, key=lambda each: (each.word is None, each.word.time if each.word else "")))

    def last_approved(self) -> Manifest | None:
        """The manifest that was approved last, to compare a new one with."""
        approved = [each.manifest for each in self.proposals() if each.state == "approved"]
        return approved[-1] if approved else None

    def _word(self, name: str) -> Word | None:
        path = self.folder / "decided" / f"{name}.word"
        if not path.exists():
            return None
        try:
            word = msgspec.msgpack.decode(_read(path, _MAX_WORD_BYTES), type=Word)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ApprovalError(f"{path}: damaged ({decoding_fault(error, Word)}); approve the run again") from error
        if word.digest.hex() != name:
            raise ApprovalError(f"{path}: is about run {word.digest.hex()}; approve the run again")
        parts = (word.digest, word.decision.encode(), word.time.encode())
        try:
            verify_signature(self.identity.public, word.signature, Label.APPROVAL, *parts)
        except BadSignature as error:
            raise ApprovalError(f"{path}: not signed by this site; approve the run again") from error
        return word

    def _manifests(self, place: str) -> list[Path]:
        return sorted(path for path in self._place(place).glob("*.manifest") if _DIGEST.fullmatch(path.stem))

    def _place(self, name: str) -> Path:
        place = self.folder / name
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        return place


def read_signed_manifest(path: Path) -> bytes:
    """A signed manifest's file, as the coordinator sent it.

    Raises:
        ApprovalError: Missing, unreadable, too large or no signed manifest.

    """
    signed = _read(path, MAX_SIGNED_BYTES)
    try:
        open_manifest(signed)
    except ManifestError as error:
        raise ApprovalError(f"{path}: {error}; give the .manifest file that the coordinator sent") from error
    return signed


def _read(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise ApprovalError(f"{path}: cannot be read ({error.strerror})") from error
    if len(content) > most:
        raise ApprovalError(f"{path}: more than {most} bytes; this is no such file")
    return content
