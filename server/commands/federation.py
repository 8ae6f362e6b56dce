"""Commands that make a federation and run it: init, approve, revoke, renew, up."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from common.command_line import last_words
from common.config import parse_config
from common.errors import ProvisioningError
from common.host.app_bundle import parse_bundle, read_content
from common.host.supervision import Supervisor, end_in_order
from common.provisioning import coordinator_fingerprint, parse_request, read_small_file
from server.federation.directory import FederationConfig, FederationDirectory, ServerFiles, read_server_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import uvicorn

    from common.host.app_bundle import AppBundle
    from common.provisioning import SiteRequest
    from server.flower.superlink import Launch

Directory = Annotated[Path, typer.Option(help="The federation's directory.")]
_START_SECONDS: Final = 60.0
_RESTART_SECONDS: Final = 2.0
_log = logging.getLogger(__name__)


def init(
    directory: Annotated[Path, typer.Argument(help="Directory to make.")],
    name: Annotated[str, typer.Option(help="The federation's name.")],
    address: Annotated[str, typer.Option(help="What sites connect to, host:port.")],
    listen: Annotated[str, typer.Option(help="This machine's address that the public listener takes.")] = "0.0.0.0",  # noqa: S104 - it passes the Fleet API alone
    superlink_port: Annotated[int, typer.Option(min=1, max=65535, help="The SuperLink's port on loopback.")] = 18000,
    ca_certificate: Annotated[
        Path | None, typer.Option(help="With --server-certificate and --server-key: the root that issued them, PEM.")
    ] = None,
    server_certificate: Annotated[
        Path | None, typer.Option(help="A certificate for --address, then those between it and the root.")
    ] = None,
    server_key: Annotated[Path | None, typer.Option(help="Its key, without passphrase.")] = None,
) -> None:
    """Make a federation: authority, server certificate, coordinator's identity, secret, settings."""
    given = _given(ca_certificate, server_certificate, server_key)
    settings = {"name": name, "address": address, "listen": listen, "superlink_port": superlink_port}
    config = parse_config(settings, FederationConfig, source="darkroom-server init")
    identity = FederationDirectory(directory).create(config, now=dt.datetime.now(dt.UTC), given=given)
    typer.echo(f"made {directory}; keep ca.key and coordinator.key in a backup that is locked away")
    typer.echo(f"coordinator's public key, for the sites' policies: {identity.public.hex()}")
    typer.echo(f"coordinator's fingerprint: {coordinator_fingerprint(identity.public)}")


def _given(authority: Path | None, certificate: Path | None, key: Path | None) -> ServerFiles | None:
    if authority is not None and certificate is not None and key is not None:
        return ServerFiles(authority=authority, certificate=certificate, key=key)
    if not (authority is None and certificate is None and key is None):
        raise ProvisioningError("give --ca-certificate, --server-certificate and --server-key together, or none")
    return None


def approve(
    requests: Annotated[list[Path], typer.Argument(help="Request files that sites sent.")],
    bundle: Annotated[Path, typer.Option(help="The app bundle that sites will run, a .fab file.")],
    directory: Directory = Path("federation"),
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Fingerprints were compared; do not ask.")] = False,
) -> None:
    """Show each request's fingerprint, ask, and write roster and join files."""
    from server.flower.runs import KeptBundle

    federation = FederationDirectory(directory)
    asked = [parse_request(read_small_file(path), source=str(path)) for path in requests]
    app = parse_bundle(read_content(bundle), source=str(bundle))
    federation.check_requests(asked)
    for request in asked:
        typer.echo(f"{request.name} ({request.contact}): {request.fingerprint()}")
        if not yes and not typer.confirm("did the site read out the same digits by telephone?"):
            raise ProvisioningError(f"{request.name}: not approved; nothing was changed")
    _tell_of_other_bundles(federation, app, asked, yes=yes)
    kept = KeptBundle(federation)
    with kept.replacing(app):
        written = federation.approve(asked, bundle=app.digest)
    for path in written:
        typer.echo(f"wrote {path}; send it to the site together with {kept.file}")
    typer.echo(f"read out by telephone: coordinator {coordinator_fingerprint(federation.identity().public)}")


def _tell_of_other_bundles(
    federation: FederationDirectory, app: AppBundle, asked: Sequence[SiteRequest], *, yes: bool
) -> None:
    """A run's bundle is one: sites that hold another refuse its work until they were sent new join files."""
    names = {request.name for request in asked}
    others = [name for name in federation.sites_with_another_bundle(app.digest) if name not in names]
    if not others:
        return
    typer.echo(
        f"this is another bundle than the join files of {', '.join(others)} name. They can take part in no run until "
        "you approve their requests again with this bundle, and they have installed it with their new join files"
    )
    if not yes and not typer.confirm("keep this bundle in place of the last one?"):
        raise ProvisioningError("not approved; nothing was changed")


