"""``countersign`` and ``release verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from common.release_command import verify

app = typer.Typer(help="Releases of adapters.", no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def commands() -> None:
    """Releases of adapters."""


def countersign(
    folder: Annotated[Path, typer.Argument(help="The release's folder.")],
    config: Annotated[Path, typer.Option(help="The site's settings.", dir_okay=False)] = Path("site.toml"),
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Hold a release against this site's own books, ask, and write signatures/SITE.json; send that file back."""
    from client.operations.countersigning import countersign as sign
    from client.operations.countersigning import examine
    from client.site.open_site import open_site
    from common.command_line import last_words
    from common.release.folder import ReleaseFolder

    site, release = open_site(config), ReleaseFolder(folder)
    with last_words(lambda: "stopped; nothing was signed"):
        found = examine(release, site)
    for line in found.lines():
        typer.echo(line)
    if not found.faults and not yes and not typer.confirm("Sign this release?", default=False):
        typer.echo("nothing was signed")
        raise typer.Exit(1)
    typer.echo(f"wrote {sign(release, site, found)}; send it to the coordinator")


app.command()(verify)
