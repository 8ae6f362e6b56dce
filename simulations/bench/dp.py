"""What privacy costs: seconds and memory of a private step as ratios to the plain LoRA step.

In one process, on one model and batch, the steps take turns in a fresh random order each round, so that whatever else
the machine does falls on all of them; ratios are taken within a round. Wall time is what a user waits; processor time
is less disturbed by other programs.
"""

from __future__ import annotations

import gc
import os
import platform
import random
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from simulations.bench.dp_models import Setting, build
from simulations.bench.dp_steps import STEPS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from simulations.bench.dp_models import Subject
    from simulations.bench.dp_steps import Contestant


METHOD: Final = {
    "cpu": "torch.profiler's allocator events: most bytes held at once beyond those held before the step; "
    "scratch space that oneDNN and OpenBLAS take by themselves is not seen",
    "cuda": "torch.cuda.max_memory_allocated less memory_allocated before the step",
}


DEFAULT_STEPS: Final = ("plain", "ours", "opacus_hooks", "opacus_ghost")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Median over rounds, with the quartiles beside it."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """One step: seconds of wall time, and ratios to the plain step. ``failure`` says why there are none."""

    seconds: Figure | None = None
    wall_ratio: Figure | None = None
    processor_ratio: Figure | None = None
    peak_bytes: int | None = None
    memory_ratio: float | None = None
    failure: str | None = None


def measure(setting: Setting, *, rounds: int, steps: Sequence[str] = DEFAULT_STEPS) -> dict[str, Any]:
    """Measure the steps and return what was found, ready for JSON.

    Args:
        setting: model, adapter and batch.
        rounds: timed rounds; one more warms up and measures memory.
        steps: names of :data:`STEPS`; ``plain`` is always among them.

    """
    subject = build(setting)
    names = ["plain", *(name for name in steps if name != "plain")]
    peaks, failures = _warm_up(subject, setting, names)
    times = _take_turns(subject, setting, [name for name in names if name not in failures], rounds)
    results = {name: _result(name, times, peaks) for name in times}
    results |= {name: Result(failure=text) for name, text in failures.items()}
    return {
        "setting": msgspec.to_builtins(setting),
        "coordinates": sum(parameter.numel() for parameter in subject.parameters),
        "rounds": rounds,
        "memory_method": METHOD[torch.device(setting.device).type],
        "machine": machine(),
        "results": {name: asdict(result) for name, result in results.items()},
    }


def _warm_up(subject: Subject, setting: Setting, names: Sequence[str]) -> tuple[dict[str, int], dict[str, str]]:
    """Run each step once before its memory is measured; those that cannot run at all are left out with their reason."""
    peaks, failures = {}, {}
    for name in names:
        try:
            with STEPS[name](subject, setting.draws) as step:
                step()
                peaks[name] = peak_bytes(step, torch.device(setting.device))
        except (RuntimeError, ValueError, NotImplementedError, AttributeError) as error:
            if name in {"plain", "ours"}:
                raise
            failures[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            for parameter in subject.parameters:
                parameter.grad = None
    return peaks, failures


def _take_turns(
    subject: Subject, setting: Setting, names: Sequence[str], rounds: int
) -> dict[str, list[tuple[float, float]]]:
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    shuffled = random.Random(0)  # noqa: S311 - the order of measurements is no secret
    for _ in range(rounds):
        for name in shuffled.sample(list(names), len(names)):
            times[name].append(_timed(STEPS[name], subject, setting))
    return times


def _timed(contestant: Contestant, subject: Subject, setting: Setting) -> tuple[float, float]:
    """Wall and processor seconds of one step."""
    with contestant(subject, setting.draws) as step, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()
        _wait(setting.device)
        wall, processor = time.perf_counter(), time.process_time()
        result: Tensor = step()
        _wait(setting.device)
        taken = time.perf_counter() - wall, time.process_time() - processor
    del result
    return taken


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


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


def _result(name: str, times: dict[str, list[tuple[float, float]]], peaks: dict[str, int]) -> Result:
    mine, plain = np.array(times[name]), np.array(times["plain"])
    return Result(
        seconds=_figure(mine[:, 0]),
        wall_ratio=_figure(mine[:, 0] / plain[:, 0]),
        processor_ratio=_figure(mine[:, 1] / plain[:, 1]),
        peak_bytes=peaks[name],
        memory_ratio=round(peaks[name] / max(1, peaks["plain"]), 4),
    )


def _figure(values: np.ndarray[Any, np.dtype[np.float64]]) -> Figure:
    low, median, high = (round(float(value), 4) for value in np.quantile(values, [0.25, 0.5, 0.75]))
    return Figure(median=median, low=low, high=high)


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [
            line.partition(":")[2].strip()
            for line in info.read_text(encoding="utf-8").splitlines()
            if "model name" in line
        ]
        cpu = models[0] if models else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def as_table(report: dict[str, Any]) -> str:
    """The report as a Markdown table."""
    setting = report["setting"]
    lines = [
        (
            f"{setting['model']}, train = {setting['adapter']['train']}, d = {report['coordinates']}, "
            f"{setting['batch']} units × {setting['draws']} draws, {setting['side']}×{setting['side']} latents, "
            f"{report['rounds']} rounds, {report['machine']['threads']} threads"
        ),
        "",
        "| step | seconds | wall time | processor time | peak memory |",
        "|---|---|---|---|---|",
    ]
    for name, result in report["results"].items():
        if result["failure"] is not None:
            lines.append(f"| {name} | fails: {result['failure']} | | | |")
            continue
        spreads = [
            f"{one['median']:.3f}× ({one['low']:.3f}–{one['high']:.3f})"
            for one in (result["wall_ratio"], result["processor_ratio"])
        ]
        memory = f"{result['memory_ratio']:.2f}× ({result['peak_bytes'] / 2**20:.0f} MiB)"
        lines.append(f"| {name} | {result['seconds']['median']:.2f} | {' | '.join(spreads)} | {memory} |")
    return "\n".join(lines)
