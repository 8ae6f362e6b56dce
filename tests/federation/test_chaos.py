"""Processes that die, hang and lose their lines at random, in a real federation over TLS: the run comes through."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

import diffusers
import pytest

from common.adapter.spec import Family
from server.adapter_files import write_adapter
from server.checkpoint import checkpoint_files, load_checkpoint
from server.coordinator import CHECKPOINTS
from server.leadership import standing
from server.run_directory import read_metrics
from server.run_status import run_status
from simulations.laboratory import Laboratory, LaboratoryPlan, laboratory_config
from simulations.processes import free_ports
from simulations.tiny import write_tiny_base
from tests.federation.chaos import Chaos, Federation, check_books, finished
from tests.federation.cut_proxy import CutProxy

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("ash", "birch", "cedar", "dogwood", "elm")
ROUNDS = int(os.environ.get("DARKROOM_CHAOS_ROUNDS", "30"))
SEED = int(os.environ.get("DARKROOM_CHAOS_SEED", "1"))
SECONDS = 60.0 * ROUNDS
STARTS = 5
"""Times that an operator starts a run again that has stopped with a reason."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 600)]


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
        proxies = {name: stack.enter_context(CutProxy(port, public)) for name, port in zip(NAMES, ports, strict=True)}
        federation = stack.enter_context(Federation(lab))
        lab.run.start()
        chaos = Chaos(federation, proxies, SEED)
        starts = lead_through(federation, chaos)
        print(f"faults: {chaos.done}; starts by hand: {starts}")  # noqa: T201 - what to read when it fails
        check_books(lab)

    said = standing(lab.files.directory)
    status = run_status(lab.files)
    print("\n".join(status.lines()))  # noqa: T201 - the same
    assert chaos.has_tried_everything
    if status.round < ROUNDS:
        assert said is not None, "neither finished nor paused with a reason"
        assert said.reason
        return
    assert finished(iter(read_metrics(lab.files.directory))) == list(range(1, ROUNDS + 1))
    for path in checkpoint_files(lab.files.directory / CHECKPOINTS):
        assert path.stat().st_size > 0
    assert load_checkpoint(lab.files.directory / CHECKPOINTS).round == ROUNDS
    assert write_adapter(lab.files, plan.base, tmp_path / "adapter") == ROUNDS
    stock = diffusers.StableDiffusionPipeline.from_pretrained(plan.base)
    stock.load_lora_weights(tmp_path / "adapter")
    assert stock.get_active_adapters()


def lead_through(federation: Federation, chaos: Chaos) -> int:
    """Until the run has ended, or time has; how often somebody had to start it again."""
    deadline, starts, lab = time.monotonic() + SECONDS, 0, federation.lab
    calm = False
    while time.monotonic() < deadline:
        federation.poll()
        status = run_status(lab.files)
        if status.round == ROUNDS and standing(lab.files.directory) is None:
            break
        if status.round >= ROUNDS - 1 and chaos.has_tried_everything and not calm:
            calm = True
            chaos.end()
        if not calm:
            chaos.poll()
        if (said := status.standing) is not None and said.state == "stopped" and starts < STARTS:
            starts += 1
            with contextlib.suppress(Exception):  # the SuperLink may be down just now
                lab.run.start()
        time.sleep(0.3)
    chaos.end()
    wait_until = time.monotonic() + 15
    while time.monotonic() < wait_until and (lab.files.directory / "wanted").exists():
        time.sleep(0.3)
    return starts
