"""``darkroom-server``: the coordinator's command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from common.command_line import log_commands, run_command_line
from common.config import RunConfig, parse_config, read_toml
from server.commands import manifest, release, run
from server.commands.federation import approve, init, renew, revoke, up
from server.commands.service import nginx, preflight, units

app = typer.Typer(help="The coordinator's side of Darkroom.", no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(log_commands(place=None), name="log")
app.add_typer(manifest.app, name="manifest")
app.add_typer(run.app, name="run")
app.add_typer(release.app, name="release")


@app.callback()
def commands() -> None:
    """The coordinator's side of Darkroom."""


@app.command()
def check(config: Annotated[Path, typer.Argument(help="Run configuration, a TOML file.")]) -> None:
    """Check a run configuration: every fault at once. Nothing is started."""
    parsed = parse_config(read_toml(config), RunConfig, source=str(config))
    privacy = parsed.privacy
    said = "none" if privacy == "none" else f"epsilon {privacy.epsilon:g}, delta {privacy.delta:g}, one {privacy.unit}"
    typer.echo(f"{config}: {parsed.name}, {parsed.rounds} rounds of {parsed.training.mode}, privacy {said}")


for command in (init, approve, revoke, renew, preflight, up, units, nginx):
    app.command()(command)


def main() -> None:
    """Entry point."""
    run_command_line(app)


if __name__ == "__main__":
    main()
