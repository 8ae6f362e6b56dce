"""Every virtual institution's encoded pictures in one store on disk, from which a worker process makes stewards.

The pictures are encoded once; an institution is a name and two lists of rows. A thousand institutions therefore cost no
more memory than their pictures, and all of a process's stewards share one frozen base.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import msgspec
import torch

from client.training.trainer import Trainer, build_trainer
from common.adapter.model import open_base
from common.config import RunConfig
from simulations.scenario.folder_latents import load_shard, save_shard
from simulations.scenario.plain_steward import Steward

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from flwr.app import Context

    from client.training.latents import LatentShard

_INDEX: Final = "institutions.json"


class InstitutionRows(msgspec.Struct, frozen=True, kw_only=True):
    """One virtual institution: its name and the rows it holds of the store's training and hold-out shards."""

    name: str
    train: tuple[int, ...]
    holdout: tuple[int, ...]
    subjects: tuple[int, ...] | None = None
    """Number of each training row's subject, where subjects are the privacy units."""

    def units(self) -> tuple[tuple[int, ...], ...]:
        """Places in ``train`` of each privacy unit's pictures: a subject's, or each picture alone."""
        if self.subjects is None:
            return tuple((place,) for place in range(len(self.train)))
        found: dict[int, list[int]] = {}
        for place, subject in enumerate(self.subjects):
            found.setdefault(subject, []).append(place)
        return tuple(tuple(places) for places in found.values())


@dataclass(frozen=True)
class InstitutionStore:
    """All virtual institutions of a scenario."""

    institutions: tuple[InstitutionRows, ...]
    train: LatentShard
    holdout: LatentShard

    def save(self, directory: Path) -> None:
        """Write the store for worker processes."""
        save_shard(self.train, directory / "train.safetensors")
        save_shard(self.holdout, directory / "holdout.safetensors")
        (directory / _INDEX).write_bytes(msgspec.json.encode(self.institutions))

    @classmethod
    def load(cls, directory: Path) -> InstitutionStore:
        """Read what :meth:`save` wrote."""
        institutions = msgspec.json.decode((directory / _INDEX).read_bytes(), type=tuple[InstitutionRows, ...])
        return cls(
            institutions, load_shard(directory / "train.safetensors"), load_shard(directory / "holdout.safetensors")
        )

    def only(self, name: str) -> InstitutionStore:
        """The store with one institution alone."""
        return InstitutionStore(tuple(row for row in self.institutions if row.name == name), self.train, self.holdout)

    def union(self) -> InstitutionStore:
        """The store with one institution that holds everything: the centralised baseline."""
        train = tuple(row for institution in self.institutions for row in institution.train)
        holdout = tuple(row for institution in self.institutions for row in institution.holdout)
        known = [institution.subjects for institution in self.institutions if institution.subjects is not None]
        subjects = tuple(one for some in known for one in some) if known else None
        union = InstitutionRows(name="union", train=train, holdout=holdout, subjects=subjects)
        return InstitutionStore((union,), self.train, self.holdout)

    def steward(self, index: int, config: RunConfig, trainer: Trainer) -> Steward:
        """The steward of the institution at ``index``."""
        rows = self.institutions[index]
        return Steward(
            name=rows.name,
            config=config,
            trainer=trainer,
            train=self.train.select(rows.train),
            holdout=self.holdout_of(index),
            units=rows.units(),
        )

    def holdout_of(self, index: int) -> LatentShard | None:
        """The hold-out shard of the institution at ``index``, or None if it has none."""
        rows = self.institutions[index].holdout
        return self.holdout.select(rows) if rows else None


@dataclass(frozen=True)
class WorkerPlan:
    """What a worker process needs to play any of a scenario's institutions: paths and public configuration only."""

    run_config: bytes
    """The run configuration as JSON: hashable, and small to send to a worker."""
    base: str
    store: Path
    threads: int

    def connect(self, context: Context) -> Steward:
        """The steward of the institution that Flower's node plays; base and store are loaded on the first call."""
        config, trainer, store = _worker(self)
        return store.steward(int(context.node_config["partition-id"]), config, trainer)


@lru_cache(maxsize=1)
def _worker(plan: WorkerPlan) -> tuple[RunConfig, Trainer, InstitutionStore]:
    """Once per process and plan: a base that is loaded every round would cost more than the round."""
    torch.set_num_threads(plan.threads)
    config = msgspec.json.decode(plan.run_config, type=RunConfig)
    base = open_base(plan.base, digest=config.base.digest, family=config.base.family)
    return config, build_trainer(base, config), InstitutionStore.load(plan.store)


def deal(
    names: Sequence[str],
    train: Sequence[Sequence[int]],
    holdout: Sequence[Sequence[int]],
    *,
    subjects: Sequence[int] | None = None,
) -> tuple[InstitutionRows, ...]:
    """Institutions of the given names and rows; ``subjects`` numbers the subject of every training row of the store."""
    return tuple(
        InstitutionRows(
            name=name,
            train=tuple(ours),
            holdout=tuple(kept),
            subjects=None if subjects is None else tuple(subjects[row] for row in ours),
        )
        for name, ours, kept in zip(names, train, holdout, strict=True)
    )
