"""A steward's process killed while it computes a round: what it was charged for stays, and the run goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.governance.ledger_store import connection, read_rows
from client.site.open_site import link_to_steward
from common.audit_log import read_entries, verify_log
from common.secagg.messages import Step
from common.wire.messages import ContributeMasked, decode_request
from tests.simulations.vault_sites import NAMES, VaultSites, make_vault_sites

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).parents[2]
SITE = NAMES[0]


def start(sites: VaultSites) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-c", "from client.cli import main; main()", "steward", "--config", "site.toml"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (sites.root / SITE / "steward.log").open("ab") as log:
        process = subprocess.Popen(words, cwd=sites.root / SITE, env=environment, stderr=log, stdout=log)
    sites.wait_for(SITE)
    return process


def rows_of(sites: VaultSites) -> list[Any]:
    with connection(sites.settings(SITE).ledger, busy_seconds=5) as store:
        return read_rows(store)


def test_a_steward_killed_within_a_round_comes_back_and_the_run_goes_on(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    sites = make_vault_sites(tmp_path_factory.mktemp("v"), rounds=3, repeats=64)
    process = [start(sites)]
    killed: list[Step] = []

    def kill_in_second_round(request: bytes) -> bytes | None:
        if not isinstance(decode_request(request), ContributeMasked) or killed or len(rows_of(sites)) != 1:
            return None
        link, replies = link_to_steward(sites.settings(SITE)), list[bytes]()
        caller = threading.Thread(target=lambda: replies.append(link.answer(request)))
        caller.start()
        while len(rows_of(sites)) < 2:  # charged: now it computes
            time.sleep(0.002)
        process[0].send_signal(signal.SIGKILL)
        process[0].wait()
        caller.join(30)
        row = rows_of(sites)[-1]
        killed.append(Step(row.round, row.attempt))
        process[0] = start(sites)
        return replies[0]

    sites.hooks[SITE] = kill_in_second_round
    try:
        with sites.serving(*NAMES[1:]):
            sites.lead()
        process[0].send_signal(signal.SIGTERM)
        assert process[0].wait(60) == 0
    finally:
        process[0].kill()
        process[0].wait()
    check_books(sites, killed)


def check_books(sites: VaultSites, killed: list[Step]) -> None:
    (step,) = killed
    entries = list(read_entries(sites.root / SITE / "audit.log"))
    steps = {
        kind: [(each.details["round"], each.details["attempt"]) for each in entries if each.kind == kind]
        for kind in ("charged", "contributed")
    }
    lost = (step.round + 1, step.attempt)
    assert lost not in steps["contributed"]
    charged = [(row.round + 1, row.attempt) for row in rows_of(sites)]
    assert charged == [*steps["contributed"][:1], lost, *steps["contributed"][1:]]
    assert {round_number for round_number, _ in steps["contributed"]} == {1, 2, 3}
    assert set(charged) - set(steps["charged"]) <= {lost}  # the ledger is written first
    verify_log(sites.root / SITE / "audit.log", sites.open(SITE).identity.public)
    assert [each.kind for each in entries].count("started") == 2
