"""Peak memory of a step, on CPU as well as on CUDA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch.profiler import ProfilerActivity, profile

if TYPE_CHECKING:
    from collections.abc import Callable

METHOD: Final = {
    "cpu": "torch.profiler's allocator events: most bytes held at once beyond those held before the step; "
    "scratch space that oneDNN and OpenBLAS take by themselves is not seen",
    "cuda": "torch.cuda.max_memory_allocated less memory_allocated before the step",
}


def peak_bytes(step: Callable[[], object], device: torch.device) -> int:
    """Most bytes that a step holds at once in torch's allocator, beyond those held before it.

    Unlike a process's resident size, this does not depend on what ran before, so steps can be compared in one process.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    profiler = recorded.profiler
    if profiler is None:
        return 0
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