def revoke(
    name: Annotated[str, typer.Argument(help="The site's name.")], directory: Directory = Path("federation")
) -> None:
    """Shut a site out for good; a running ``up`` unregisters it within seconds."""
    FederationDirectory(directory).revoke(name)
    typer.echo(f"{name} is revoked; runs whose manifest names it cannot go on with it")


def renew(
    directory: Directory = Path("federation"),
    server_certificate: Annotated[
        Path | None, typer.Option(help="The new one, where another authority issues them; with --server-key.")
    ] = None,
    server_key: Annotated[Path | None, typer.Option(help="Its key, without passphrase.")] = None,
) -> None:
    """Issue a fresh server certificate for the same key, or take one; restart ``up`` afterwards."""
    federation, now = FederationDirectory(directory), dt.datetime.now(dt.UTC)
    public = federation.public
    if public.certificate == federation.file("server.crt"):
        if server_certificate is not None or server_key is not None:
            raise ProvisioningError("this federation issues its own certificates; leave the files out")
        federation.issue(federation.config(), now=now)
    else:
        # the same root: sites hold it in their join files
        if server_certificate is None or server_key is None:
            raise ProvisioningError("another authority issues this federation's certificates: give both new files")
        given = ServerFiles(authority=public.authority, certificate=server_certificate, key=server_key)
        federation.take(read_server_files(given, federation.config(), now=now))
        federation.issue(federation.config(), now=now)  # the SuperLink's own, on loopback
    typer.echo(f"wrote {public.certificate}; restart darkroom-server up")


def up(directory: Annotated[Path, typer.Argument(help="The federation's directory.")]) -> None:
    """Run SuperLink, executor and public listener in the foreground until Ctrl-C."""
    from server.flower.superlink import Launch

    federation = FederationDirectory(directory.resolve())
    launch = Launch(federation, federation.config())
    end_in_order()
    with last_words(lambda: f"stopped; runs that were under way go on with: darkroom-server up {directory}"):
        asyncio.run(_run(launch))


async def _run(launch: Launch) -> None:
    from server.flower.reconciler import RosterReconciler, RunReconciler

    launch.write_connection()
    # at once: after a minute without a SuperLink, Flower gives its runs up
    with Supervisor(launch.commands(), restart_seconds=_RESTART_SECONDS) as supervisor:
        await _wait_until_up(launch)
        keeping = [
            asyncio.create_task(_keep_processes(supervisor)),
            asyncio.create_task(_keep_looking(RosterReconciler(launch).reconcile)),
            # apart from the rest, because Flower's commands take seconds
            asyncio.create_task(_keep_looking(RunReconciler(launch).reconcile)),
        ]
        try:
            if launch.config.front == "nginx":
                await asyncio.gather(*keeping)  # ends on SIGINT or SIGTERM
            else:
                await _listen(launch.listener(), keeping)  # the same
        finally:
            await _end(keeping)


async def _listen(listener: uvicorn.Server, keeping: Iterable[asyncio.Task[None]]) -> None:
    """Serve sites until told to end, or until nobody looks after the federation any more."""

    def end(_done: object) -> None:
        listener.should_exit = listener.force_exit = True  # whoever is connected must not hold it up

    for task in keeping:
        task.add_done_callback(end)
    await listener.serve()


async def _end(keeping: Sequence[asyncio.Task[None]]) -> None:
    """End what still looks after the federation; what ended by itself ends ``up``, so that systemd starts it again."""
    for task in keeping:
        task.cancel()
    for fault in await asyncio.gather(*keeping, return_exceptions=True):
        if isinstance(fault, BaseException) and not isinstance(fault, asyncio.CancelledError):
            _log.critical("up ends, because it can no longer look after the federation: %r", fault)
            raise fault


async def _wait_until_up(launch: Launch) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not await asyncio.to_thread(launch.is_up):
        if time.monotonic() > deadline:
            raise ProvisioningError(f"the SuperLink is not up after {_START_SECONDS:.0f} s; see the log in logs/")
        await asyncio.sleep(0.2)


async def _keep_processes(supervisor: Supervisor) -> None:
    """Restart what dies."""
    told = ""
    while True:
        try:
            supervisor.poll()  # in this thread, whose end is the processes' end
        except OSError as error:  # such as a full disk, when a log is opened
            if str(error) != told:
                _log.warning("a process is not started again yet: %s", error)
            told = str(error)
        await asyncio.sleep(1)


async def _keep_looking(look: Callable[[], None]) -> None:
    """Look about once a second."""
    while True:
        await asyncio.to_thread(look)
        await asyncio.sleep(1)
