"""Checkpoints: a run that is killed goes on from the last completed round and ends with the same bits.

One safetensors file per round holds the adapter and the optimiser's moments, and in its header a JSON description. It
is written beside the others and renamed into place, so that a crash never leaves half of one; the last two are kept.

Guarantee: ``load_checkpoint`` gives back exactly what ``save_checkpoint`` was given, or raises; a changed byte is
noticed, because a SHA-256 of description and values stands in the header.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.config import RunConfig
from common.durable_files import write_atomically
from common.errors import CheckpointError
from server.rounds.optimizer import OptimizerState, Vector, frozen_copy

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_Array: TypeAlias = Any
"""A numpy array of any type; safetensors carries no types."""
_log = logging.getLogger(__name__)

PACKAGES: Final = ("darkroom", "torch", "diffusers", "transformers", "peft", "flwr", "numpy")
"""What a run's result depends on."""
FORMAT: Final = 1
KEPT: Final = 2
"""Checkpoints that stay on disk."""
FREE_KEYS: Final = frozenset(
    {"title", "rounds", "base.path", "base.download", "server.round_timeout_s", "server.attempts"}
)
"""Configuration that may change between two starts of a run. A cosine schedule follows a changed number of rounds; with
privacy it may not change, since the noise depends on it. A base may have moved: the adapter spec holds its digest."""
_ADAPTER: Final = "adapter"
_AVERAGE: Final = "average"
_DESCRIPTION: Final = "darkroom"
_DIGEST: Final = "digest"


class _Description(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: int
    round: int
    optimizer_steps: int
    spec_digest: str
    manifest: str = ""
    config: dict[str, Any]
    versions: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A run after ``round`` completed rounds; ``adapter`` is float32[d]."""

    round: int
    adapter: Vector
    optimizer: OptimizerState
    config: dict[str, Any]
    """The run configuration as it was at the time, by :func:`plain_values`."""
    spec_digest: str
    manifest: str = ""
    """Digest of the run's signed manifest, hex; empty in a run that has none."""
    average: Vector | None = None
    """float32[d]: moving average of the adapters, where the run keeps one."""

    @property
    def released(self) -> Vector:
        """What is released: the average where there is one."""
        return self.adapter if self.average is None else self.average

    def check_belongs(self, config: RunConfig, *, spec_digest: str, manifest: str) -> None:
        """Refuse to go on with another run's state; ``manifest`` is its digest in hex, empty where the run has none.

        Raises:
            CheckpointError: Names every key that differs, beyond :data:`FREE_KEYS`, or says that the checkpoint is
                further than the run is long.

        """
        free = FREE_KEYS if config.privacy == "none" else FREE_KEYS - {"rounds"}
        found = _differences(_with_defaults(self.config), plain_values(config))
        differing = [line for path, line in found if path not in free]
        if self.spec_digest != spec_digest:
            differing.append(f"adapter spec: checkpoint {self.spec_digest}, this run {spec_digest}")
        if self.manifest != manifest:
            differing.append(f"manifest: checkpoint {self.manifest or 'none'}, this run {manifest or 'none'}")
        if differing:
            listed = "\n".join(f"  - {line}" for line in differing)
            raise CheckpointError(
                f"the checkpoint belongs to another run:\n{listed}\n"
                "restore these, or start a new run in another directory"
            )
        if self.round > config.rounds:
            raise CheckpointError(
                f"the checkpoint has {self.round} rounds behind it, the run is {config.rounds} long; raise rounds"
            )


def plain_values(config: RunConfig) -> dict[str, Any]:
    """The configuration as JSON would give it back, all defaults spelt out."""
    values: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(config))
    return values


