"""The base model that a steward keeps: opened, checked and loaded once, for one run at a time.

Whether it fits is worked out before it is loaded: a steward that the kernel kills answers nobody and says nothing. The
estimate is a lower bound: weights in float32 with half as much again for activations, and a fixed reserve.
"""

from __future__ import annotations

import logging
import math
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import torch
from safetensors import safe_open

from client.training.batch_invariance import settle_microbatch
from client.training.private_update import TrainingSide
from client.training.trainer import build_trainer
from common.adapter.directory import WEIGHTS, weight_files
from common.adapter.model import open_base
from common.errors import DigestMismatch, NotEnoughMemory
from common.manifest.manifest import canonical_bytes, manifest_digest
from common.privacy.arithmetic import fix_kernels

if TYPE_CHECKING:
    from client.site.settings import SiteConfig
    from client.training.latents import LatentShard
    from common.adapter.model import BaseModel
    from common.manifest.manifest import Manifest
    from common.privacy.statements import Unit

_log: Final = logging.getLogger(__name__)
MIB: Final = 2**20
RESERVE_BYTES: Final = 512 * MIB
_CGROUP: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes wanted and bytes to be had."""

    wanted: int
    available: int


def choose_device(wanted: str) -> str:
    """``cuda`` or ``cpu``.

    Raises:
        NotEnoughMemory: ``cuda`` is wanted and there is none.

    """
    found = torch.cuda.is_available()
    if wanted == "cuda" and not found:
        raise NotEnoughMemory('device = "cuda", but torch sees no GPU; install the driver, or set device = "auto"')
    return "cuda" if found and wanted != "cpu" else "cpu"


def check_memory(base: BaseModel, *, device: str, limit_mib: int | None) -> Memory:
    """Refuse a base that cannot fit.

    Args:
        base: Opened, not loaded.
        device: ``cuda`` or ``cpu``.
        limit_mib: Most that the site allows; None: what is free.

    Raises:
        NotEnoughMemory: It does not fit.

    """
    available = _free_on_gpu() if device == "cuda" else _free_in_ram()
    available = available if limit_mib is None else min(limit_mib * MIB, available)
    wanted = wanted_bytes(base)
    if wanted > available:
        raise NotEnoughMemory(
            f"{base.directory}: wants about {wanted // MIB} MiB on {device}, {available // MIB} MiB are free or "
            "allowed; take a smaller base, free memory, or raise memory_limit_mib"
        )
    return Memory(wanted=wanted, available=available)


def wanted_bytes(base: BaseModel) -> int:
    """What loading and training take at least; parts are loaded one after the other, so the largest counts."""
    parts = [part for part in WEIGHTS if (base.directory / part).is_dir()]
    largest = max(_parameters(base.directory, part) for part in parts)
    return 4 * largest + 2 * largest + RESERVE_BYTES


def _parameters(directory: Path, part: str) -> int:
    """Numbers in the weights of one part, from the files' headers."""
    total = 0
    for name in weight_files(directory, part):
        if name.endswith(".safetensors"):
            with safe_open(directory / part / name, framework="pt") as file:
                total += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118 - no mapping
    return total


def _free_on_gpu() -> int:
    free, _ = torch.cuda.mem_get_info()
    return int(free)


def _free_in_ram() -> int:
    """What the kernel says is available, and no more than this process's control group leaves."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    most, used = (_cgroup_value(name) for name in ("memory.max", "memory.current"))
    return free if most is None or used is None else min(free, max(0, most - used))


def _cgroup_value(name: str) -> int | None:
    try:
        text = (_CGROUP / name).read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


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
class LoadedBase:
    """One base model on one device, with the records of the run that it trains in.

    Args:
        site: Names the base, the device and the most memory that may be taken.
        records: Where the pictures come from.

    """

    site: SiteConfig
    records: RecordSource
    _run: tuple[bytes, TrainingSide] | None = field(init=False, default=None, repr=False)
    _guard: threading.Lock = field(init=False, default_factory=threading.Lock, repr=False)

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
            device = choose_device(self.site.device)
            fix_kernels(device)
            memory = check_memory(base, device=device, limit_mib=self.site.memory_limit_mib)
            _log.info("the base fits: about %d MiB of %d on %s", memory.wanted // MIB, memory.available // MIB, device)
            records = self.records.encoded(base, manifest, device=device)
            trainer = build_trainer(base, manifest.config, device=device)
            if manifest.config.privacy != "none":
                settle_microbatch(trainer, records.shard, draws=manifest.config.privacy.draws)
            side = TrainingSide(
                name=self.site.name,
                trainer=trainer,
                shard=records.shard,
                units=records.units,
                answer_times=self.site.service.answer_times,
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
        base = open_base(str(self.site.base))
        if digest is not None and base.digest != digest:
            raise DigestMismatch(f"{self.site.base}: is {base.digest}; the run wants {digest}")
        return base
