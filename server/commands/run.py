"""``run start|status|pause|resume|stop|logs|export``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.errors import ProvisioningError
from server import control
from server.federation import FederationDirectory
from server.run_files import RunFiles
from server.run_status import run_status

if TYPE_CHECKING:
    from server.flower_runs import FlowerRun

app = typer.Typer(help="Lead a run.", no_args_is_help=True, pretty_exceptions_enable=False)
Directory = Annotated[Path, typer.Option(help="The federation's directory.")]
Name = Annotated[str, typer.Argument(help="The run's name.")]


@app.command()
def start(name: Name, directory: Directory = Path("federation")) -> None:
    """Start a run whose manifest is signed; one with checkpoints goes on from the last."""
    run = _flower_run(name, directory)
    control.resume(run.files.directory)
    typer.echo(f"started {name} as Flower's run {run.start()}; look at it with: darkroom-server run status {name}")


@app.command()
def status(
    name: Name,
    directory: Directory = Path("federation"),
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every few seconds until it has ended.")] = False,
    every: Annotated[float, typer.Option(min=0.5, help="Seconds between looks.")] = 5.0,
) -> None:
    """Show rounds, sites, ε so far and the time left; Flower's own word on it first."""
    run = _flower_run(name, directory)
    while True:
        flower = _flower_word(run)
        typer.echo(f"Flower: {flower or 'not started'}")
        typer.echo("\n".join(run_status(run.files).lines()))
        if not watch or flower in {"", "finished"}:
            return
        time.sleep(every)


@app.command()
def pause(name: Name, directory: Directory = Path("federation")) -> None:
    """Have a run wait before its next round; sites keep their sessions."""
    control.pause(_files(name, directory).directory)
    typer.echo(f"{name} waits before its next round; go on with: darkroom-server run resume {name}")


@app.command()
def resume(name: Name, directory: Directory = Path("federation")) -> None:
    """Let a paused run go on."""
    control.resume(_files(name, directory).directory)
    typer.echo(f"{name} goes on; if Flower has ended it, use: darkroom-server run start {name}")


@app.command()
def stop(name: Name, directory: Directory = Path("federation")) -> None:
    """End a run; ``start`` goes on from its last checkpoint. What was sent stays paid for."""
    _flower_run(name, directory).stop()
    typer.echo(f"stopped {name}")


@app.command()
def logs(name: Name, directory: Directory = Path("federation")) -> None:
    """Show what the coordinator's loop said."""
    typer.echo(_flower_run(name, directory).log())


@app.command()
def export(
    name: Name,
    base: Annotated[Path, typer.Option(help="The base model: a diffusers directory.")],
    out: Annotated[Path, typer.Option(help="Directory for the adapter.")],
    directory: Directory = Path("federation"),
) -> None:
    """Write the adapter of the last checkpoint in diffusers' LoRA format."""
    from server.adapter_files import write_adapter

    rounds = write_adapter(_files(name, directory), base, out)
    typer.echo(f"wrote {out} after {rounds} rounds")


def _flower_word(run: FlowerRun) -> str:
    try:
        return run.status()
    except ProvisioningError:  # our own files tell the rest
        return "not reachable; is darkroom-server up running?"


def _files(name: str, directory: Path) -> RunFiles:
    files = RunFiles(FederationDirectory(directory.resolve()), name)
    files.signed()
    return files


def _flower_run(name: str, directory: Path) -> FlowerRun:
    from server.flower_runs import FlowerRun
    from server.launch import Launch

    files = _files(name, directory)
    return FlowerRun(Launch(files.federation, files.federation.config()), files)
