"""A federation of stubs for :mod:`simulations.bench.federation`: everything real but the institutions' pictures."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import msgspec

from client.connection.supernode import SuperNode, request_to_join
from common.adapter.spec import AdapterSpec, Family, TensorSpec
from common.config import RunConfig
from common.crypto.identity_file import read_identity_file
from common.durable_files import write_atomically
from common.host.flower_commands import POLL_INTERVAL
from common.host.supervision import Supervisor
from server.federation.run_status import run_status
from simulations.bench.fleet import Fleet, register_nodes
from simulations.bench.stub_stewards import StubSteward, serve_stub
from simulations.pilot.local_federation import LocalFederation

if TYPE_CHECKING:
    from pathlib import Path

    from common.host.supervision import Command
    from server.federation.roster import Roster
    from server.flower.superlink import Launch

_BASE_DIGEST: Final = "sha256:" + "0" * 64
_CROWD: Final = 10
"""Sites beyond which their executors ask for work as seldom as Flower's own default has it: they share one machine."""
_CROWDS_POLL_SECONDS: Final = 1.0
_ASIDE: Final = ("sh", "-c", 'echo 10 > /proc/self/autogroup; exec nice -n 10 "$@"', "sh")
"""Before a site's command in a crowd: in a federation, sites take no time from the coordinator's processors. The first
half is for kernels that share time among sessions, where niceness counts within one only (``sched(7)``)."""
_UP_SECONDS: Final = 60.0
"""And as much again for every ten sites."""


class StubFederation(LocalFederation):
    """A federation of stubs, all of whom every round needs."""

    def __init__(self, root: Path, config: RunConfig, names: tuple[str, ...], *, dimension: int) -> None:
        """Nothing is made yet; the adapter has that many coordinates."""
        super().__init__(root, names, title="Benchmark", run=config.name)
        self.config = config
        self.dimension = dimension
        self.stewards: dict[str, StubSteward] = {}

    def make(self) -> None:
        """Keys, roster, bundle and the signed manifest."""
        self.create()
        self.approve(
            request_to_join(site.layout, name=site.name, contact="bench@site.example")[0]
            for site in self.sites.values()
        )
        spec = AdapterSpec(
            config=self.config.adapter,
            base_digest=_BASE_DIGEST,
            family=Family.SD1,
            tensors=(TensorSpec("mid.to_q.lora_B", (self.dimension, 1)),),
        )
        self.files.draft(self.config, spec)
        self.files.sign()

    def serve(self, stack: contextlib.ExitStack) -> None:
        """Open every stub's socket."""
        for name, site in self.sites.items():
            self.stewards[name] = StubSteward(read_identity_file(site.layout.identity_file))
            serving = serve_stub(self.stewards[name], site.root)
            stack.callback(serving.stop, grace=0.0)

    def supernodes(self) -> list[Command]:
        """One SuperNode a site; they share one installed bundle, which takes seconds to install."""
        first = SuperNode(next(iter(self.sites.values())).layout)
        commands = []
        for name, stub in self.sites.items():
            site, layout, sent = SuperNode(stub.layout), stub.layout, self.sent(name)
            join = site.open_join_file(sent.join_file, fingerprint=sent.fingerprint)
            if site == first:
                site.install(join, sent.bundle)
            layout.authority_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            layout.authority_file.write_text(join.authority, encoding="utf-8")
            node_config = f'steward="unix://{layout.run / "steward.sock"}" token="{layout.run / "token"}"'
            command = site.command(join, port=stub.port, node_config=node_config)
            environment = {**first.environment(), "OMP_NUM_THREADS": "1"}
            if len(self.sites) > _CROWD:
                environment[POLL_INTERVAL] = str(_CROWDS_POLL_SECONDS)
            arguments = (*_ASIDE, *command.arguments) if len(self.sites) > _CROWD else command.arguments
            commands.append(replace(command, name=f"{name}-supernode", arguments=arguments, environment=environment))
        return commands

    def fleet(self) -> Fleet:
        """Every SuperNode in this process."""
        return Fleet(
            address=self.address,
            authority=self.federation.file("ca.crt"),
            keys={name: site.layout.node_key_file for name, site in self.sites.items()},
            stewards=self.stewards,
        )

    def _register(self, nodes: Path, roster: Roster) -> None:
        """All at once, before ``up`` does it one by one."""
        self.wait("the SuperLink", self.launch.is_up, _UP_SECONDS)
        keys = {site.name: nodes / f"{site.name}.pub" for site in roster.approved()}
        for site in roster.approved():
            write_atomically(keys[site.name], site.node_key.encode() + b"\n")
        numbers = register_nodes(f"127.0.0.1:{self.superlink_port}", self.federation.file("ca.crt"), keys)
        for name, number in numbers.items():
            write_atomically(nodes / f"{name}.id", number.encode())

    def lead(self, seconds: float, *, light: bool) -> None:
        """Start everything, run to the end, stop everything.

        Raises:
            DarkroomError: It took longer.

        """
        with contextlib.ExitStack() as stack:
            self.serve(stack)
            nodes, roster = self.federation.root / "nodes", self.federation.roster()
            self.federation.roster_file.unlink()  # ``up`` leaves the nodes alone until it can read one
            stack.enter_context(Supervisor([self.up()]))
            self._register(nodes, roster)
            self.federation.write_roster(roster)
            seconds_up = _UP_SECONDS * (1 + len(self.sites) / 10)
            self.wait("registered nodes", self.is_registered, seconds_up)
            stack.enter_context(self.fleet() if light else Supervisor(self.supernodes()))
            self.wait("nodes online", lambda: _online(self.launch) == len(self.sites), seconds_up)
            self.run.start()
            self.wait("the run's end", lambda: run_status(self.files).round == self.config.rounds, seconds)


def _online(launch: Launch) -> int:
    time.sleep(3)  # Flower's command is a process of its own
    return sum(node.status == "online" for node in launch.nodes())


def stub_config(sites: int, rounds: int) -> RunConfig:
    """A private run with masked sums in which every site is needed."""
    return msgspec.convert(
        {
            "name": "bench",
            "rounds": rounds,
            "privacy": {
                "epsilon": 8.0,
                "delta": 1e-5,
                "clip": 1.0,
                "population": 200 * sites,
                "largest_site": 200,
                "sampling_rate": 0.1,
                "repeats": rounds,
            },
            "base": {"path": "unused", "digest": _BASE_DIGEST},
            "adapter": {"rank": 1, "train": "B"},
            "server": {"minimum_institutions": sites, "round_timeout_s": 60.0 + 10.0 * sites},
            "evaluation": {"every": 1000},
        },
        type=RunConfig,
    )
