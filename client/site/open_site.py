"""A site's things, opened and checked: what every command of the institution's command line starts from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from client.governance.approvals import ApprovalStore
from client.governance.ledger import Ledger, PldAccountant
from client.governance.policy import read_policy
from client.governance.rollback import check_ledger, read_noted
from client.governance.signed_releases import ReleaseBook
from client.site.settings import read_site
from common.crypto.identity_file import read_identity_file
from common.wire.steward_link import StewardAddress, StewardLink, read_token

if TYPE_CHECKING:
    from pathlib import Path

    from client.governance.policy import SitePolicy
    from client.governance.rollback import Noted
    from client.site.settings import SiteConfig
    from common.crypto.primitives import Identity


@dataclass(frozen=True, kw_only=True)
class OpenSite:
    """What a site's settings name, but for the vault and the audit log, which have one writer."""

    config: SiteConfig
    identity: Identity = field(repr=False)
    policy: SitePolicy
    ledger: Ledger
    noted: Noted
    """What the audit log said when the site was opened; the ledger agreed with it."""
    approvals: ApprovalStore
    releases: ReleaseBook


def open_site(path: Path) -> OpenSite:
    """Open what a site file names.

    Raises:
        ConfigError: The site file or the policy is not as it should be; every fault is told.
        CryptoError: The identity cannot be used.
        AuditLogError: The audit log is missing or damaged.
        LedgerError: The ledger cannot be used, or is not the one that the audit log tells of.

    """
    config = read_site(path)
    identity = read_identity_file(config.identity)
    policy = read_policy(config.policy)
    noted = read_noted(config.audit_log, identity.public)
    ledger = Ledger.open(config.ledger, PldAccountant())
    check_ledger(ledger.path, noted)
    return OpenSite(
        config=config,
        identity=identity,
        policy=policy,
        ledger=ledger,
        noted=noted,
        approvals=ApprovalStore(folder=config.approvals, identity=identity, coordinators=policy.coordinators),
        releases=ReleaseBook(folder=config.releases, identity=identity),
    )


def link_to_steward(config: SiteConfig) -> StewardLink:
    """A link to the site's own steward.

    Raises:
        StewardUnavailable: The token cannot be read.

    """
    target = f"unix://{config.service.socket}"
    return StewardLink(address=StewardAddress(target=target, token=read_token(config.service.token)))
