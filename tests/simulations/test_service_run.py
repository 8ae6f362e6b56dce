"""A whole masked run with stewards behind Unix sockets: the same bits as in one process, no captions in the logs."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

import torch

from client.app import app as deployed_app
from client.app import make_client_app
from client.training.trainer import build_trainer
from common.crypto.randomness import REPEATABLE_WORDS
from simulations.engines.inprocess import run_inprocess
from simulations.experiments.run import Federation, open_scenario_base
from simulations.scenario.prepare import prepare_store
from simulations.scenario.scenario import load_scenario
from tests.client.sockets import Counting, Open, opened
from tests.client.test_app import ask
from tests.simulations.worlds import COLOURS, MASKED, THREE, write_world

if TYPE_CHECKING:
    from pathlib import Path

    import pytest
    from flwr.app import Context

    from common.wire.messages import StewardPort
    from server.rounds.optimizer import Vector

PRIVATE = f'{MASKED}repeatable = "{REPEATABLE_WORDS}"'


def lead(federation: Federation, connect: Any) -> Vector:
    return run_inprocess(
        lambda transport: federation.coordinator(transport, ()).run(resume=False), make_client_app(connect), 3
    )


def test_the_same_adapter_through_the_service_as_in_process(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.set_num_threads(1)
    scenario = load_scenario(str(write_world(tmp_path, rounds=3, privacy=PRIVATE, more=THREE)))
    base, config = open_scenario_base(scenario)
    store = prepare_store(scenario, base, tmp_path / "cache", lambda _: None)
    trainer = build_trainer(base, config)
    direct = Federation(config, trainer, store, tmp_path / "direct")
    first = lead(direct, direct.connect)

    served = Federation(config, trainer, store, tmp_path / "served")
    doors: dict[int, Open] = {}
    with contextlib.ExitStack() as stack, caplog.at_level(logging.DEBUG):

        def connect(context: Context) -> StewardPort:
            index = int(context.node_config["partition-id"])
            if index not in doors:
                folder = tmp_path / str(index)
                folder.mkdir()
                doors[index] = stack.enter_context(opened(folder, served.connect(context)))
            return doors[index].link()

        second = lead(served, connect)
    assert len(doors) == 3
    assert (first == second).all()
    lines = [record.getMessage() for record in caplog.records if record.name == "client.steward.service"]
    rounds = [line for line in lines if "kind=contribute_masked" in line]
    assert len(rounds) == 9
    assert all("outcome=answered" in line and "round=" in line and "round=-" not in line for line in rounds)
    assert not [colour for colour in COLOURS if f"{colour} noise" in caplog.text or f"{colour}/" in caplog.text]
    # not the manifest beside them, whose sample prompts are public and happen to be captions
    for path in (tmp_path / "served" / "institutions").rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert not [colour for colour in COLOURS if f"{colour} noise".encode() in content], path


def test_the_deployed_shim_finds_the_socket_by_the_node_configuration(tmp_path: Path) -> None:
    with opened(tmp_path, Counting(lambda request: b"reply to " + request)) as door:
        token = tmp_path / "token"
        token.write_text("ab" * 32 + "\n")
        node: dict[str, Any] = {"steward": door.place.target, "token": str(token)}
        assert ask(deployed_app, node=node) == b"reply to request"
