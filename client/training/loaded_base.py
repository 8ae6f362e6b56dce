"""The base model that a steward keeps: opened, checked and loaded once, for one run at a time."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from client.steward.membership import TrainingSide
from client.training.batch_invariance import settle_microbatch
from client.training.memory import MIB, check_memory, choose_device
from client.training.trainer import build_trainer
from common.adapter.model import open_base
from common.errors import DigestMismatch
from common.manifest.manifest import canonical_bytes, manifest_digest
from common.privacy.arithmetic import fix_kernels

if TYPE_CHECKING:
    from client.site.settings import SiteConfig
    from client.training.latents import LatentShard
    from client.training.private_update import AnswerTimes
    from common.adapter.model import BaseModel
    from common.manifest.manifest import Manifest
    from common.privacy.statements import Unit

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EncodedRecords:
    """What a run trains on: encoded pictures, and the pictures of each privacy unit."""

    shard: LatentShard = field(repr=False)
    units: tuple[tuple[int, ...], ...] = field(repr=False)


class RecordSource(Protocol):
    """Where a site's pictures come from."""

    def count_units(self, unit: Unit) -> int:
        """How many a run of this unit would train on."""
        ...

    def encoded(self, base: BaseModel, manifest: Manifest, *, device: str) -> EncodedRecords:
        """The site's training pictures, encoded by this base; without erased, expired and held-out ones."""
        ...


@dataclass(kw_only=True)
class TrainingRoom:
    """One base model on one device.

    Args:
        name: The institution's.
        directory: The base model's.
        device: ``auto``, ``cpu`` or ``cuda``.
        limit: Most bytes that the site allows; None: what is free.
        records: Where the pictures come from.
        answer_times: Whether what is computed follows the size of a round's sample.

    """

    name: str
    directory: str
    device: str
    limit: int | None
    records: RecordSource
    answer_times: AnswerTimes = "even"
    _run: tuple[bytes, TrainingSide] | None = field(init=False, default=None, repr=False)
    _guard: threading.Lock = field(init=False, default_factory=threading.Lock, repr=False)

    @classmethod
    def of_site(cls, site: SiteConfig, records: RecordSource) -> TrainingRoom:
        """The room that a site's settings describe."""
        limit = None if site.memory_limit_mib is None else site.memory_limit_mib * MIB
        return cls(
            name=site.name,
            directory=site.base,
            device=site.device,
            limit=limit,
            records=records,
            answer_times=site.service.answer_times,
        )

    @property
    def loaded(self) -> bool:
        """Whether a base is in memory."""
        return self._run is not None

    def count_units(self, unit: Unit) -> int:
        """How many a run of this unit would train on.

        Raises:
            DarkroomError: They cannot be counted.

        """
        return self.records.count_units(unit)

    def prepare(self, manifest: Manifest) -> TrainingSide:
        """Base, adapter and records of this run; those of the run before are dropped first.

        Raises:
            ModelError: The base cannot be read, or is not the manifest's.
            NotEnoughMemory: It does not fit.
            NotRepeatable: This device does not compute a unit's gradient twice alike, even alone.
            DarkroomError: The pictures cannot be had.

        """
        with self._guard:
            # by digest: the coordinator chooses ``manifest.run``, and may give two manifests of other units the same
            digest = manifest_digest(canonical_bytes(manifest))
            if self._run is not None and self._run[0] == digest:
                return self._run[1]
            self._run = None  # before the next is loaded: two do not fit
            base = self.open_base(manifest.base_digest)
            device = choose_device(self.device)
            fix_kernels(device)
            memory = check_memory(base, device=device, limit=self.limit)
            _log.info("the base fits: about %d MiB of %d on %s", memory.wanted // MIB, memory.available // MIB, device)
            records = self.records.encoded(base, manifest, device=device)
            trainer = build_trainer(base, manifest.config, device=device)
            if manifest.config.privacy != "none":
                settle_microbatch(trainer, records.shard, draws=manifest.config.privacy.draws)
            side = TrainingSide(
                name=self.name,
                trainer=trainer,
                shard=records.shard,
                units=records.units,
                answer_times=self.answer_times,
            )
            self._run = (digest, side)
            return side

    def forget(self) -> None:
        """Drop base and records, after an erasure or an expiry; the next run gets them anew."""
        with self._guard:
            self._run = None

    def open_base(self, digest: str | None = None) -> BaseModel:
        """The base, opened but not loaded.

        Raises:
            ModelError: It cannot be read, or its digest is another.

        """
        base = open_base(str(Path(self.directory)))
        if digest is not None and base.digest != digest:
            raise DigestMismatch(f"{self.directory}: is {base.digest}; the run wants {digest}")
        return base
