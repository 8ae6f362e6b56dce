"""A real SuperLink with many SuperNodes whose stewards are stubs: what a round costs beside the training.

::

    python -m simulations.bench_federation --sites 3 --rounds 8 --dimension 800000 --output federation.json

TLS, the public listener, node keys, signed manifests, sessions and masks are the real ones; every vector is constant.
A round's time is split by when things were seen to happen: *dispatch* until Flower has started the shim's process,
*process start* until the steward hears of it, *steward* until its masked vector is ready, and *return* until the
coordinator has summed it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import os
import platform
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import msgspec

from client.joining import SuperNode, request_to_join
from client.site_layout import SiteLayout
from common.adapter.spec import AdapterSpec, Family, TensorSpec
from common.audit_log import Entry
from common.config import RunConfig
from common.errors import DarkroomError
from common.flower_commands import program
from common.identity_file import read_identity_file
from common.provisioning import coordinator_fingerprint
from common.supervision import Supervisor
from server.federation import FederationDirectory
from server.federation_config import FederationConfig
from server.flower_runs import FlowerRun, KeptBundle
from server.launch import Launch
from server.run_directory import read_metrics
from server.run_files import RunFiles
from server.run_status import run_status
from simulations.process_watch import ProcessWatch
from simulations.processes import ROOT, call, free_ports, server_command
from simulations.stub_stewards import StubSteward, serve_stub

if TYPE_CHECKING:
    from collections.abc import Sequence

    from common.supervision import Command

_BASE_DIGEST: Final = "sha256:" + "0" * 64
_UP_SECONDS: Final = 60.0
"""And as much again for every ten sites."""


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """Medians over the rounds, in seconds; of the slowest site where sites differ."""

    round: float
    dispatch: float
    process_start: float
    steward: float
    give_back: float
    coordinator: float
    """Of the round: everything but waiting for institutions."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All of it."""

    machine: str
    cores: int
    sites: int
    rounds: int
    dimension: int
    upload_bytes: int
    seconds: tuple[float, ...]
    """Of each round."""
    split: Split
    peak_mib: dict[str, float]
    """Greatest resident set of one process, by program."""
    site_mib: float
    """Of one site between two rounds: its SuperNode and that one's executor, shared pages split among processes."""
    server_mib: float
    """SuperLink and server app at their peaks, together."""


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
            site = SuperNode(SiteLayout(self.root / name))
            join = site.open_join_file(self.federation.root / "join" / f"{name}.join", fingerprint=fingerprint)
            if name == self.names[0]:
                site.install(join, KeptBundle(self.federation).file)
            site.site.authority_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            site.site.authority_file.write_text(join.authority)
            run = self.root / name / "run"
            node_config = f'steward="unix://{run / "steward.sock"}" token="{run / "token"}"'
            command = site.command(join, port=self._ports[name], node_config=node_config)
            environment = {**first.environment(), "OMP_NUM_THREADS": "1"}
            commands.append(replace(command, name=f"{name}-supernode", environment=environment))
        return commands

    def lead(self, seconds: float) -> None:
        """Start everything, run to the end, stop everything.

        Raises:
            DarkroomError: It took longer.

        """
        up = server_command("up", self.federation.root, "up", str(self.federation.root))
        with contextlib.ExitStack() as stack:
            self.serve(stack)
            nodes = self.federation.root / "nodes"
            stack.enter_context(Supervisor([up]))
            patience = _UP_SECONDS * (1 + len(self.names) / 10)
            _wait(lambda: len(list(nodes.glob("*.id"))) == len(self.names), patience, "registered nodes")
            stack.enter_context(Supervisor(self.supernodes()))
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


def _config(sites: int, rounds: int) -> RunConfig:
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


def measure(root: Path, *, sites: int, rounds: int, dimension: int) -> Report:
    """Run once and look at everything."""
    names = tuple(f"site-{number:04d}" for number in range(sites))
    stage = Stage(root=root, config=_config(sites, rounds), names=names, dimension=dimension)
    stage.make()
    with ProcessWatch() as watch:
        stage.lead(seconds=(rounds + 4) * (60.0 + 10.0 * sites))
    rows = [row for row in read_metrics(stage.files.directory) if row["kind"] == "round"]
    idle = watch.share["supernode_process.py"] + watch.share["flower-superexec"]
    return Report(
        machine=platform.machine(),
        cores=os.cpu_count() or 0,
        sites=sites,
        rounds=rounds,
        dimension=dimension,
        upload_bytes=4 * dimension,
        seconds=tuple(round(row["seconds"], 3) for row in rows),
        split=_split(stage, watch, rows),
        peak_mib={name: round(size / 2**20, 1) for name, size in sorted(watch.peak.items())},
        site_mib=round(idle / sites / 2**20, 1),
        server_mib=round((watch.peak["flower-superlink"] + watch.peak["flwr-serverapp"]) / 2**20, 1),
    )


def _split(stage: Stage, watch: ProcessWatch, rows: list[dict[str, Any]]) -> Split:
    requested, summed = _step_times(stage.files.directory / "audit.log")
    starts = sorted(each.started for each in watch.seen.values() if each.program == "flwr-clientapp")
    parts: dict[str, list[float]] = {name: [] for name in ("dispatch", "process_start", "steward", "give_back")}
    for index, (asked, done) in enumerate(zip(requested, summed, strict=True)):
        if index == 0:
            continue  # a session is opened before the first
        mine = [start for start in starts if asked <= start <= done]
        answers = [each for s in stage.stewards.values() for each in s.answered if asked <= each.asked <= done]
        if not mine or not answers:
            continue
        parts["dispatch"].append(max(mine) - asked)
        parts["process_start"].append(max(each.asked for each in answers) - max(mine))
        parts["steward"].append(max(each.ready - each.asked for each in answers))
        parts["give_back"].append(done - max(each.ready for each in answers))
    own = [row["seconds"] - row["seconds_waiting"] for row in rows[1:]]
    whole = [row["seconds"] for row in rows[1:]]
    middle = {name: round(median(values), 3) if values else 0.0 for name, values in parts.items()}
    return Split(round=round(median(whole), 3), coordinator=round(median(own), 3), **middle)


def _step_times(path: Path) -> tuple[list[float], list[float]]:
    entries = [msgspec.json.decode(line, type=Entry) for line in path.read_bytes().splitlines()]
    times = [(each.kind, dt.datetime.fromisoformat(each.time).timestamp()) for each in entries]
    return [t for kind, t in times if kind == "requested"], [t for kind, t in times if kind in {"summed", "aborted"}]


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, run, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--dimension", type=int, default=800_000)
    parser.add_argument("--directory", type=Path, help="new folder for everything; absent: a temporary one")
    parser.add_argument("--output", type=Path, help="JSON file; printed if absent")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        root = chosen.directory or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        report = measure(root, sites=chosen.sites, rounds=chosen.rounds, dimension=chosen.dimension)
    text = msgspec.json.format(msgspec.json.encode(report), indent=2)
    if chosen.output is None:
        print(text.decode())  # noqa: T201 - the command's result
    else:
        chosen.output.write_bytes(text + b"\n")


if __name__ == "__main__":
    main()
