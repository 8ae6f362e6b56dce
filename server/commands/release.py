"""``release make|verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from common.release.command import verify
from server.federation.directory import FederationDirectory
from server.federation.run_files import RunFiles

app = typer.Typer(help="Hand an adapter out.", no_args_is_help=True, pretty_exceptions_enable=False)


@app.command()
def make(
    name: Annotated[str, typer.Argument(help="The run's name.")],
    base: Annotated[Path, typer.Option(help="The base model: a diffusers directory.")],
    directory: Annotated[Path, typer.Option(help="The federation's directory.")] = Path("federation"),
    *,
    out: Annotated[Path | None, typer.Option(help="Folder to make; absent: release/ in the run's folder.")] = None,
    facts: Annotated[
        Path | None, typer.Option(help="TOML file for the model card: summary, licence, data, use, limits.")
    ] = None,
    public_roster: Annotated[
        bool, typer.Option("--public-roster", help="Name the institutions, and put the signed manifest in.")
    ] = False,
    unfinished: Annotated[bool, typer.Option("--unfinished", help="Release a run that has rounds left.")] = False,
) -> None:
    """Write a run's adapter, model card and signed statement into a new folder."""
    from common.release.card_facts import CardFacts
    from server.release.card_facts import read_facts
    from server.release.release import ReleasePlan, RunLeft, make_release

    files = RunFiles(FederationDirectory(directory.resolve()), name)
    files.signed()
    plan = ReleasePlan(
        base=base,
        out=files.root / "release" if out is None else out,
        facts=CardFacts() if facts is None else read_facts(facts),
        roster="public" if public_roster else "private",
        rounds="done" if unfinished else "all",
    )
    left = RunLeft(
        signed=files.manifest_file.read_bytes(), identity=files.federation.identity(), directory=files.directory
    )
    release = make_release(left, plan)
    typer.echo(f"wrote {plan.out} after {release.rounds} of {release.rounds_planned} rounds")
    typer.echo(f"digest {release.digest().hex()}")
    typer.echo("next: every site countersigns it (darkroom-client countersign FOLDER); collect signatures/ in it")


app.command()(verify)
