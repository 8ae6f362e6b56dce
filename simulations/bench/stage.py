"""A federation of stubs for :mod:`simulations.bench.federation`: everything real but the institutions' pictures."""

from __future__ import annotations

import contextlib
import datetime as dt
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import msgspec

from client.connection.supernode import SuperNode, request_to_join
from client.site.layout import SiteLayout
from common.adapter.spec import AdapterSpec, Family, TensorSpec
from common.config import RunConfig
from common.crypto.identity_file import read_identity_file
from common.durable_files import write_atomically
from common.errors import DarkroomError
from common.host.flower_commands import POLL_INTERVAL, program
from common.host.supervision import Supervisor
from common.provisioning import coordinator_fingerprint
from server.federation.directory import FederationConfig, FederationDirectory
from server.federation.run_files import RunFiles
from server.federation.run_status import run_status
from server.flower.runs import FlowerRun, KeptBundle
from server.flower.superlink import Launch
from simulations.bench.fleet import Fleet, register_nodes
from simulations.bench.stub_stewards import StubSteward, serve_stub
from simulations.pilot.processes import ROOT, call, free_ports, server_command

if TYPE_CHECKING:
    from pathlib import Path

    from common.host.supervision import Command
    from server.federation.roster import Roster

_BASE_DIGEST: Final = "sha256:" + "0" * 64
_CROWD: Final = 10
"""Sites beyond which their executors ask for work as seldom as Flower's own default has it: they share one machine."""
_CROWDS_POLL_SECONDS: Final = 1.0
_ASIDE: Final = ("sh", "-c", 'echo 10 > /proc/self/autogroup; exec nice -n 10 "$@"', "sh")
"""Before a site's command in a crowd: in a federation, sites take no time from the coordinator's processors. The first
half is for kernels that share time among sessions, where niceness counts within one only (``sched(7)``)."""
_UP_SECONDS: Final = 60.0
"""And as much again for every ten sites."""


@dataclass
class Stage:
    """A federation of stubs."""

    root: Path
    config: RunConfig
    names: tuple[str, ...]
    dimension: int
    stewards: dict[str, StubSteward] = field(default_factory=dict)

    def __post_init__(self) -> None:
        public, superlink, *nodes = free_ports(2 + len(self.names))
        self.federation = FederationDirectory(self.root / "coordinator")
        self.files = RunFiles(self.federation, self.config.name)
        self._ports = dict(zip(self.names, nodes, strict=True))
        self._address, self._superlink = f"127.0.0.1:{public}", superlink

    @property
    def launch(self) -> Launch:
        """The coordinator's processes."""
        return Launch(self.federation, self.federation.config())

    def make(self) -> None:
        """Keys, roster, bundle and the signed manifest of an adapter with that many coordinates."""
        config = FederationConfig(
            name="Benchmark", address=self._address, listen="127.0.0.1", superlink_port=self._superlink
        )
        self.federation.create(config, now=dt.datetime.now(dt.UTC))
        requests = [
            request_to_join(SiteLayout(self.root / name), name=name, contact="bench@site.example")[0]
            for name in self.names
        ]
        self.federation.approve(requests, bundle=KeptBundle(self.federation).keep(self._bundle()))
        spec = AdapterSpec(
            config=self.config.adapter,
            base_digest=_BASE_DIGEST,
            family=Family.SD1,
            tensors=(TensorSpec("mid.to_q.lora_B", (self.dimension, 1)),),
        )
        self.files.draft(self.config, spec)
        self.files.sign()

    def _bundle(self) -> bytes:
        built = self.root / "bundle"
        built.mkdir()
        call(self.root / "commands.log", program("flwr"), "build", "--app", str(ROOT), cwd=built)
        (bundle,) = built.glob("*.fab")
        return bundle.read_bytes()

    def serve(self, stack: contextlib.ExitStack) -> None:
        """Open every stub's socket."""
        for name in self.names:
            self.stewards[name] = StubSteward(read_identity_file(self.root / name / "identity.key"))
            serving = serve_stub(self.stewards[name], self.root / name)
            stack.callback(serving.stop, grace=0.0)

    def supernodes(self) -> list[Command]:
        """One SuperNode a site; they share one installed bundle, which takes seconds to install."""
        fingerprint = coordinator_fingerprint(self.federation.identity().public)
        first = SuperNode(SiteLayout(self.root / self.names[0]))
        commands = []
        for name in self.names:
            layout = SiteLayout(self.root / name)
            site = SuperNode(layout)
            join = site.open_join_file(self.federation.root / "join" / f"{name}.join", fingerprint=fingerprint)
            if name == self.names[0]:
                site.install(join, KeptBundle(self.federation).file)
            layout.authority_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            layout.authority_file.write_text(join.authority, encoding="utf-8")
            run = self.root / name / "run"
            node_config = f'steward="unix://{run / "steward.sock"}" token="{run / "token"}"'
            command = site.command(join, port=self._ports[name], node_config=node_config)
            environment = {**first.environment(), "OMP_NUM_THREADS": "1"}
            if len(self.names) > _CROWD:
                environment[POLL_INTERVAL] = str(_CROWDS_POLL_SECONDS)
            arguments = (*_ASIDE, *command.arguments) if len(self.names) > _CROWD else command.arguments
            commands.append(replace(command, name=f"{name}-supernode", arguments=arguments, environment=environment))
        return commands

    def fleet(self) -> Fleet:
        """Every SuperNode in this process."""
        return Fleet(
            address=self._address,
            authority=self.federation.file("ca.crt"),
            keys={name: SiteLayout(self.root / name).node_key_file for name in self.names},
            stewards=self.stewards,
        )

    def _register(self, nodes: Path, roster: Roster) -> None:
        """All at once, before ``up`` does it one by one."""
        _wait(self.launch.is_up, _UP_SECONDS, "the SuperLink")
        keys = {site.name: nodes / f"{site.name}.pub" for site in roster.approved()}
        for site in roster.approved():
            write_atomically(keys[site.name], site.node_key.encode() + b"\n")
        numbers = register_nodes(f"127.0.0.1:{self._superlink}", self.federation.file("ca.crt"), keys)
        for name, number in numbers.items():
            write_atomically(nodes / f"{name}.id", number.encode())

    def lead(self, seconds: float, *, light: bool) -> None:
        """Start everything, run to the end, stop everything.

        Raises:
            DarkroomError: It took longer.

        """
        up = server_command("up", self.federation.root, "up", str(self.federation.root))
        with contextlib.ExitStack() as stack:
            self.serve(stack)
            nodes, roster = self.federation.root / "nodes", self.federation.roster()
            self.federation.roster_file.unlink()  # ``up`` leaves the nodes alone until it can read one
            stack.enter_context(Supervisor([up]))
            self._register(nodes, roster)
            self.federation.write_roster(roster)
            patience = _UP_SECONDS * (1 + len(self.names) / 10)
            _wait(lambda: len(list(nodes.glob("*.id"))) == len(self.names), patience, "registered nodes")
            stack.enter_context(self.fleet() if light else Supervisor(self.supernodes()))
            _wait(lambda: _online(self.launch) == len(self.names), patience, "nodes online")
            FlowerRun(self.launch, self.files).start()
            _wait(lambda: run_status(self.files).round == self.config.rounds, seconds, "the run's end")


def _online(launch: Launch) -> int:
    time.sleep(3)  # Flower's command is a process of its own
    return sum(node.status == "online" for node in launch.nodes())


def _wait(condition: Any, seconds: float, what: str) -> None:  # noqa: ANN401 - a question
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise DarkroomError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.2)


def stage_config(sites: int, rounds: int) -> RunConfig:
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
