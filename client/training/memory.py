"""Whether a base model fits before it is loaded: a steward that the kernel kills answers nobody and says nothing.

The estimate is a lower bound: weights in float32 with half as much again for activations, and a fixed reserve.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from safetensors import safe_open

from common.adapter.directory import WEIGHTS, weight_files
from common.errors import NotEnoughMemory

if TYPE_CHECKING:
    from common.adapter.model import BaseModel

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


def check_memory(base: BaseModel, *, device: str, limit: int | None) -> Memory:
    """Refuse a base that cannot fit.

    Args:
        base: Opened, not loaded.
        device: ``cuda`` or ``cpu``.
        limit: Most bytes that the site allows; None: what is free.

    Raises:
        NotEnoughMemory: It does not fit.

    """
    available = _free_on_gpu() if device == "cuda" else _free_in_ram()
    available = available if limit is None else min(limit, available)
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
