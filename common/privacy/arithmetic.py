"""What decides the last bits of a result besides its inputs, and how this process fixes it.

That is the libraries, the device and its kernels, how many threads share one operation, and whether subnormal numbers,
those too small for full precision, are flushed to zero. Each matters here: an adapter that a hostile coordinator makes
for the purpose turns a last bit into a gradient of another direction.
"""

from __future__ import annotations

import os
import platform
import threading
from concurrent.futures import Future
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
_LIBRARIES: Final = ("torch", "diffusers", "transformers")
_PROCESSORS: Final = Path("/proc/cpuinfo")


def computed(work: Callable[[], T]) -> T:
    """What ``work`` returns, computed in a new thread in which subnormals count as zero, as in all of its workers.

    With subnormals a processor takes many times as long, so one picture could slow an answer ninefold, which whoever
    waits for it sees. The setting is each thread's own, and a worker keeps the one that it was started with: set later,
    it would hold for some rows of a batch and not for others. A new thread starts new workers, which take over its own.
    Where the processor cannot flush, nothing does.
    """
    result = Future[T]()

    def run() -> None:
        torch.set_flush_denormal(True)
        try:
            result.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again below, in the caller's thread
            result.set_exception(error)

    # a daemon: whoever interrupts the caller does not wait for the work
    threading.Thread(target=run, name="arithmetic", daemon=True).start()
    return result.result()


def fix_kernels(device: str) -> None:
    """Let shapes and types alone choose a GPU's kernels, and none that adds up in the order in which threads end.

    To be called before anything is computed there. An operation without such a kernel then raises. A processor's
    kernels are chosen so anyway.
    """
    if torch.device(device).type != "cuda":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS may add up in any order
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)  # noqa: FBT003 - torch's own signature
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def arithmetic_of(device: str) -> str:
    """All of it in words: results that are kept may stand beside new ones only where these are the same.

    Assumed: one device computes the same twice, which is to be asked of it before anything rests on it.
    """
    parts = [f"{name} {version(name)}" for name in _LIBRARIES]
    if torch.device(device).type == "cuda":
        parts += [torch.cuda.get_device_name(device), f"CUDA {torch.version.cuda} {torch.backends.cudnn.version()}"]  # type: ignore[no-untyped-call]
    else:
        parts += [_processor(), torch.backends.cpu.get_cpu_capability(), f"{torch.get_num_threads()} threads"]
    return ", ".join(parts)


def _processor() -> str:
    try:
        lines = _PROCESSORS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    return next((line for line in lines if line.startswith("model name")), platform.machine())
