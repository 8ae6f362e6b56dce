"""The coordinator as Flower runs it: glue between Flower's grid and the coordinator's loop."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
from flwr.serverapp import Grid, ServerApp

from common.adapter.spec import AdapterSpec
from common.audit_log import AuditLog
from common.crypto.identity_file import read_identity_file
from common.errors import ConfigError
from common.manifest.manifest import open_manifest
from server.rounds.secagg_session import SecureRun, check_log_belongs
from server.rounds.transport import GridTransport, Transport
from server.run.checkpoint import checkpoint_files
from server.run.coordinator import CHECKPOINTS, Coordinator
from server.run.directory import AUDIT_FILE, LOG_FILE, RunDirectory
from server.run.leadership import leading
from server.run.waiting import WaitsForInstitutions

if TYPE_CHECKING:
    from collections.abc import Callable

    from flwr.app import Context

    from server.rounds.optimizer import Vector

SPEC_KEY: Final = "spec"
"""Run-config key: path of the adapter specification, as ``common.adapter.spec.encode_spec`` writes it."""
DIRECTORY_KEY: Final = "directory"
"""Run-config key: the run's directory."""
MANIFEST_KEY: Final = "manifest"
"""Run-config key: path of the signed manifest."""
IDENTITY_KEY: Final = "identity"
"""Run-config key: path of the coordinator's identity file."""


def make_server_app(
    run: Callable[[Transport, Context], None], transport: Callable[[Grid], Transport] = GridTransport
) -> ServerApp:
    """A ServerApp that hands Flower's grid, as a transport, to ``run``."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        run(transport(grid), context)

    return app


def run_deployed(transport: Transport, context: Context) -> None:
    """Lead the run that Flower's run config names, from its last checkpoint if there is one.

    Raises:
        ConfigError: A key is missing, or a file that it names cannot be used.
        ManifestError: The manifest is not signed, or not of this adapter.
        RunBusy: Another process leads it.
        CheckpointError: The directory holds another run's log or checkpoints.
        RoundFailed: So many attempts at one round failed; it can be started again.

    """
    directory = _path(context, DIRECTORY_KEY)
    with leading(directory):  # before the audit log is opened, which has one writer
        _lead(transport, context, directory)


def _lead(transport: Transport, context: Context, directory: Path) -> None:
    secure = _secure_run(context, directory)
    config = open_manifest(secure.manifest)[0].config
    spec = read_spec(_path(context, SPEC_KEY))
    if spec.config != config.adapter:
        raise ConfigError(f"the adapter specification was made for {spec.config}; the run says {config.adapter}")
    Coordinator(
        config=config,
        spec=spec,
        initial=_initial(spec),
        transport=transport,
        observer=RunDirectory(directory),
        directory=directory,
        secure=secure,
        waiting=WaitsForInstitutions(directory),
    ).run(resume=bool(checkpoint_files(directory / CHECKPOINTS)))


def _initial(spec: AdapterSpec) -> Vector:
    """What the run starts from, float32[d]."""
    if spec.starts_at_zero:
        return np.zeros(spec.dimension, dtype=np.float32)
    # torch takes seconds to load and half of the server's memory
    from common.adapter.vector import initial_vector  # noqa: PLC0415 - see above

    return initial_vector(spec)


def _secure_run(context: Context, directory: Path) -> SecureRun:
    path = _path(context, MANIFEST_KEY)
    try:
        manifest = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: the manifest cannot be read ({error.strerror})") from error
    identity = read_identity_file(_path(context, IDENTITY_KEY))
    directory.mkdir(parents=True, exist_ok=True)
    audit = AuditLog(path=directory / AUDIT_FILE, identity=identity)
    check_log_belongs(directory / AUDIT_FILE, open_manifest(manifest)[1].hex())
    return SecureRun(manifest=manifest, identity=identity, audit=audit)


def read_spec(path: Path) -> AdapterSpec:
    """An adapter specification from its file.

    Raises:
        ConfigError: It cannot be read, or holds anything else.

    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=AdapterSpec)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: wanted an adapter specification: {error}") from error


def _path(context: Context, key: str) -> Path:
    value = context.run_config.get(key)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"run config: {key} is missing; wanted a path, as in: flwr run … -c '{key}=\"/path\"'")
    return Path(value)


def _run_in_its_own_process(transport: Transport, context: Context) -> None:
    """Show our log, which Flower streams to whoever started the run, keep it, and lead the run."""
    directory = _path(context, DIRECTORY_KEY)
    directory.mkdir(parents=True, exist_ok=True)
    ours = logging.getLogger("server")
    for handler in (logging.StreamHandler(), logging.FileHandler(directory / LOG_FILE, encoding="utf-8")):
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.info("started as Flower's run %s", context.run_id)
    run_deployed(transport, context)


app = make_server_app(_run_in_its_own_process)
"""What Flower loads in a deployment."""
