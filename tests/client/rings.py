"""A coordinator and three institutions of a secure run, without any transport: bytes in, bytes out."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import msgspec

from client.governance.ledger import Ledger, PldAccountant
from client.governance.policy import PrivacyLimits, SitePolicy
from client.governance.pricing import PricedHere
from client.steward.membership import SiteRecords
from client.steward.steward import SecureSteward
from client.training.private_update import TrainingSide
from common.adapter.vector import initial_vector
from common.audit_log import AuditLog
from common.crypto.primitives import Identity, Secret
from common.manifest.manifest import Member, open_manifest, sign_manifest
from common.manifest.terms import draft_manifest
from common.secagg import aggregator
from common.wire.messages import (
    ContributeMasked,
    MaskedAnswer,
    OpenSecureSession,
    Propose,
    Refusal,
    SessionKeyAdvert,
    ShareSessionKeys,
    encode,
)
from common.wire.replies import decode_reply
from tests.client.sites import run_config

if TYPE_CHECKING:
    from pathlib import Path

    from client.governance.pricing import Pricing
    from client.training.private_update import AnswerTimes
    from client.training.trainer import Trainer
    from common.config import RunConfig
    from common.manifest.manifest import Manifest
    from common.privacy.statements import Unit
    from common.secagg.messages import Step
    from common.wire.messages import Request
    from common.wire.replies import Reply
    from tests.client.sites import Site

HEAD = bytes(32)
COUNT = 3


def secure_config(rounds: int = 4, **privacy: Any) -> RunConfig:
    table = {
        "epsilon": 4.0,
        "delta": 1e-3,
        "clip": 0.015,
        "population": 18,
        "largest_site": 8,
        "sampling_rate": 0.5,
        **privacy,
    }
    digest = "sha256:" + "0" * 64
    return run_config(
        rounds=rounds,
        privacy=table,
        acknowledge="",
        base={"path": "unused", "digest": digest},
        server={"minimum_institutions": COUNT},
    )


@dataclass
class Desk:
    """Somebody who approves, or not, and keeps what was proposed."""

    approve: bool = True
    proposals: list[bytes] = field(default_factory=list)

    def is_approved(self, digest: bytes) -> bool:
        del digest
        return self.approve

    def note_proposal(self, signed: bytes) -> None:
        self.proposals.append(signed)


@dataclass
class Ring:
    """Everything that a test needs of one run; ``counted`` is how often pictures were made ready."""

    trainer: Trainer
    site: Site
    manifest: Manifest
    signed: bytes
    coordinator: Identity
    identities: list[Identity]
    folder: Path
    desks: list[Desk] = field(default_factory=lambda: [Desk() for _ in range(COUNT)])
    stewards: list[SecureSteward] = field(default_factory=list)
    prepared: int = 0
    answer_times: AnswerTimes = "as_computed"
    pricing: Pricing = field(default_factory=PricedHere)

    def count_units(self, unit: Unit) -> int:
        del unit
        return len(self.site.shard)

    def prepare(self, manifest: Manifest) -> TrainingSide:
        del manifest
        self.prepared += 1
        units = tuple((row,) for row in range(len(self.site.shard)))
        return TrainingSide(
            name="ward", trainer=self.trainer, shard=self.site.shard, units=units, answer_times=self.answer_times
        )

    def policy(self, **changes: Any) -> SitePolicy:
        limits = PrivacyLimits(
            epsilon_per_run=4.0, delta_per_run=1e-3, epsilon_lifetime=4.0, delta_lifetime=1e-3, units=("image",)
        )
        made = SitePolicy(
            coordinators=(self.coordinator.public.hex(),),
            base_digests=(self.manifest.base_digest,),
            adapter_kinds=("AB",),
            institutions=tuple(member.key for member in self.manifest.roster),
            privacy=limits,
        )
        return msgspec.structs.replace(made, **changes)

    def start(self, place: int, **policy: Any) -> SecureSteward:
        """A steward's process, for the first time or anew: what it had in memory is gone."""
        folder = self.folder / str(place)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "ledger.sqlite"
        opened = (Ledger.open if path.exists() else Ledger.create)(path, PldAccountant())
        records = SiteRecords(
            identity=self.identities[place],
            policy=self.policy(**policy),
            ledger=opened,
            audit=self.log(place),
            approvals=self.desks[place],
            collection="ward",
            pricing=self.pricing,
        )
        return SecureSteward(f"site-{place}", records, self)

    def log(self, place: int) -> AuditLog:
        return AuditLog(path=self.folder / str(place) / "audit.log", identity=self.identities[place])

    def entries(self, place: int) -> list[dict[str, Any]]:
        lines = (self.folder / str(place) / "audit.log").read_bytes().splitlines()
        return [msgspec.json.decode(line) for line in lines]

    def refusals(self, place: int) -> list[str]:
        return [entry["details"]["code"] for entry in self.entries(place) if entry["kind"] == "refused"]

    def charged(self, place: int) -> int:
        return sum(entry["kind"] == "charged" for entry in self.entries(place))

    def ask(self, place: int, request: Request | bytes) -> Reply:
        data = request if isinstance(request, bytes) else encode(request)
        return decode_reply(self.stewards[place].answer(data))

    def refused(self, place: int, request: Request | bytes) -> str:
        """The refusal's code; it stands in the audit log once, and nothing was charged."""
        before, charged = self.refusals(place), self.charged(place)
        reply = self.ask(place, request)
        assert isinstance(reply, Refusal), reply
        assert self.refusals(place) == [*before, reply.code.value]
        assert self.charged(place) == charged
        return reply.code.value

    def adapter(self) -> bytes:
        return initial_vector(self.trainer.spec).astype("<f4").tobytes()

    def idle(self, manifest: Manifest | None = None, *, epoch: int = -1) -> aggregator.Idle:
        signed = self.signed if manifest is None else sign_manifest(manifest, self.coordinator)
        return aggregator.start(*open_manifest(signed), self.coordinator, epoch=epoch)

    def open(self, *, epoch: int = -1) -> aggregator.Open:
        """Proposed to and accepted by all, and a session among them."""
        for place in range(COUNT):
            self.ask(place, Propose(manifest=self.signed))
        opening, request = self.idle(epoch=epoch).create_open_session()
        for place in range(COUNT):
            advert = self.ask(place, OpenSecureSession(message=request))
            assert isinstance(advert, SessionKeyAdvert), advert
            opening = opening.handle_advert(advert.message)
        opened, keys = opening.create_session_keys()
        for place in range(COUNT):
            self.ask(place, ShareSessionKeys(message=keys))
        return opened

    def request(
        self, opened: aggregator.Open, step: Step, adapter: bytes | None = None
    ) -> tuple[aggregator.Collecting, ContributeMasked]:
        data = self.adapter() if adapter is None else adapter
        state, request = opened.create_round_request(step, adapter=data, cohort=(0, 1, 2), head=HEAD)
        return state, ContributeMasked(message=request)

    def answer(self, place: int, request: ContributeMasked) -> bytes:
        reply = self.ask(place, request)
        assert isinstance(reply, MaskedAnswer), reply
        return reply.message


def make_ring(site: Site, folder: Path, config: RunConfig | None = None, **changes: Any) -> Ring:
    """Three stewards with the pictures of one site; ``changes`` are of the manifest, signed all the same."""
    chosen = config or secure_config()
    chosen = msgspec.structs.replace(chosen, base=msgspec.structs.replace(chosen.base, digest=site.base.digest))
    trainer = site.trainer(chosen)
    coordinator = Identity(Secret(b"c" * 32))
    identities = [Identity(Secret(bytes([number]) * 32)) for number in range(1, COUNT + 1)]
    manifest = draft_manifest(
        chosen,
        base_digest=site.base.digest,
        adapter_digest=trainer.spec.digest,
        dimension=trainer.spec.dimension,
        coordinator=coordinator.public,
        roster=[Member(name=f"site-{place}", key=one.public.hex()) for place, one in enumerate(identities)],
        code_version=version("darkroom"),
    )
    manifest = msgspec.structs.replace(manifest, **changes)
    ring = Ring(trainer, site, manifest, sign_manifest(manifest, coordinator), coordinator, identities, folder)
    ring.stewards = [ring.start(place) for place in range(COUNT)]
    return ring
