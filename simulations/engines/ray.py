"""Every institution on Ray, through Flower's simulation runtime: for more than one machine, or more than one core.

With ``RAY_ADDRESS`` in the environment the institutions run on that cluster, whose machines need this project at the
same path; otherwise on a Ray of our own that ends with the run.

Ray's worker processes look for code where Ray was started, so that another project's ``common`` may be imported instead
of ours, silently. Two checks close that: before the run one task per machine reports which code it would run, and each
worker process checks again before it answers. What is compared is the digest of all sources of the four packages.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import logging
import os
import platform
import socket
import sys
import threading
import warnings
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from flwr.supercore import telemetry

import common
from client.app import make_client_app
from common.errors import ConfigError
from server.app import make_server_app
from server.rounds.transport import GridTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from flwr.app import Context
    from flwr.serverapp import Grid

    from common.wire.messages import StewardPort
    from server.rounds.transport import Transport

T = TypeVar("T")
_log = logging.getLogger(__name__)
_flower_log: Final = logging.getLogger("flwr")

PACKAGES: Final = ("client", "common", "server", "simulations")
QUIET: Final = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray otherwise hides the GPUs from tasks that ask for none, with a warning that this will change
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Neither Flower nor Ray may call home from an institution's machine."""


@dataclass(frozen=True)
class CodeIdentity:
    """Which code a process runs."""

    file: str
    """Path of the imported ``common`` package."""
    digest: str
    """SHA-256 over the sources of the four packages beside it."""
    python: str


@functools.cache
def code_identity() -> CodeIdentity:
    """The code that this process runs, read once."""
    file = Path(common.__file__ or "").resolve()
    digest = hashlib.sha256()
    for source in sorted(path for name in PACKAGES for path in (file.parents[1] / name).rglob("*.py")):
        content = source.read_bytes()
        digest.update(f"{source.relative_to(file.parents[1]).as_posix()}\0{len(content)}\0".encode() + content)
    return CodeIdentity(file=str(file), digest=f"sha256:{digest.hexdigest()}", python=platform.python_version())


@functools.cache
def _announce(found: CodeIdentity) -> None:
    """Once per worker process, through Flower's log, which Ray brings to the terminal of the run."""
    _flower_log.info("worker process %d runs code %s from %s", os.getpid(), found.digest, found.file)


@dataclass(frozen=True)
class CheckedConnect:
    """Connects to a steward in a worker process that runs the intended code, and in no other."""

    connect: Callable[[Context], StewardPort]
    digest: str

    def __call__(self, context: Context) -> StewardPort:
        """The institution's steward.

        Raises:
            ConfigError: This worker process imported other code than the process that started the run.

        """
        found = code_identity()
        _announce(found)
        if found.digest != self.digest:
            raise ConfigError(f"worker process runs code {found.digest} from {found.file}; wanted {self.digest}")
        return self.connect(context)


def run_ray(
    server: Callable[[Transport], T],
    connect: Callable[[Context], StewardPort],
    count: int,
    *,
    cpus_per_institution: float = 1.0,
    gpus_per_institution: float = 0.0,
) -> T:
    """Run the coordinator, in a thread of this process, against ``count`` institutions on Ray; what ``server`` returns.

    The round's time limit covers the time that institutions wait for a free worker process.

    Args:
        server: Leads the run. An exception of it is raised here.
        connect: Gives an institution's steward in a worker process, from ``context.node_config["partition-id"]`` in
            0 … ``count`` − 1. It is pickled, so it holds absolute paths, not models; it may keep one model per process.
        count: Number of institutions.
        cpus_per_institution: CPU cores for one worker process; as many processes are started as fit.
        gpus_per_institution: Its share of a GPU.

    Raises:
        ConfigError: Ray is not installed, a machine runs other code, or no worker process fits.

    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("the ray engine needs Ray: pip install 'darkroom[ray]', or use the inprocess engine")
    stopped, results = threading.Event(), list[T]()

    def transport(grid: Grid) -> Transport:
        return GridTransport(grid, addresses=lambda: _addresses(grid, count), stop=stopped.is_set)

    def lead(made: Transport, _context: Context) -> None:
        results.append(server(made))

    from flwr.simulation import run_simulation  # noqa: PLC0415 - takes seconds, which only this engine needs

    resources: dict[str, Any] = {"num_cpus": cpus_per_institution, "num_gpus": gpus_per_institution}
    with _quiet_environment(), _ray_session(resources), _without_notice():
        try:
            run_simulation(
                server_app=make_server_app(lead, transport),
                client_app=make_client_app(CheckedConnect(connect, code_identity().digest)),
                num_supernodes=count,
                backend_config={"client_resources": resources},
            )
        finally:
            # if the runtime failed, the coordinator's thread would wait for answers until its own deadline
            stopped.set()
    return results[0]


def _addresses(grid: Grid, count: int) -> dict[int, int]:
    """Flower's random node ids by institution: the runtime registers institutions in order."""
    nodes = sorted(grid.get_nodes(), key=lambda node: node.registered_at)
    return {i: node.node_id for i, node in enumerate(nodes)} if len(nodes) == count else {}


