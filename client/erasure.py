"""Forgetting a subject, or what has expired: what it would destroy, what had been learnt before, and the signed entry.

Erasing destroys keys; it does not take back what runs learnt before. So both are told: how much goes, and which runs
may have used it, with the ε that this site spent in each.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from common.crypto import Label, digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from client.open_site import OpenSite
    from client.vault.records import Erased, ErasurePlan
    from common.audit_log import AuditLog

Verb: TypeAlias = Literal["erase", "expire"]
_BEGUN: Final[dict[Verb, str]] = {"erase": "erasing", "expire": "expiring"}
_DONE: Final[dict[Verb, str]] = {"erase": "erased", "expire": "expired"}


@dataclass(frozen=True, kw_only=True)
class UsedIn:
    """A run that may have trained on the records, and what it cost."""

    run: str
    epsilon: float
    delta: float


def runs_of(plan: ErasurePlan, site: OpenSite) -> tuple[UsedIn, ...]:
    """The plan's runs with this site's own ε, from its ledger."""
    account = site.policy.account(site.config.population, private=True)
    return tuple(
        UsedIn(run=run, epsilon=site.ledger.spent(account, run=run).run, delta=account.per_run.delta)
        for run in plan.runs
    )


def describe(plan: ErasurePlan, used: tuple[UsedIn, ...]) -> Iterator[str]:
    """The plan in words."""
    yield f"subjects forgotten: {plan.subjects}"
    yield f"pictures destroyed: {plan.records}"
    yield f"encoded pictures and captions destroyed: {plan.derived} ({plan.bytes_freed} bytes)"
    if not used:
        yield "no run has used them"
    for each in used:
        yield f"used in run {each.run}: ε = {each.epsilon:.4g} at δ = {each.delta:.3g} for each privacy unit"
    if used:
        yield "What those runs' released adapters learnt within these ε is not taken back by erasing."


def erase_noted(audit: AuditLog, verb: Verb, plan: ErasurePlan, act: Callable[[], Erased]) -> Erased:
    """Erase between two signed entries: what a crash leaves of it is seen by the first, and done again by its caller.

    They hold a pseudonym that nobody can undo, never the subject's id or a count of what is left. The pseudonym's key
    is thrown away, so that a list of known ids cannot be tried; it only tells entries apart.
    """
    pseudonym = digest(Label.ERASED_SUBJECT, secrets.token_bytes(32)).hex()[:32]
    runs = ",".join(plan.runs)[:8192]
    audit.append(_BEGUN[verb], {"pseudonym": pseudonym, "runs": runs})
    erased = act()
    audit.append(_DONE[verb], {"pseudonym": pseudonym, "vault": erased.state.text(), "runs": runs})
    return erased
