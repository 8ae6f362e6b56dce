"""A site's word on a release: what it can hold against the coordinator's statement from its own books alone.

The site knows which manifest it approved, how often it contributed and was charged, what ε its accountant gives for
that, every adapter that it was sent, its audit log's whole history, and the base model, from which it makes the frozen
factors of the adapter again. It does not know whether the coordinator computed the last step rightly: that adapter was
never sent to it, which it is told.
"""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import msgspec

from client.governance.ledger_store import rows_in
from client.governance.rollback import CHARGED
from common.audit_log import ADAPTER, read_entries, verify_log
from common.errors import ApprovalError, AuditLogError
from common.manifest.manifest import open_manifest
from common.manifest.words import printable
from common.release.check import Expected, check_release
from common.release.folder import SIGNATURES, signature_file
from common.release.model_card import own_words
from common.release.statement import MAX_WORD_BYTES, ReleaseError, SiteWord, file_bytes, parse_word, sign_word

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from client.site.open_site import OpenSite
    from common.audit_log import Entry
    from common.manifest.manifest import Manifest
    from common.release.folder import ReleaseFolder
    from common.release.statement import Release

_TOLERANCE: Final = 1e-4
"""Share by which the ledger's accounting, which adds up what was charged, may pass the statement's."""


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What the site found."""

    release: Release
    manifest: Manifest
    place: int
    contributions: int
    """In the site's own ledger."""
    epsilon: float
    """What its own accountant gives for them, at the release's δ."""
    faults: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What it could not check."""

    def lines(self) -> Iterator[str]:
        """For the person who signs."""
        privacy = self.release.privacy
        yield f"release {self.release.digest().hex()} of run {self.release.name!r}"
        yield f"rounds: {self.release.rounds} of {self.release.rounds_planned}; attempts: {privacy.sent.attempts}"
        yield f"this site contributed {self.contributions} times: its own ε = {self.epsilon:.4g}, δ = {privacy.delta:g}"
        public = privacy.sent.public
        yield f"stated for whoever gets the adapter: ε = {'none' if public is None else f'{public:.4g}'}"
        yield f"institutions named: {'yes, with their keys' if self.release.roster == 'public' else 'no'}"
        if self.release.card:
            yield "the model card says in the coordinator's own words, which nobody checks:"
            yield from (f"  {printable(line)}" for line in own_words(self.release.card))
        yield from (f"not checked: {note}" for note in self.notes)
        yield from (f"FAULT: {fault}" for fault in self.faults)


@dataclass(frozen=True, kw_only=True)
class _Books:
    """What ledger and audit log hold of one run."""

    contributions: int
    epsilon: float
    entries: tuple[Entry, ...] = field(repr=False)


def examine(folder: ReleaseFolder, site: OpenSite) -> Examination:
    """Hold a release against the site's own books and base; nothing is signed.

    Guarantee: no fault is found only if what stock loaders put into this site's base is what the vector of the
    release's digest puts there; without that base there is a fault.

    Raises:
        ReleaseError: There is no statement to begin with.
        ApprovalError: The run is not known here.
        UnknownInstitution: This site is not in the run's roster.
        LedgerError: The ledger cannot be read.
        AuditLogError: The site's own log is damaged.

    """
    release = folder.release()
    signed = _own_manifest(site, release)
    manifest, digest = open_manifest(signed)
    place = manifest.place_of(site.identity.public)
    checked = check_release(folder, Expected(manifest=signed, signatures=0, base=site.config.base))
    books = _read_books(site, release)
    faults = (*checked.faults, *_approval_faults(site, release, digest), *_book_faults(books, site, release, place))
    seen = _seen_adapter(books, release)
    notes = []
    if seen is None or manifest.config.server.average:
        notes.append("that the adapter is the outcome of the last round, which this site was never sent")
    elif release.adapter != f"sha256:{seen}":
        faults += (f"adapter: {release.adapter}; after round {release.rounds} this site was sent sha256:{seen}",)
    if not any(each.place == place for each in release.logs):
        notes.append("this site's audit log, of which the release names no head")
    return Examination(
        release=release,
        manifest=manifest,
        place=place,
        contributions=books.contributions,
        epsilon=books.epsilon,
        faults=faults,
        notes=tuple(notes),
    )


def countersign(folder: ReleaseFolder, site: OpenSite, found: Examination) -> Path:
    """Sign what was examined, keep a record of it, and put the word into the folder; its path.

    Guarantee: nothing is signed that has a fault, or that changed since it was examined. The record is on disk before
    the word is in the folder, so no release that leaves with this site's word is unknown to
    :mod:`client.operations.erasure`.

    Raises:
        ReleaseError: There are faults, the folder changed, or another file lies in the word's place.

    """
    if found.faults:
        listed = "\n".join(f"  - {fault}" for fault in found.faults)
        raise ReleaseError(f"this release is not signed:\n{listed}")
    if folder.release() != found.release or list(folder.file_faults(found.release)):
        raise ReleaseError(f"{folder.root}: changed while it was looked at; look again")
    path = folder.signatures / signature_file(found.release, found.manifest, found.place)
    word = _earlier(folder, path, site, found) or _word(site, found)
    site.releases.note(found.release, word)
    folder.signatures.mkdir(exist_ok=True)
    path.write_bytes(file_bytes(word))
    return path


def _word(site: OpenSite, found: Examination) -> SiteWord:
    word = SiteWord(
        release=found.release.digest().hex(),
        place=found.place,
        institution=found.manifest.roster[found.place].name if found.release.roster == "public" else None,
        attempts=found.contributions,
        time=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    )
    return sign_word(word, site.identity)


def _earlier(folder: ReleaseFolder, path: Path, site: OpenSite, found: Examination) -> SiteWord | None:
    """This site's own word on this release that lies there already; None if nothing does."""
    if not path.exists() and not path.is_symlink():
        return None
    source = f"{SIGNATURES}/{path.name}"
    word = parse_word(folder.read(source, most=MAX_WORD_BYTES), key=site.identity.public.hex(), source=source)
    if word.release != found.release.digest().hex():
        raise ReleaseError(f"{path}: is this site's word on another release; take it away first")
    return word


