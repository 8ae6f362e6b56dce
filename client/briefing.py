"""A manifest in plain words, for the person who decides: who, what, how long, what may become known, and what changed.

Every ε here is this site's own computation from the public settings; the manifest's promise is shown beside it only to
be compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from client.policy import check_manifest
from common.errors import DarkroomError, PolicyRefusal
from common.manifest_diff import describe_changes
from common.manifest_terms import check_terms
from common.manifest_words import printable, privacy_words, terms_words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from client.ledger import Account, BudgetAccountant, Spent
    from client.policy import SitePolicy
    from common.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class Briefing:
    """What a person reads before the site's word is given."""

    terms: tuple[str, ...]
    privacy: str
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
        return "\n".join([*self.terms, "", self.privacy, "", *self._changes(), "", *self._verdict()])

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


def brief(
    manifest: Manifest, digest: bytes, policy: SitePolicy, *, accountant: BudgetAccountant, last: Manifest | None
) -> Briefing:
    """Put a manifest, whose signature was checked, into words.

    Args:
        manifest: The run.
        digest: Its name.
        policy: The site's.
        accountant: Prices the run.
        last: The manifest that was approved last, if any.

    """
    return Briefing(
        terms=tuple(terms_words(manifest, digest)),
        privacy=privacy_words(manifest),
        changes=None if last is None else describe_changes(last, manifest),
        reasons=(*_reasons(manifest, policy, accountant), *_contradictions(manifest)),
    )


def budget_line(account: Account, spent: Spent) -> str:
    """What the population has spent and has left."""
    left = account.lifetime.epsilon - spent.lifetime
    return (
        f"Budget of {account.population}: ε = {spent.lifetime:.4g} of {account.lifetime.epsilon:.4g} spent at "
        f"δ = {account.lifetime.delta:.3g}; {left:.4g} left. ε of runs do not simply add up; the ledger composes them."
    )


def _reasons(manifest: Manifest, policy: SitePolicy, accountant: BudgetAccountant) -> tuple[str, ...]:
    try:
        check_manifest(manifest, policy, accountant=accountant)
    except PolicyRefusal as refusal:
        return refusal.reasons
    return ()


def _contradictions(manifest: Manifest) -> Iterator[str]:
    """The policy reads the manifest's privacy terms, the noise is made by its configuration: both must agree."""
    try:
        check_terms(manifest)
    except DarkroomError as error:
        yield str(error)
    if manifest.config.privacy != "none" and not manifest.config.privacy.is_private:
        yield "config.privacy.repeatable: the noise can be computed by others, so nothing is protected"
