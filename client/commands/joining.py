"""Commands that bring a site into a federation: request, install, join."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Annotated

import typer

from client.commands.options import Bundle, Directory, Fingerprint, JoinPath, Port
from client.connection.endings import until_mended
from client.connection.handshake import CertificateRefused, check_clock, shake_hands
from client.connection.presence import Connection
from client.connection.safe_folder import refuse_others_folder
from client.connection.supernode import (
    SuperNode,
    held_connection,
    request_to_join,
    steward_missing,
    steward_node_config,
)
from client.site.layout import SiteLayout
from client.site.settings import read_limits, read_site
from client.site.vault_access import forget_passphrase
from common.command_line import last_words
from common.errors import ProvisioningError
from common.host.preflight import NotAsWanted, PreflightLimits, Unreachable
from common.host.supervision import Command, Supervisor, end_in_order
from common.provisioning import JoinFile

_log = logging.getLogger(__name__)


def request(
    name: Annotated[str, typer.Option(help="The site's name: small letters, digits and hyphens.")],
    contact: Annotated[str, typer.Option(help="Whom the coordinator telephones.")],
    directory: Directory = Path("site"),
) -> None:
    """Write the request file for the coordinator, and make the key of the site's connection if it is missing."""
    layout = SiteLayout(directory)
    if not layout.site_file.exists():
        # it would make an identity here, and init refuses a folder that has one
        raise ProvisioningError(
            f"{directory}: no site's folder, for it has no {layout.site_file.name}; first run: "
            f"darkroom-client init {directory} --name {name}"
        )
    site = read_site(layout.site_file)
    if name != site.name:
        raise ProvisioningError(f"--name: {layout.site_file} says that this is {site.name}; got {name}")
    made, path = request_to_join(layout, name=name, contact=contact, identity_file=site.identity)
    typer.echo(f"wrote {path}; send it to the coordinator. It holds nothing secret")
    typer.echo(f"fingerprint to read out by telephone: {made.fingerprint()}")


def install(
    join_file: JoinPath,
    bundle: Bundle,
    fingerprint: Fingerprint,
    directory: Directory = Path("site"),
) -> None:
    """Install the bundle read-only and start nothing; as root, so that the SuperNode's user cannot undo it."""
    layout = SiteLayout(directory.resolve())
    supernode = SuperNode(layout)
    joined = supernode.open_join_file(join_file, fingerprint=fingerprint)
    refuse_others_folder(layout.supernode)
    supernode.install(joined, bundle)
    typer.echo(f"installed {joined.bundle} for {joined.site}; nothing else runs there")


def join(
    join_file: JoinPath,
    bundle: Bundle,
    fingerprint: Fingerprint,
    directory: Directory = Path("site"),
    steward: Annotated[
        str | None, typer.Option(help="Where the steward is, as --node-config; absent: as site.toml there says.")
    ] = None,
    port: Port = 9094,
    allow_root: Annotated[
        bool, typer.Option("--allow-root", help="In a container: run as root, whom a read-only bundle does not bind.")
    ] = False,
) -> None:
    """Check the join file, install the bundle read-only, and run the SuperNode until Ctrl-C."""
    if os.geteuid() == 0 and not allow_root:  # before anything is installed
        raise ProvisioningError(
            "do not run a SuperNode as root: root writes to read-only files, so any bundle that the coordinator sends "
            "would run; use another user, or in a container of its own --allow-root"
        )
    layout = SiteLayout(directory.resolve())
    if os.access(layout.site_file, os.R_OK):
        # the coordinator's code is started from here
        forget_passphrase(read_site(layout.site_file).vault)
    node_config = steward or steward_node_config(read_site(layout.site_file))
    supernode = SuperNode(layout)
    with until_mended(ProvisioningError):
        joined = supernode.open_join_file(join_file, fingerprint=fingerprint)
    limits = read_limits(layout.site_file)
    _check_coordinator(joined, *limits)
    with held_connection(layout, port):
        if not supernode.is_installed(joined):
            with until_mended(ProvisioningError):
                supernode.install(joined, bundle)
        if missing := steward_missing(node_config):
            typer.echo(f"the steward is missing, and without it every request is refused: {missing}", err=True)
        end_in_order()
        _run(joined, supernode.command(joined, port=port, node_config=node_config), limits)


def _run(joined: JoinFile, command: Command, limits: tuple[PreflightLimits, str]) -> None:
    connection = Connection(joined=joined, log=command.log, look_again=lambda: _look_again(joined, *limits))
    last = f"{joined.site} is disconnected; its budget and books stay as they are, and joining again goes on"
    with last_words(lambda: last), Supervisor([command]) as supervisor:
        typer.echo(f"{joined.site} connects to {joined.federation} at {joined.address}; Ctrl-C ends it")
        while True:
            supervisor.poll()
            for line in connection.look(supervisor.exit_codes().get(command.name)):
                typer.echo(line)
            time.sleep(1)


def _look_again(joined: JoinFile, limits: PreflightLimits, whose: str) -> None:
    """Where the SuperNode has ended: a certificate that is refused will be refused again; other causes may pass."""
    try:
        _check_coordinator(joined, limits, whose)
    except CertificateRefused:
        raise
    except ProvisioningError as error:
        _log.warning("%s; the SuperNode goes on trying", error)


def _check_coordinator(joined: JoinFile, limits: PreflightLimits, whose: str) -> None:
    """Refuse what would fail later without a clear word; a coordinator that is only away is waited for."""
    try:
        with until_mended(CertificateRefused):
            check_clock(shake_hands(joined.address, joined.authority), limits)
    except Unreachable as error:
        _log.warning("%s; the SuperNode goes on trying", error)
    except NotAsWanted as error:
        raise ProvisioningError(
            f"the clocks differ too much: {error}; at most {limits.clock_skew_seconds:g} s are allowed, {whose}. Set "
            "the clock by NTP, or have the coordinator do so"
        ) from error