@contextmanager
def _without_notice() -> Iterator[None]:
    """Flower's log without its advice to start simulations from its command line, which keeps a server running."""

    def is_wanted(record: logging.LogRecord) -> bool:
        return "DEPRECATED FEATURE" not in record.getMessage()

    _flower_log.addFilter(is_wanted)
    try:
        yield
    finally:
        _flower_log.removeFilter(is_wanted)


@contextmanager
def _quiet_environment() -> Iterator[None]:
    """The variables of :data:`QUIET` for the time of a run, in this process and those that Ray starts."""
    before = {name: os.environ.get(name) for name in QUIET}
    told = telemetry.FLWR_TELEMETRY_ENABLED
    os.environ.update(QUIET)
    # Flower has read its variable by now, when it was first imported
    telemetry.FLWR_TELEMETRY_ENABLED = "0"
    try:
        yield
    finally:
        telemetry.FLWR_TELEMETRY_ENABLED = told
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _ray_session(resources: Mapping[str, float]) -> Iterator[None]:
    """A Ray whose workers find this project's code first, checked on each machine."""
    import ray  # noqa: PLC0415 - an extra

    address = os.environ.get("RAY_ADDRESS", "")
    _check_reachable(address)
    # never the empty entry, which means the directory that a process happens to stand in
    root = str(Path(code_identity().file).parents[1])
    path = os.pathsep.join([root, *(entry for entry in sys.path if entry and entry != root)])
    with warnings.catch_warnings(), chdir(root):
        warnings.simplefilter("ignore")
        # in the project's directory, because Ray puts the one it is started in first on its workers' path
        ray.init(
            **({} if address else {"address": "local", "include_dashboard": False}),
            logging_level=logging.WARNING,
            runtime_env={"env_vars": {"PYTHONPATH": path, **QUIET}},
        )
    try:
        _check_machines(ray, resources)
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Say at once that nobody is at ``host:port``; Ray itself tries for more than seven minutes."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()) or "/" in address:
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ConfigError(
            f"RAY_ADDRESS={address}: no Ray answers there ({error}); start it or unset RAY_ADDRESS"
        ) from error


def _report_code() -> CodeIdentity:
    return code_identity()


def _check_machines(ray: Any, resources: Mapping[str, float]) -> None:  # noqa: ANN401 - an untyped module
    """Log which code each machine of the cluster runs, and refuse other code than this process's."""
    wanted = code_identity()
    machines = [machine for machine in ray.nodes() if _fits(machine, resources)]
    if not machines:
        raise ConfigError(f"no machine of the Ray cluster has {dict(resources)} for one institution; ask for less")
    for machine in machines:
        name = machine["NodeManagerHostname"]
        pinned = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(machine["NodeID"], soft=False)
        try:
            found = ray.get(ray.remote(_report_code).options(scheduling_strategy=pinned, **resources).remote())
        except ray.exceptions.RayError as error:
            raise ConfigError(f"ray machine {name} cannot run this project's code: {error}") from error
        _log.info("ray machine %s runs code %s from %s", name, found.digest, found.file)
        if found != wanted:
            raise ConfigError(
                f"ray machine {name} runs {found}; wanted {wanted}: put the same version of the project at the same "
                "path, and start Ray outside of other projects' directories"
            )


def _fits(machine: Mapping[str, Any], resources: Mapping[str, float]) -> bool:
    there = machine["Resources"]
    return bool(
        machine["Alive"]
        and there.get("CPU", 0) >= resources["num_cpus"]
        and there.get("GPU", 0) >= resources["num_gpus"]
    )
