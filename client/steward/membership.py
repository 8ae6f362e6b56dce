"""Taking part in a run: what an institution checks before it says yes, and what it holds afterwards.

Every check is the institution's own. The coordinator's signature says who asks; policy, terms and approval say whether
this site answers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Protocol

from client.governance.policy import check_coordinator, check_size
from client.governance.pricing import PricedHere
from common.errors import ManifestError, NotApproved
from common.manifest.manifest import countersign, open_manifest
from common.secagg.participant import Participant, enrol

if TYPE_CHECKING:
    from client.governance.ledger import Ledger
    from client.governance.policy import SitePolicy
    from client.governance.pricing import Pricing
    from client.training.private_update import TrainingSide
    from common.audit_log import AuditLog
    from common.crypto.primitives import Identity
    from common.manifest.manifest import Manifest
    from common.privacy.run_plan import PrivatePlan
    from common.privacy.statements import Unit


class TrainingProvider(Protocol):
    """Gets base and pictures ready."""

    def count_units(self, unit: Unit) -> int:
        """How many there are to train with, without a look at a picture."""
        ...

    def prepare(self, manifest: Manifest) -> TrainingSide:
        """Ready to train in this run, or a DarkroomError that says why not."""
        ...


class Approvals(Protocol):
    """What a person at the institution said to manifests."""

    def is_approved(self, digest: bytes) -> bool:
        """Whether somebody approved the manifest with this digest."""
        ...

    def note_proposal(self, signed: bytes) -> None:
        """Keep a proposed manifest, whose signature was checked, for somebody to look at."""
        ...


@dataclass(frozen=True, kw_only=True)
class SiteRecords:
    """What an institution decides by, and what it writes down.

    Attributes:
        collection: the site's name for the set of privacy units that it trains on; the ledger's account.
        pricing: works out what an approved run costs.

    """

    identity: Identity
    policy: SitePolicy
    ledger: Ledger
    audit: AuditLog
    approvals: Approvals
    collection: str
    pricing: Pricing = field(default_factory=PricedHere)


@dataclass(frozen=True, kw_only=True)
class Membership:
    """A run that this institution takes part in."""

    manifest: Manifest
    digest: bytes
    countersignature: bytes = field(repr=False)
    plan: PrivatePlan
    side: TrainingSide
    participant: Participant

    @property
    def run(self) -> str:
        """The run's name in ledger and audit log."""
        return self.digest.hex()


def join(
    signed: bytes, records: SiteRecords, provider: TrainingProvider, *, patience: float | None = None
) -> Membership:
    """Check a proposed manifest and get ready to take part; ``patience`` is that of :meth:`Pricing.plan`.

    Guarantee: nothing is worked out for a coordinator that the policy does not name, or before somebody here approved,
    and then where it keeps nobody else waiting (:mod:`client.governance.pricing`). Nothing is made ready, and no
    picture is read, for a manifest that is not signed by the coordinator that it names, breaks the policy, states terms
    that do not follow from its settings, or lacks secure aggregation or this institution.

    Raises:
        ManifestError: Unreadable, unsigned, or terms that do not follow from its own settings.
        PolicyRefusal: Every rule of the policy that it breaks.
        UnknownInstitution: This institution is not in the roster.
        NotApproved: Nobody at this institution has approved it yet; it was kept for them.
        TooManyUnits: More units here than the run's settings allow one institution.
        FiguresPending: What it costs is being worked out.
        DarkroomError: Base or pictures cannot be had.

    """
    manifest, digest = open_manifest(signed)
    check_coordinator(manifest, records.policy)
    if not records.approvals.is_approved(digest):  # before the policy: a person names institutions by what is proposed
        records.approvals.note_proposal(signed)
        raise NotApproved(f"run {manifest.config.name!r} ({digest.hex()}) waits for approval at this institution")
    if manifest.privacy is None or manifest.secure_aggregation is None:
        raise ManifestError("wanted a run with differential privacy and secure aggregation")
    if manifest.config.privacy != "none":  # answered as the door before, and as soon
        check_size(provider.count_units(manifest.privacy.unit), manifest.config.privacy)
    _check_code(manifest)
    plan = records.pricing.plan(manifest, records.policy, records.ledger.accountant, patience=patience)
    participant = enrol(
        manifest,
        digest,
        records.identity,
        minimum_cohort=records.policy.minimum_cohort,
        last=records.ledger.last_step(digest.hex()),
    )
    side = provider.prepare(manifest)
    _check_side(manifest, side)
    side.private_update(plan)  # what came into the vault meanwhile is a fault now, not once each round is charged
    return Membership(
        manifest=manifest,
        digest=digest,
        countersignature=countersign(manifest, records.identity),
        plan=plan,
        side=side,
        participant=participant,
    )


def _check_code(manifest: Manifest) -> None:
    """Two versions may work the same settings out to different noise, so a run has one."""
    ours = version("darkroom")
    if manifest.code_version != ours:
        raise ManifestError(
            f"the run is for version {manifest.code_version}; this site has {ours}: install the run's version, or have "
            "the coordinator make a manifest for this one"
        )


def _check_side(manifest: Manifest, side: TrainingSide) -> None:
    spec = side.trainer.spec
    if (spec.digest, spec.dimension) != (manifest.adapter_digest, manifest.dimension):
        raise ManifestError(
            f"the manifest's adapter is {manifest.adapter_digest} with d = {manifest.dimension}; made from its "
            f"settings here it is {spec.digest} with d = {spec.dimension}"
        )
    if side.trainer.base.digest != manifest.base_digest:
        raise ManifestError(
            f"the manifest's base is {manifest.base_digest}; the one here is {side.trainer.base.digest}"
        )