def save_checkpoint(directory: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint into the directory and remove all but the last two; its path."""
    description = msgspec.json.encode(
        _Description(
            format=FORMAT,
            round=checkpoint.round,
            optimizer_steps=checkpoint.optimizer.steps,
            spec_digest=checkpoint.spec_digest,
            manifest=checkpoint.manifest,
            config=checkpoint.config,
            versions=package_versions(),
        )
    )
    average = {} if checkpoint.average is None else {_AVERAGE: checkpoint.average}
    arrays = {_ADAPTER: checkpoint.adapter, **average, **checkpoint.optimizer.to_arrays()}
    header = {_DESCRIPTION: description.decode(), _DIGEST: _digest(description, arrays)}
    path = directory / f"round-{checkpoint.round:07d}.safetensors"
    write_atomically(path, save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, header))
    broken_off = directory.glob(".round-*.partial")  # by a crash: one process alone leads a run
    for old in (*checkpoint_files(directory)[:-KEPT], *broken_off):
        old.unlink()
    return path


def checkpoint_files(directory: Path) -> list[Path]:
    """Checkpoints in the directory, oldest first."""
    return sorted(directory.glob("round-*.safetensors"))


def last_round(directory: Path) -> int | None:
    """Completed rounds by the newest checkpoint's name, unread; None where there is none."""
    numbers = [path.stem.removeprefix("round-") for path in checkpoint_files(directory)]
    return max((int(number) for number in numbers if number.isdecimal()), default=None)


def load_checkpoint(directory: Path) -> Checkpoint:
    """The newest checkpoint that can be read; a damaged one is passed over with a warning.

    Raises:
        CheckpointError: There is none, or all are damaged.

    """
    files = checkpoint_files(directory)
    if not files:
        raise CheckpointError(f"{directory}: no checkpoint to resume from; start the run without --resume")
    faults: list[str] = []
    for path in reversed(files):
        try:
            checkpoint = _read(path)
        except CheckpointError as error:
            faults.append(str(error))
            continue
        for fault in faults:
            _log.warning("%s; going on from round %d", fault, checkpoint.round)
        return checkpoint
    listed = "\n".join(f"  - {fault}" for fault in faults)
    raise CheckpointError(
        f"{directory}: no usable checkpoint:\n{listed}\n"
        "restore one from a backup, or start a new run in another directory"
    )


def _read(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="numpy") as file:
            header: dict[str, str] = file.metadata() or {}
            arrays: dict[str, _Array] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        description = header[_DESCRIPTION].encode()
        if _digest(description, arrays) != header[_DIGEST]:
            raise CheckpointError(f"{path}: damaged: its content is not what was written")
        parsed = msgspec.json.decode(description, type=_Description)
        optimizer = OptimizerState.from_arrays(arrays, steps=parsed.optimizer_steps)
        adapter: Vector = frozen_copy(arrays[_ADAPTER], np.float32)
        average: Vector | None = frozen_copy(arrays[_AVERAGE], np.float32) if _AVERAGE in arrays else None
    except (OSError, SafetensorError, KeyError, ValueError, msgspec.DecodeError) as error:
        raise CheckpointError(f"{path}: damaged or of another version: {error}") from error
    return Checkpoint(
        round=parsed.round,
        adapter=adapter,
        optimizer=optimizer,
        config=parsed.config,
        spec_digest=parsed.spec_digest,
        manifest=parsed.manifest,
        average=average,
    )


def _digest(description: bytes, arrays: Mapping[str, _Array]) -> str:
    """SHA-256 over the description and each array's name, type, shape and bytes."""
    digest = hashlib.sha256()
    parts = [description]
    for name in sorted(arrays):
        parts += [f"{name} {arrays[name].dtype.str} {arrays[name].shape}".encode(), arrays[name].tobytes()]
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def _with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """An earlier version's configuration with defaults for newer keys; as it is, where it is none of this version."""
    try:
        return plain_values(msgspec.convert(values, RunConfig))
    except msgspec.ValidationError:
        return values


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each differing key, and a line about it."""
    for key in sorted(old.keys() | new.keys()):
        path, was, now = prefix + key, old.get(key), new.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            yield from _differences(was, now, f"{path}.")
        elif was != now:
            yield path, f"{path}: checkpoint {was!r}, this run {now!r}"


def package_versions() -> dict[str, str]:
    """Version by package, which is not imported; ``not installed`` where it is missing, as torch may be."""
    return {name: _version(name) for name in PACKAGES}


@functools.cache
def _version(name: str) -> str:
    """Read once a process: it takes a millisecond, and every checkpoint asks."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
