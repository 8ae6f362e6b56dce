"""A simulated run with secure aggregation: everybody's keys, manifest, policies, ledgers and logs.

What a real federation keeps on many machines lies in one run's directory here, so that a run can be resumed:
``coordinator/`` (identity, manifest, log) and ``institutions/NAME/`` (identity, ledger, log).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from client.governance.ledger import Ledger, PldAccountant
from client.governance.policy import PrivacyLimits, SitePolicy
from client.steward.membership import SiteRecords
from client.steward.steward import SecureSteward
from client.training.private_update import TrainingSide
from common.audit_log import AuditLog
from common.crypto.identity_file import create_identity_file, read_identity_file
from common.durable_files import write_atomically
from common.errors import ConfigError
from common.manifest.manifest import Member, open_manifest, sign_manifest
from common.manifest.terms import draft_manifest
from server.rounds.secagg_session import SecureRun
from server.run.checkpoint import package_versions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from client.training.trainer import Trainer
    from common.config import RunConfig
    from common.crypto.primitives import Identity
    from common.manifest.manifest import Manifest
    from common.privacy.statements import Unit
    from simulations.scenario.store import InstitutionStore

_IDENTITY: Final = "identity"
_MANIFEST: Final = "manifest.bin"
_LOG: Final = "audit.log"
POPULATION: Final = "simulated"


class PolicyAlone:
    """Approves whatever the policy allows: for simulations, where nobody is there to be asked."""

    def is_approved(self, digest: bytes) -> bool:
        """Yes."""
        del digest
        return True

    def note_proposal(self, signed: bytes) -> None:
        """Nobody will look at it."""


@dataclass(frozen=True)
class SimulatedFederation:
    """Everybody's keys and records, made when the run is started and read when it goes on."""

    config: RunConfig
    trainer: Trainer = field(repr=False)
    store: InstitutionStore = field(repr=False)
    directory: Path
    watch: Callable[[TrainingSide], TrainingSide] = field(default=lambda side: side, repr=False)
    """Puts something between an institution and its pictures, to be looked at after a simulation."""
    _stewards: dict[int, SecureSteward] = field(default_factory=dict, init=False, repr=False)

    def secure_run(self) -> SecureRun:
        """The coordinator's side; its signed manifest is made on the first call of a run."""
        folder = self.directory / "coordinator"
        identity = _identity(folder)
        path = folder / _MANIFEST
        if not path.exists():
            write_atomically(path, sign_manifest(self._draft(identity), identity))
        return SecureRun(
            manifest=path.read_bytes(), identity=identity, audit=AuditLog(path=folder / _LOG, identity=identity)
        )

    def steward(self, index: int) -> SecureSteward:
        """The institution at ``index``, which keeps its session keys from message to message."""
        if index not in self._stewards:
            self._stewards[index] = self._make_steward(index)
        return self._stewards[index]

    def _draft(self, coordinator: Identity) -> Manifest:
        if self.config.base.digest is None:
            raise ConfigError("base.digest: wanted for a manifest")
        names = [institution_name(index) for index in range(len(self.store.institutions))]
        spec = self.trainer.spec
        return draft_manifest(
            self.config,
            base_digest=self.config.base.digest,
            adapter_digest=spec.digest,
            dimension=spec.dimension,
            coordinator=coordinator.public,
            roster=[Member(name=name, key=_identity(self._folder(name)).public.hex()) for name in names],
            code_version=package_versions()["darkroom"],
        )

    def _folder(self, name: str) -> Path:
        return self.directory / "institutions" / name

    def _make_steward(self, index: int) -> SecureSteward:
        rows = self.store.institutions[index]
        folder = self._folder(institution_name(index))
        identity = _identity(folder)
        path = folder / "ledger.sqlite"
        # a log without its ledger: what was spent is lost, and a new one would say that nothing was
        known = path.exists() or (folder / _LOG).exists()
        open_ledger = Ledger.open if known else Ledger.create
        manifest, _ = open_manifest((self.directory / "coordinator" / _MANIFEST).read_bytes())
        records = SiteRecords(
            identity=identity,
            policy=_policy(manifest),
            ledger=open_ledger(path, PldAccountant()),
            audit=AuditLog(path=folder / _LOG, identity=identity),
            approvals=PolicyAlone(),
            collection=POPULATION,
        )
        return SecureSteward(rows.name, records, _Shared(self, index))


@dataclass(frozen=True)
class _Shared:
    """Institutions of one process share its base; each has its own rows of the store."""

    federation: SimulatedFederation
    index: int

    def count_units(self, unit: Unit) -> int:
        """As :meth:`prepare` gives them: a run has one unit."""
        del unit
        return len(self.federation.store.institutions[self.index].units())

    def prepare(self, manifest: Manifest) -> TrainingSide:
        """Ready as it is: the store was encoded before the run."""
        del manifest
        store = self.federation.store
        rows = store.institutions[self.index]
        side = TrainingSide(
            name=rows.name,
            trainer=self.federation.trainer,
            shard=store.train.select(rows.train),
            units=rows.units(),
        )
        return self.federation.watch(side)


def institution_name(index: int) -> str:
    """The name in the roster; sorted names are in the order of the institutions."""
    return f"institution-{index + 1:04d}"


def _identity(folder: Path) -> Identity:
    path = folder / _IDENTITY
    return read_identity_file(path) if path.exists() else create_identity_file(path)


def _policy(manifest: Manifest) -> SitePolicy:
    """What allows this run and no more: a simulated site agrees to the scenario that it is part of."""
    privacy = manifest.config.privacy
    if privacy == "none":
        raise ConfigError("wanted a run with privacy")
    return SitePolicy(
        coordinators=(manifest.coordinator,),
        base_digests=(manifest.base_digest,),
        adapter_kinds=(manifest.config.adapter.train,),
        minimum_cohort=manifest.config.server.minimum_institutions,
        colluders=privacy.colluders,
        institutions=tuple(member.key for member in manifest.roster),
        repeatable=privacy.repeatable,
        privacy=PrivacyLimits(
            epsilon_per_run=privacy.epsilon,
            delta_per_run=privacy.delta,
            epsilon_lifetime=privacy.epsilon,
            delta_lifetime=privacy.delta,
            units=(privacy.unit,),
        ),
    )
