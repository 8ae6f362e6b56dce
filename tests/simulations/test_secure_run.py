"""Whole private runs with masked sums: the same sums as without masks, faults, restarts, and what the books say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
import torch
from scipy import stats

from client.app import make_client_app
from client.governance.ledger import Ledger, PldAccountant
from client.governance.ledger_store import connection, read_rows
from client.training.trainer import build_trainer
from common.audit_log import verify_log
from common.crypto.identity_file import read_identity_file
from common.crypto.randomness import REPEATABLE_WORDS
from common.errors import ConfigError, LedgerCorrupt, ManifestError, RoundFailed
from common.secagg.messages import MaskedContribution, RoundRequest, decode
from common.wire.messages import ContributeMasked, MaskedAnswer, decode_request
from common.wire.replies import decode_reply
from server.run.directory import RunDirectory, read_metrics
from simulations.engines.inprocess import Fault, run_inprocess
from simulations.experiments.run import Federation, RunPlan, open_scenario_base, run_scenario
from simulations.scenario.prepare import prepare_store
from simulations.scenario.scenario import load_scenario
from tests.simulations.worlds import MASKED, THREE, write_world

if TYPE_CHECKING:
    from collections.abc import Callable

    from client.training.trainer import Trainer
    from common.config import RunConfig
    from common.wire.messages import StewardPort
    from server.rounds.optimizer import Vector
    from simulations.scenario.scenario import Scenario
    from simulations.scenario.store import InstitutionStore

ROOT = Path(__file__).parents[2]
PRIVATE = f'{MASKED}repeatable = "{REPEATABLE_WORDS}"'
SERVER = f"{THREE}subtract_noise = true\naverage = 0.9"


@dataclass
class World:
    scenario: Scenario
    config: RunConfig
    trainer: Trainer
    store: InstitutionStore
    root: Path

    def federation(self, name: str, **changes: Any) -> Federation:
        config = msgspec.structs.replace(self.config, **changes)
        return Federation(config, self.trainer, self.store, self.root / name)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("secure")
    scenario = load_scenario(str(write_world(root, rounds=3, privacy=PRIVATE, more=SERVER)))
    base, config = open_scenario_base(scenario)
    store = prepare_store(scenario, base, root / "cache", lambda _: None)
    return World(scenario, config, build_trainer(base, config), store, root)


@dataclass
class Tapped:
    """Counts what each institution sent, and keeps the masked vectors; stands where the network is."""

    federation: Federation
    sent: Counter[int] = field(default_factory=Counter)
    vectors: list[bytes] = field(default_factory=list)
    hook: Callable[[int, bytes], None] = lambda _index, _request: None

    def connect(self, context: Any) -> StewardPort:
        index = int(context.node_config["partition-id"])
        steward = self.federation.connect(context)
        tapped = self

        class Wire:
            def answer(self, request: bytes) -> bytes:
                tapped.hook(index, request)
                reply = steward.answer(request)
                decoded = decode_reply(reply)
                if isinstance(decoded, MaskedAnswer):
                    tapped.sent[index] += 1
                    tapped.vectors.append(decode(decoded.message, MaskedContribution, limit=1 << 22).vector)
                return reply

        return Wire()


def lead(tapped: Tapped, *, resume: bool = False, faults: Any = None) -> Vector:
    federation = tapped.federation
    observers = (RunDirectory(federation.directory),)
    return run_inprocess(
        lambda transport: federation.coordinator(transport, observers).run(resume=resume),
        make_client_app(tapped.connect),
        len(federation.store.institutions),
        faults=faults,
    )


def charged(federation: Federation, index: int) -> int:
    path = federation.directory / "institutions" / f"institution-{index + 1:04d}" / "ledger.sqlite"
    Ledger.open(path, PldAccountant())
    with connection(path, busy_seconds=5) as store:
        return len(read_rows(store))


def check_books(tapped: Tapped) -> None:
    """Every masked vector that left was charged; all logs hold; no vector was sent twice."""
    assert len(set(tapped.vectors)) == len(tapped.vectors)
    for index in range(3):
        assert charged(tapped.federation, index) >= tapped.sent[index]
        folder = tapped.federation.directory / "institutions" / f"institution-{index + 1:04d}"
        verify_log(folder / "audit.log", read_identity_file(folder / "identity").public)
    folder = tapped.federation.directory / "coordinator"
    verify_log(folder / "audit.log", read_identity_file(folder / "identity").public)


def rows(federation: Federation) -> list[dict[str, Any]]:
    return [row for row in read_metrics(federation.directory) if row["kind"] == "round"]


def test_masked_and_clear_runs_of_equal_seeds_have_the_same_bits(world: World) -> None:
    masked, clear = world.federation("masked"), world.federation("clear", aggregation="clear")
    first, second = lead(tapped := Tapped(masked)), lead(Tapped(clear))
    assert (first == second).all()
    for key in ("step_norm", "decoded_mean_norm", "mean_norm_limit"):
        assert [row[key] for row in rows(masked)] == [row[key] for row in rows(clear)]
        assert rows(masked)[0][key] > 0
    check_books(tapped)
    assert dict(tapped.sent) == {0: 3, 1: 3, 2: 3}


def test_each_side_holds_heads_of_the_other(world: World) -> None:
    federation = world.federation("heads")
    lead(Tapped(federation))
    folder = federation.directory
    coordinator = (folder / "coordinator" / "audit.log").read_bytes().splitlines()
    told = [msgspec.json.decode(line)["details"].get("heads", "") for line in coordinator]
    held = {entry.split(":")[0]: bytes.fromhex(entry.split(":")[1]) for one in told if one for entry in one.split(",")}
    for index in range(3):
        site = folder / "institutions" / f"institution-{index + 1:04d}"
        key = read_identity_file(site / "identity").public
        verify_log(site / "audit.log", key, witnessed=[held[str(index)]])
        lines = [msgspec.json.decode(line)["details"] for line in (site / "audit.log").read_bytes().splitlines()]
        heads = [bytes.fromhex(one["coordinator_head"]) for one in lines if "coordinator_head" in one]
        assert len(heads) == 3
        owner = read_identity_file(folder / "coordinator" / "identity").public
        verify_log(folder / "coordinator" / "audit.log", owner, witnessed=heads)


@pytest.mark.parametrize("fault", list(Fault))
@pytest.mark.parametrize("index", [0, 1, 2, 3, 4])
def test_one_fault_anywhere_costs_an_attempt_at_most(world: World, fault: Fault, index: int) -> None:
    """Messages 0 to 2 open the session; 3 and 4 are rounds."""
    federation = world.federation(f"{fault.value}-{index}")
    tapped = Tapped(federation)
    opening_fails = index < 3 and fault is not Fault.TWICE
    try:
        lead(tapped, faults=lambda institution, at: fault if (institution, at) == (1, index) else None)
    except RoundFailed:
        assert opening_fails  # below the minimum before the first round: the run pauses, and is resumed
        lead(tapped, resume=True)
    assert [row["round"] for row in rows(federation)] == [1, 2, 3]
    check_books(tapped)
    assert max(tapped.sent.values()) <= 4


def test_a_steward_that_starts_anew_is_taken_in_again(world: World) -> None:
    federation = world.federation("restart")
    tapped = Tapped(federation)
    seen: Counter[int] = Counter()

    def crash(index: int, request: bytes) -> None:
        decoded = decode_request(request)
        if index == 2 and isinstance(decoded, ContributeMasked):
            seen[index] += 1
            if seen[index] == 2:
                federation._stewards.clear()  # every session key of every institution is gone

    tapped.hook = crash
    lead(tapped)
    assert [row["round"] for row in rows(federation)] == [1, 2, 3]
    assert max(row["attempt"] for row in rows(federation)) == 1
    check_books(tapped)


def test_a_stopped_run_goes_on_in_a_fresh_session(world: World) -> None:
    federation = world.federation("stopped")
    seen: Counter[str] = Counter()

    class Stop(BaseException):
        pass

    def stop(_index: int, request: bytes) -> None:
        decoded = decode_request(request)
        if isinstance(decoded, ContributeMasked) and decode(decoded.message, RoundRequest, limit=1 << 22).round == 1:
            seen["round 2"] += 1
            if seen["round 2"] == 2:
                raise Stop

    tapped = Tapped(federation, hook=stop)
    with pytest.raises(Stop):
        lead(tapped)
    following = world.federation("stopped")
    later = Tapped(following, sent=tapped.sent, vectors=tapped.vectors)
    lead(later, resume=True)
    assert [(row["round"], row["attempt"]) for row in rows(following)] == [(1, 0), (2, 1), (3, 0)]
    assert json.loads((following.directory / "session.json").read_text()) == 1
    check_books(later)


def test_an_institution_that_is_gone_pauses_the_run_with_a_reason(world: World) -> None:
    tapped = Tapped(world.federation("gone"))
    with pytest.raises(RoundFailed, match=r"2 institutions take part, 3 are needed.*cannot be reached"):
        lead(tapped, faults=lambda institution, _at: Fault.LOST if institution == 0 else None)
    assert not tapped.vectors


def test_a_manifest_of_another_run_is_refused_at_the_start(world: World) -> None:
    lead(Tapped(world.federation("one")))
    changed = world.federation("one", rounds=4)
    with pytest.raises(ManifestError, match=r"\(config\.rounds\) changes from 3 to 4"):
        lead(Tapped(changed), resume=True)


def test_a_lost_ledger_is_not_replaced_by_an_empty_one(world: World) -> None:
    federation = world.federation("lost")
    federation.secure_run()
    federation.steward(0)
    (federation.directory / "institutions" / "institution-0001" / "ledger.sqlite").unlink()
    later = world.federation("lost")
    with pytest.raises(LedgerCorrupt, match="missing"):
        later.steward(0)
    later.steward(1)


def test_ray_keeps_no_session_keys_and_says_so(world: World, tmp_path: Path) -> None:
    plan = RunPlan(
        scenario=world.scenario,
        directory=tmp_path / "ray",
        cache=world.root / "cache",
        engine="ray",
        resume=False,
        threads=1,
    )
    with pytest.raises(ConfigError, match=r'engine inprocess, or aggregation = "clear"'):
        run_scenario(plan, print)


def test_a_vector_of_the_wire_is_uniform_and_the_sum_of_a_round_is_not(world: World) -> None:
    tapped = Tapped(world.federation("uniform"))
    lead(tapped)
    words = [np.frombuffer(vector, dtype="<u4") for vector in tapped.vectors]
    assert min(uniformity(one) for one in words) > 1e-4
    for start in range(0, len(words), 3):
        total = np.sum(words[start : start + 3], axis=0, dtype=np.uint32)
        assert uniformity(total) < 1e-9  # the same noised vectors, their masks gone


def uniformity(words: Any) -> float:
    """p-value that the top four bits are uniform."""
    return float(stats.chisquare(np.bincount(words >> 28, minlength=16)).pvalue)


@pytest.mark.slow
def test_a_killed_run_ends_like_any_other_and_its_ledgers_are_right(tmp_path: Path) -> None:
    scenario = write_world(tmp_path, rounds=12, privacy=MASKED, more=SERVER)
    command = [sys.executable, "-m", "simulations.cli", "run", str(scenario), "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    directory = tmp_path / "runs" / "world"
    running = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    while len([row for row in read_metrics(directory) if row["kind"] == "round"]) < 3:
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    done = subprocess.run(
        [*command, "--resume"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [row["round"] for row in read_metrics(directory) if row["kind"] == "round"] == list(range(1, 13))
    sent = json.loads((directory / "attempts.json").read_text())
    for index in range(3):
        path = directory / "institutions" / f"institution-{index + 1:04d}" / "ledger.sqlite"
        with connection(path, busy_seconds=5) as store:
            assert 12 <= len(read_rows(store)) <= sum(sent.values())