def _own_manifest(site: OpenSite, release: Release) -> bytes:
    """The manifest as it was approved here, not as the release has it."""
    try:
        return site.approvals.signed_manifest(release.manifest)
    except ApprovalError as error:
        raise ApprovalError(
            f"run {release.name!r} ({release.manifest}) was never approved at this site; it signs releases "
            "of its own runs alone"
        ) from error


def _approval_faults(site: OpenSite, release: Release, digest: bytes) -> Iterator[str]:
    if not site.approvals.is_approved(digest):
        yield f"run {digest.hex()} is not approved at this site, or no longer"
    if release.coordinator not in site.policy.coordinators:
        yield "signed by a coordinator whose key is not in this site's policy.coordinators"


def _read_books(site: OpenSite, release: Release) -> _Books:
    path = site.config.audit_log
    verify_log(path, site.identity.public, unfinished="leave")  # a steward may be writing just now
    entries = tuple(each for each in read_entries(path) if each.details.get("run") == release.manifest)
    rows = [row for row in rows_in(site.config.ledger) if row.run == release.manifest]
    account = site.policy.account(site.config.collection, private=True)
    at_delta = replace(account, per_run=msgspec.structs.replace(account.per_run, delta=release.privacy.delta))
    return _Books(
        contributions=len(rows),
        epsilon=site.ledger.spent(at_delta, run=release.manifest).run,
        entries=entries,
    )


def _book_faults(books: _Books, site: OpenSite, release: Release, place: int) -> Iterator[str]:
    sent = release.privacy.sent
    if not books.contributions:
        yield "this site's ledger has no contribution to this run"
    if books.contributions > sent.attempts:
        yield f"attempts: {sent.attempts}; this site alone contributed {books.contributions} times"
    if (known := _attempts_known(books)) > sent.attempts:
        yield f"attempts: {sent.attempts}; by the rounds and attempts that this site was asked for, at least {known}"
    if (told := sum(entry.kind == "contributed" for entry in books.entries)) > books.contributions:
        yield f"this site's audit log has {told} contributions, its ledger {books.contributions}: restore the ledger"
    relied = site.policy.privacy.rely_on_secure_aggregation
    stated = sent.server if relied else sent.fallback
    if (math.inf if stated is None else stated) < books.epsilon * (1 - _TOLERANCE):
        against = "the coordinator" if relied else "a coordinator that sees single shares"
        yield f"ε = {stated:.6g} is stated against {against}; this site's own accountant says {books.epsilon:.6g}"
    yield from _head_faults(site, release, place)


def _attempts_known(books: _Books) -> int:
    """Fewest attempts that were sent: a coordinator skips neither a round nor an attempt, so each asked counts others.

    A site that was not in every cohort would else sign for as few as it contributed to itself.
    """
    asked: dict[int, int] = {}
    for entry in books.entries:
        number, attempt = entry.details.get("round"), entry.details.get("attempt")
        if entry.kind == CHARGED and isinstance(number, int) and isinstance(attempt, int):
            asked[number] = max(asked.get(number, 0), attempt + 1)
    return max(asked, default=0) + sum(attempts - 1 for attempts in asked.values())


def _head_faults(site: OpenSite, release: Release, place: int) -> Iterator[str]:
    """The head that the coordinator holds must be in this log: else one of the two has another history."""
    heads = [bytes.fromhex(each.head) for each in release.logs if each.place == place]
    try:
        verify_log(site.config.audit_log, site.identity.public, witnessed=heads, unfinished="leave")
    except AuditLogError as error:
        yield f"logs: {error}"


def _seen_adapter(books: _Books, release: Release) -> str | None:
    """SHA-256 of what the site was sent in the round after the release's last, if it was."""
    for entry in books.entries:
        if entry.kind == CHARGED and entry.details.get("round") == release.rounds + 1:
            seen = entry.details.get(ADAPTER)
            return seen if isinstance(seen, str) else None
    return None
