"""Processes that die, hang and lose their lines at random, in a real federation over TLS: the run comes through."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

import diffusers
import pytest

from common.adapter.spec import Family
from common.errors import DarkroomError
from server.federation.run_status import run_status
from server.release.adapter_files import write_adapter
from server.run.checkpoint import load_checkpoint
from server.run.coordinator import CHECKPOINTS
from server.run.directory import read_metrics
from server.run.leadership import is_wanted, standing
from simulations.pilot.processes import free_ports
from tests.federation.chaos import Chaos, Federation, check_books, finished
from tests.federation.laboratory import Laboratory, LaboratoryPlan, laboratory_config
from tests.federation.proxy import Proxy
from tests.tiny_base import write_tiny_base

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("ash", "birch", "cedar", "dogwood", "elm")
ROUNDS = int(os.environ.get("DARKROOM_CHAOS_ROUNDS", "4"))
"""Each takes about a minute while faults go on."""
SEED = int(os.environ.get("DARKROOM_CHAOS_SEED", "1"))
WHATS = ("kill", "freeze") if ROUNDS > 8 else ("kill",)
"""A short storm leaves out what takes longest."""
PAUSE = (12.0, 36.0) if ROUNDS > 8 else (5.0, 12.0)
"""A long storm spreads its faults over the rounds."""
QUIET_ROUNDS = 2 if ROUNDS > 8 else ROUNDS
"""At the end, without faults; a short run has peace as soon as every fault was tried once."""
STORM_SECONDS = 500.0 + 40.0 * ROUNDS
QUIET_SECONDS = 300.0 + 40.0 * ROUNDS
STARTS = 5
"""Times that an operator starts a run again that has stopped with a reason."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(STORM_SECONDS + QUIET_SECONDS + 400)]


def test_a_run_comes_through(tmp_path: Path) -> None:
    ports = free_ports(len(NAMES))
    plan = LaboratoryPlan(
        directory=tmp_path,
        base=write_tiny_base(tmp_path / "base", Family.SD1),
        config=laboratory_config(rounds=ROUNDS, sites=len(NAMES), minimum=3, repeats=4 * ROUNDS),
        names=NAMES,
        addresses={name: f"127.0.0.1:{port}" for name, port in zip(NAMES, ports, strict=True)},
    )
    lab = Laboratory(plan)
    lab.make()
    public = int(lab.address.rpartition(":")[2])
    with contextlib.ExitStack() as stack:
        proxies = {name: stack.enter_context(Proxy(port, public)) for name, port in zip(NAMES, ports, strict=True)}
        federation = stack.enter_context(Federation(lab))
        lab.run.start()
        chaos = Chaos(federation, proxies, SEED, WHATS, pause=PAUSE)
        starts = lead_through(federation, chaos)
        print(f"faults: {chaos.done}; starts by hand: {starts}")  # noqa: T201 - what to read when it fails
        check_books(lab)

    said = standing(lab.files.directory)
    status = run_status(lab.files)
    print("\n".join(status.lines()))  # noqa: T201 - the same
    assert chaos.has_tried_everything or status.round == ROUNDS  # a quick machine may be done before
    if status.round < ROUNDS:
        assert said is not None, "neither finished nor paused with a reason"
        assert said.reason
        return
    assert finished(iter(read_metrics(lab.files.directory))) == list(range(1, ROUNDS + 1))
    if "damage serverapp" in chaos.done:
        assert "damaged: its content is not what was written; going on from round" in lab.files.log_file.read_text()
    assert load_checkpoint(lab.files.directory / CHECKPOINTS).round == ROUNDS
    assert write_adapter(lab.files, plan.base, tmp_path / "adapter") == ROUNDS
    stock = diffusers.StableDiffusionPipeline.from_pretrained(plan.base)
    stock.load_lora_weights(tmp_path / "adapter")
    assert stock.get_active_adapters()


def lead_through(federation: Federation, chaos: Chaos) -> int:
    """A storm until every fault was tried and few rounds are left, then quiet; how often it was started by hand."""
    run, starts = federation.lab.files.directory, 0

    def is_over() -> bool:
        nonlocal starts
        federation.poll()
        if (said := standing(run)) is not None and said.state == "stopped" and starts < STARTS:
            starts += 1
            with contextlib.suppress(DarkroomError):  # the SuperLink may be down just now
                federation.lab.run.start()
        time.sleep(0.3)
        return run_status(federation.lab.files).round == ROUNDS and not is_wanted(run)

    end = time.monotonic() + STORM_SECONDS
    while time.monotonic() < end and not is_over():
        left = ROUNDS - run_status(federation.lab.files).round
        if left <= QUIET_ROUNDS and chaos.has_tried_everything:
            break
        if left > QUIET_ROUNDS or not chaos.has_tried_everything:
            chaos.poll()
    chaos.end()
    end = time.monotonic() + QUIET_SECONDS
    while time.monotonic() < end and not is_over():
        pass
    return starts
