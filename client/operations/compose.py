"""A site's steward put together: records, loaded base, and the process that serves them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from client.governance.pricing import PricedAside
from client.governance.rollback import open_log
from client.operations.care import BooksCheck, Retention
from client.site.serving_policy import note_policy
from client.site.vault_access import hold_vault
from client.steward.membership import SiteRecords
from client.steward.process import StewardProcess
from client.steward.steward import SecureSteward
from client.training.loaded_base import LoadedBase
from client.training.vault_latents import VaultRecords

if TYPE_CHECKING:
    from client.site.open_site import OpenSite
    from client.training.loaded_base import RecordSource


def compose_steward(site: OpenSite, records: RecordSource | None = None) -> StewardProcess:
    """The steward of a site, which trains on its vault if no other ``records`` are given.

    Raises:
        AuditLogError: The log is damaged.
        ModelError: The base cannot be read: better told now than in the first round.
        VaultError: The vault cannot be opened, or is an older copy than the log tells of.
        LedgerError: The vault's pictures were charged under another name.

    """
    audit = open_log(site.config.audit_log, site.identity)
    vault = hold_vault(site.config.vault) if records is None else site.config.vault
    of_vault = VaultRecords(config=vault, collection=site.config.collection, audit=audit)
    loaded = LoadedBase(site=site.config, records=records or of_vault)
    loaded.open_base()
    if records is None:
        of_vault.check(site.policy.privacy.units[0])
    kept = SiteRecords(
        identity=site.identity,
        policy=site.policy,
        ledger=site.ledger,
        audit=audit,
        approvals=site.approvals,
        collection=site.config.collection,
        pricing=PricedAside(),
    )
    note_policy(site)
    steward = SecureSteward(site.config.name, kept, loaded)
    books = BooksCheck(site=site)

    def forget() -> None:
        steward.forget()
        loaded.forget()

    retention = Retention(vault=vault, audit=audit, releases=site.releases, forget=forget)

    def care() -> None:
        books.look()
        if records is None:
            retention.look()

    return StewardProcess(
        steward=steward,
        audit=audit,
        settings=site.config.service,
        condition=lambda: (loaded.loaded, books.in_order),
        care=care,
    )
