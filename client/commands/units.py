"""``units``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def units(
    join_file: Annotated[Path, typer.Argument(help="The join file that the coordinator sent.")],
    bundle: Annotated[Path, typer.Option(help="The app bundle, a .fab file.")],
    fingerprint: Annotated[str, typer.Option(prompt=True, help="The coordinator's, as heard by telephone.")],
    directory: Annotated[Path, typer.Option(help="The site's directory.", readable=False)] = Path("site"),
    out: Annotated[Path, typer.Option(help="Folder for the unit files.")] = Path("units"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Loopback port of the SuperNode.")] = 9094,
    steward_user: Annotated[str, typer.Option(help="Unix user of the steward.")] = "darkroom-steward",
    supernode_user: Annotated[str, typer.Option(help="Unix user of the SuperNode.")] = "darkroom-supernode",
) -> None:
    """Write hardened systemd units and print what an administrator runs. Nothing is installed."""
    from client.connection.supernode import SuperNode
    from client.operations.systemd import SiteServices, Users
    from client.site.layout import SiteLayout
    from client.site.settings import read_site
    from common.host.systemd import Installation, write_units

    layout = SiteLayout(directory.resolve())
    SuperNode(layout).open_join_file(join_file, fingerprint=fingerprint)
    services = SiteServices(
        layout=layout,
        site=read_site(layout.site_file),
        users=Users(steward=steward_user, supernode=supernode_user),
        installation=Installation.of_this_process(),
        fingerprint=fingerprint,
        port=port,
    )
    for path in write_units(services.units(), out):
        typer.echo(f"# wrote {path}")
    typer.echo("# read them, then run as root:")
    for step in services.steps(units=out.resolve(), join_file=join_file.resolve(), bundle=bundle.resolve()):
        typer.echo(step)
