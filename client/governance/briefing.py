"""A manifest in plain words, for the person who decides: who, what, how long, what may become known, and what changed.

Every ε here is this site's own computation from the public settings; the manifest's promise is shown beside it only to
be compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from client.governance.policy import refusal_reasons
from common.errors import DarkroomError
from common.manifest.terms import check_terms
from common.manifest.words import describe_changes, printable, privacy_words, terms_words
from common.privacy.run_plan import private_plan
from common.privacy.statements import figure
from common.provisioning import institution_fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from client.governance.ledger import Account, BudgetAccountant, Spent
    from client.governance.policy import SitePolicy
    from common.manifest.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class Briefing:
    """What a person reads before the site's word is given."""

    terms: tuple[str, ...]
    roster: tuple[str, ...]
    privacy: str
    figure: str
    """Which of the figures this site may count on."""
    changes: tuple[str, ...] | None
    """Since the last approved manifest; None if there is none."""
    reasons: tuple[str, ...]
    """Why the site's policy forbids the run; empty if it allows it."""

    @property
    def allowed(self) -> bool:
        """Whether the policy allows the run."""
        return not self.reasons

    def as_text(self) -> str:
        """All of it."""
        parts = (self.terms, self.roster, (self.privacy, self.figure), self._changes(), self._verdict())
        return "\n\n".join("\n".join(part) for part in parts)

    def _changes(self) -> list[str]:
        if self.changes is None:
            return ["No run was approved before, so there is nothing to compare with."]
        if not self.changes:
            return ["Nothing differs from the last approved run."]
        return ["Changed since the last approved run:", *(f"- {printable(change)}" for change in self.changes)]

    def _verdict(self) -> list[str]:
        if self.allowed:
            return ["This site's policy allows the run."]
        return ["This site's policy FORBIDS the run:", *(f"- {printable(reason)}" for reason in self.reasons)]


def brief(  # noqa: PLR0913 - what a person decides by
    manifest: Manifest,
    digest: bytes,
    policy: SitePolicy,
    *,
    own: bytes,
    accountant: BudgetAccountant,
    last: Manifest | None,
    more: tuple[str, ...] = (),
) -> Briefing:
    """Put a manifest, whose signature was checked, into words.

    Args:
        manifest: The run.
        digest: Its name.
        policy: The site's.
        own: Its public key.
        accountant: Prices the run.
        last: The manifest that was approved last, if any.
        more: Why this site could not take part even if its policy allowed the run.

    """
    return Briefing(
        terms=tuple(terms_words(manifest, digest)),
        roster=tuple(roster_words(manifest, policy, own=own)),
        privacy=privacy_words(manifest),
        figure=_figure(manifest, policy),
        changes=None if last is None else describe_changes(last, manifest),
        reasons=(*refusal_reasons(manifest, policy, accountant=accountant), *_contradictions(manifest), *more),
    )


def roster_words(manifest: Manifest, policy: SitePolicy, *, own: bytes) -> Iterator[str]:
    """Each institution with its key's fingerprint, whether the policy names it, and what to write if not."""
    yield "Institutions by the fingerprints of their keys:"
    unnamed = []
    for member in manifest.roster:
        named = member.key in policy.institutions
        ours = ", this site" if member.key == own.hex() else ""
        yield f"- {member.name}  {institution_fingerprint(bytes.fromhex(member.key))}  {_MARKS[named]}{ours}"
        if not named:
            unnamed.append(member.key)
    if unnamed and not policy.any_institution:
        keys = ", ".join(f'"{key}"' for key in (*policy.institutions, *unnamed))
        yield "Compare each fingerprint with its owner, at a number that did not come with this run. If all agree,"
        yield "write into policy.toml, and restart the steward if it runs:"
        yield f"institutions = [{keys}]"


_MARKS: Final = {True: "named in the policy", False: "NOT NAMED in the policy"}


def _figure(manifest: Manifest, policy: SitePolicy) -> str:
    words = f"At this site {policy.figure_that_holds()}."
    try:
        plan = private_plan(manifest.config)
        stated = None if plan is None else plan.report(plan.attempts).statements
    except DarkroomError:
        stated = None  # the figures' own line says why
    if stated is None or not policy.any_institution:
        return words
    return (
        f"{words} A coordinator that invented the roster learns up to epsilon = {figure(stated.fallback.epsilon)}, "
        f"and not {figure(stated.server.epsilon)}."
    )


def budget_line(account: Account, spent: Spent) -> str:
    """What the collection has spent and has left."""
    left = account.lifetime.epsilon - spent.lifetime
    return (
        f"Budget of {account.collection}: ε = {spent.lifetime:.4g} of {account.lifetime.epsilon:.4g} spent at "
        f"δ = {account.lifetime.delta:.3g}; {left:.4g} left. ε of runs do not simply add up; the ledger composes them."
    )


def _contradictions(manifest: Manifest) -> Iterator[str]:
    """The policy reads the manifest's privacy terms, the noise is made by its configuration: both must agree."""
    try:
        check_terms(manifest)
    except DarkroomError as error:
        yield str(error)
    if manifest.config.privacy != "none" and not manifest.config.privacy.is_private:
        yield "config.privacy.repeatable: the noise can be computed by others, so nothing is protected"
