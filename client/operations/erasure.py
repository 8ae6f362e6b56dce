"""Forgetting a subject, or what has expired: what it would destroy, what had been learnt before, and the signed entry.

Erasing destroys keys; it does not take back what runs learnt before. So all is told: how much goes, which runs may have
used it, with the ε that this site spent in each, and which releases of their adapters this site signed.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from common.crypto.primitives import Label, digest
from common.privacy.statements import figure
from common.release.statement import ReleaseError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from client.governance.signed_releases import ReleaseBook
    from client.site.open_site import OpenSite
    from client.vault.records import Erased, ErasurePlan
    from common.audit_log import AuditLog, Detail
    from common.release.statement import Release

Verb: TypeAlias = Literal["erase", "expire"]
_log: Final = logging.getLogger(__name__)
_LIST_CHARACTERS: Final = 8192
_BEGUN: Final[dict[Verb, str]] = {"erase": "erasing", "expire": "expiring"}
_DONE: Final[dict[Verb, str]] = {"erase": "erased", "expire": "expired"}


@dataclass(frozen=True, kw_only=True)
class UsedIn:
    """A run that may have trained on the records, and what it cost."""

    run: str
    epsilon: float
    delta: float
    releases: tuple[Release, ...] = ()
    """Of the run's adapter, that this site signed."""
    unreadable: str | None = None
    """Why nobody can tell the releases."""


def runs_of(plan: ErasurePlan, site: OpenSite) -> tuple[UsedIn, ...]:
    """The plan's runs with this site's own ε, from its ledger, and the releases that it signed."""
    account = site.policy.account(site.config.collection, private=True)
    return tuple(
        _with_releases(
            UsedIn(run=run, epsilon=site.ledger.spent(account, run=run).run, delta=account.per_run.delta), site
        )
        for run in plan.runs
    )


def _with_releases(used: UsedIn, site: OpenSite) -> UsedIn:
    """A damaged record is told and stops no erasing: a subject's right does not wait for a backup."""
    try:
        return replace(used, releases=site.releases.releases(run=used.run))
    except ReleaseError as error:
        return replace(used, unreadable=str(error))


def describe(plan: ErasurePlan, used: tuple[UsedIn, ...]) -> Iterator[str]:
    """The plan in words: of what is not done yet, nothing is said as if it were."""
    yield f"subjects to forget: {plan.subjects}"
    yield f"pictures to destroy: {plan.records}"
    yield f"encoded pictures and captions to destroy: {plan.derived} ({plan.bytes_freed} bytes)"
    if not used:
        yield "no run has used them"
    for each in used:
        yield f"used in run {each.run}: ε = {each.epsilon:.4g} at δ = {each.delta:.3g} for each privacy unit"
        yield from (f"  {line}" for line in _release_words(each))
    if used:
        yield "What those runs' released adapters learnt within these ε is not taken back by erasing."


def done_words(erased: Erased) -> str:
    """What was destroyed, in words."""
    plan = erased.plan
    return (
        f"done: {plan.subjects} subjects forgotten, {plan.records} pictures and {plan.derived} encoded pictures and "
        "captions destroyed"
    )


def _release_words(used: UsedIn) -> Iterator[str]:
    if used.unreadable is not None:
        yield f"releases of it CANNOT BE TOLD: {used.unreadable}"
    elif not used.releases:
        yield "this site signed no release of it"
    for each in used.releases:
        stated = each.privacy.sent
        yield (
            f"released as {each.name!r}, {each.time[:10]}, digest {each.digest().hex()[:16]}, adapter {each.adapter}: "
            f"whoever has it learns of one {each.privacy.unit} at most ε = {figure(stated.public)} at "
            f"δ = {each.privacy.delta:.3g}"
        )


def erase_noted(
    audit: AuditLog, verb: Verb, plan: ErasurePlan, act: Callable[[], Erased], *, book: ReleaseBook
) -> Erased:
    """Erase between two signed entries: what a crash leaves of it is seen by the first, and done again by its caller.

    They hold a pseudonym that nobody can undo, never the subject's id or a count of what is left. The pseudonym's key
    is thrown away, so that a list of known ids cannot be tried; it only tells entries apart.
    """
    pseudonym = digest(Label.ERASED_SUBJECT, secrets.token_bytes(32)).hex()[:32]
    runs = _listed(plan.runs)
    noted: dict[str, Detail] = {"pseudonym": pseudonym, "runs": runs, "releases": _release_digests(plan, book)}
    audit.append(_BEGUN[verb], noted)
    erased = act()
    audit.append(_DONE[verb], noted | {"vault": erased.state.text()})
    return erased


def _listed(names: Sequence[str]) -> str:
    """For one detail of an entry: whole names, and how many more there are where they do not fit."""
    kept = len(names)
    while len(text := ",".join(names[:kept])) > _LIST_CHARACTERS:
        kept -= 1
    return text if kept == len(names) else f"{text},and {len(names) - kept} more"


def _release_digests(plan: ErasurePlan, book: ReleaseBook) -> str:
    """Of the plan's runs, for the audit log."""
    try:
        return _listed([each.digest().hex() for run in plan.runs for each in book.releases(run=run)])
    except ReleaseError as error:
        _log.error("releases cannot be told: %s", error)
        return "unreadable"
