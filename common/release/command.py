"""``release verify``, which both command lines have: a release is checked alike by whoever holds it."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads annotations at run time
from typing import Annotated

import typer


def verify(
    folder: Annotated[Path, typer.Argument(help="The release's folder.")],
    manifest: Annotated[
        Path | None, typer.Option(help="The run's signed manifest; needed unless it is inside.")
    ] = None,
    coordinator: Annotated[str | None, typer.Option(help="The key that must have signed, 64 digits.")] = None,
    signatures: Annotated[
        int | None, typer.Option(min=0, help="Fewest sites that must have signed; absent: all.")
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(help="The base model's folder; needed to compare the factors that were never trained."),
    ] = None,
) -> None:
    """Check every file, figure and signature of a release, and say each fault."""
    from common.release.check import verify_release  # noqa: PLC0415 - torch takes seconds to load

    for line in verify_release(folder, manifest=manifest, coordinator=coordinator, signatures=signatures, base=base):
        typer.echo(line)
