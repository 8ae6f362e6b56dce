"""Arguments, options and the question that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Site = Annotated[Path, typer.Option("--config", help="The site's settings.", dir_okay=False)]
# the SuperNode's user may go through the site's directory and not list it
Directory = Annotated[Path, typer.Option(help="The site's directory.", readable=False)]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
JoinPath = Annotated[Path, typer.Argument(help="The join file that the coordinator sent.")]
Bundle = Annotated[Path, typer.Option(help="The app bundle, a .fab file.")]
Fingerprint = Annotated[str, typer.Option(prompt=True, help="The coordinator's, as heard by telephone.")]
Port = Annotated[int, typer.Option(min=1, max=65535, help="Loopback port of the SuperNode.")]


def agree(question: str, *, yes: bool, otherwise: str) -> None:
    """Ask unless it was answered beforehand; whatever is no yes ends the command with exit code 1 and these words."""
    if not yes and not typer.confirm(question, default=False):
        typer.echo(otherwise)
        raise typer.Exit(1)
