"""What a site can tell its own people at any time: budgets, rounds, refusals, approvals, last contact, health."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from client.governance.ledger_store import rows_in
from client.site.open_site import link_to_steward
from client.site.serving_policy import older_policy, restart_words
from client.site.vault_access import count_vault
from client.steward.process import socket_place
from client.steward.socket import is_held
from client.vault.records import today
from common.audit_log import read_entries, verify_log
from common.errors import ConfigError, StewardUnavailable, VaultError
from common.provisioning import institution_fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from client.governance.approvals import Proposal
    from client.governance.ledger_store import Row
    from client.site.open_site import OpenSite
    from common.audit_log import Entry
    from common.wire.steward_link import Health

CONTACT_KINDS: Final = frozenset({"joined", "session", "charged", "contributed", "refused", "turned_away"})
"""Audit entries that somebody outside caused."""


@dataclass(frozen=True, kw_only=True)
class Spending:
    """ε of one collection or run, at the δ of its limit."""

    name: str
    spent: float
    allowed: float
    delta: float
    contributions: int
    last_round: int | None = None
    """Of a run: the last that was charged, from 1."""

    @property
    def left(self) -> float:
        """Never below 0."""
        return max(0.0, self.allowed - self.spent)


@dataclass(frozen=True, kw_only=True)
class SiteStatus:
    """All of it."""

    collections: tuple[Spending, ...]
    runs: tuple[Spending, ...]
    refusals: dict[str, int]
    """By code, from the audit log."""
    turned_away: dict[str, int]
    """Calls that the steward never saw, by reason."""
    pending: tuple[Proposal, ...]
    last_contact: str | None
    """Time of the last audit entry that somebody outside caused."""
    entries: int
    head: str
    health: Health | str
    """Of the steward; or why it gives none, in words."""
    fingerprint: str
    """Of the site's own key, to be read out to other institutions."""
    policy: tuple[str, ...]
    """Which of a run's figures hold for the site, what is to be filled in, and whether the steward goes by another."""


def site_status(site: OpenSite) -> SiteStatus:
    """Look at everything once.

    Raises:
        LedgerError: The ledger cannot be read.
        AuditLogError: The audit log is damaged.

    """
    path = site.config.audit_log
    verified = verify_log(path, site.identity.public, unfinished="leave")  # a steward may be writing just now
    entries = list(read_entries(path))
    rows = rows_in(site.config.ledger)
    contacts = [entry.time for entry in entries if entry.kind in CONTACT_KINDS]
    return SiteStatus(
        collections=tuple(_collections(site, rows)),
        runs=tuple(_runs(site, rows)),
        refusals=dict(Counter(str(entry.details.get("code")) for entry in entries if entry.kind == "refused")),
        turned_away=_sums(entry for entry in entries if entry.kind == "turned_away"),
        pending=tuple(each for each in site.approvals.proposals() if each.state == "pending"),
        last_contact=contacts[-1] if contacts else None,
        entries=verified.entries,
        head=verified.head.hex(),
        health=_health(site),
        fingerprint=institution_fingerprint(site.identity.public),
        policy=tuple(_policy_words(site)),
    )


def vault_words(site: OpenSite) -> str:
    """What the vault holds, in words; or why that cannot be told."""
    try:
        found = count_vault(site.config.vault, day=today(), expected=site.noted.vault)
    except (ConfigError, VaultError) as error:
        return f"cannot be opened: {error}"
    expired = f", {found.expired} expired" if found.expired else ""
    return f"{found.pictures} pictures of {found.subjects} subjects, {found.held_out} held out{expired}"


def _collections(site: OpenSite, rows: list[Row]) -> Iterator[Spending]:
    for name in sorted({row.population for row in rows} | {site.config.collection}):
        account = site.policy.account(name, private=True)
        yield Spending(
            name=name,
            spent=site.ledger.spent(account, run="").lifetime,
            allowed=account.lifetime.epsilon,
            delta=account.lifetime.delta,
            contributions=sum(row.population == name for row in rows),
        )


def _runs(site: OpenSite, rows: list[Row]) -> Iterator[Spending]:
    for run in dict.fromkeys(row.run for row in rows):
        of_run = [row for row in rows if row.run == run]
        account = site.policy.account(of_run[0].population, private=True)
        yield Spending(
            name=run,
            spent=site.ledger.spent(account, run=run).run,
            allowed=account.per_run.epsilon,
            delta=account.per_run.delta,
            contributions=len(of_run),
            last_round=1 + max(row.round for row in of_run),
        )


def _sums(entries: Iterable[Entry]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for entry in entries:
        total.update({reason: count for reason, count in entry.details.items() if isinstance(count, int)})
    return dict(total)


def _policy_words(site: OpenSite) -> Iterator[str]:
    if site.policy.institutions or site.policy.any_institution:  # else what is to be filled in says so
        yield site.policy.figure_that_holds()
    yield from site.policy.unfinished()
    try:
        older = older_policy(site)
    except StewardUnavailable as error:
        yield str(error)
        return
    if older is not None:
        yield restart_words(older)


def _health(site: OpenSite) -> Health | str:
    """A steward that hangs, or that this user may not ask, is another thing than none."""
    try:
        return link_to_steward(site.config).health()
    except StewardUnavailable as error:
        try:
            at_work = is_held(socket_place(site.config.service))
        except StewardUnavailable as unseen:
            return f"does not answer: {unseen}"
        if at_work:
            return f"does not answer, though it, or a command that writes, is at work: {error}"
        return "not running; start it with: darkroom-client steward"
