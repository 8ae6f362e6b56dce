"""Commands that bring a site into a federation: request, join."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Annotated

import typer

from client.joining import SiteDirectory
from common.errors import ProvisioningError
from common.supervision import Supervisor

Directory = Annotated[Path, typer.Option(help="The site's directory.")]
_log = logging.getLogger(__name__)


def request(
    name: Annotated[str, typer.Option(help="The site's name: small letters, digits and hyphens.")],
    contact: Annotated[str, typer.Option(help="Whom the coordinator telephones.")],
    directory: Directory = Path("site"),
) -> None:
    """Make this site's keys, if they are missing, and write the request file for the coordinator."""
    made, path = SiteDirectory(directory).request(name=name, contact=contact)
    typer.echo(f"wrote {path}; send it to the coordinator. It holds nothing secret")
    typer.echo(f"fingerprint to read out by telephone: {made.fingerprint()}")


def join(
    join_file: Annotated[Path, typer.Argument(help="The join file that the coordinator sent.")],
    bundle: Annotated[Path, typer.Option(help="The app bundle, a .fab file.")],
    fingerprint: Annotated[str, typer.Option(prompt=True, help="The coordinator's, as heard by telephone.")],
    steward: Annotated[str, typer.Option(help="The steward's --node-config, as darkroom-client steward prints it.")],
    directory: Directory = Path("site"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Loopback port of the SuperNode.")] = 9094,
) -> None:
    """Check the join file, install the bundle read-only, and run the SuperNode until Ctrl-C."""
    site = SiteDirectory(directory.resolve())
    joined = site.open_join_file(join_file, fingerprint=fingerprint)
    site.install(joined, bundle)
    if os.geteuid() == 0:  # root writes to read-only files, so the bundle would not be pinned
        raise ProvisioningError("do not run a SuperNode as root: read-only bundles do not bind root")
    with Supervisor([site.supernode(joined, port=port, node_config=steward)]) as supervisor:
        typer.echo(f"{joined.site} takes part in {joined.federation} at {joined.address}; Ctrl-C ends it")
        while True:
            supervisor.poll()
            time.sleep(1)
