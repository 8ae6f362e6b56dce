"""``run start|status|pause|resume|stop|logs|export``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.errors import ProvisioningError
from server.federation.directory import FederationDirectory
from server.federation.run_files import RunFiles
from server.federation.run_status import RunState, run_state, run_status
from server.run import leadership

if TYPE_CHECKING:
    from server.flower.runs import FlowerRun

app = typer.Typer(help="Lead a run.", no_args_is_help=True, pretty_exceptions_enable=False)
Directory = Annotated[Path, typer.Option(help="The federation's directory.")]
Name = Annotated[str, typer.Argument(help="The run's name.")]


@app.command()
def start(name: Name, directory: Directory = Path("federation")) -> None:
    """Start a run whose manifest is signed; one with checkpoints goes on from the last."""
    run = _flower_run(name, directory)
    if run_state(run.files) is RunState.FINISHED:
        raise ProvisioningError(f"{_finished(run.files)}; nothing is left to start")
    leadership.resume(run.files.directory)
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
        status = run_status(run.files)
        typer.echo(f"Flower's process: {flower or 'not started'}")
        typer.echo("\n".join(run.named(line) for line in status.lines()))
        waits = status.standing is not None and status.standing.state == "waiting"
        if status.state.is_under_way and waits and (away := _away(run)):
            typer.echo(f"not connected: {', '.join(away)}")
        if not watch or flower in {"", "finished"}:
            return
        time.sleep(every)


@app.command()
def pause(name: Name, directory: Directory = Path("federation")) -> None:
    """Have a run wait before its next round; sites keep their sessions."""
    files = _files(name, directory)
    _check_under_way(files, "pause")
    leadership.pause(files.directory)
    typer.echo(f"{name} waits before its next round; go on with: darkroom-server run resume {name}")


@app.command()
def resume(name: Name, directory: Directory = Path("federation")) -> None:
    """Let a paused run go on."""
    files = _files(name, directory)
    _check_under_way(files, "resume")
    paused = leadership.is_paused(files.directory)
    leadership.resume(files.directory)
    typer.echo(f"{name} goes on" if paused else f"{name} is not paused; it goes on as before")


@app.command()
def stop(name: Name, directory: Directory = Path("federation")) -> None:
    """End a run; ``start`` goes on from its last checkpoint. What was sent stays paid for."""
    run = _flower_run(name, directory)
    if run_state(run.files) is RunState.FINISHED:
        typer.echo(f"{_finished(run.files)}; nothing is left to stop")
    elif run.stop():
        typer.echo(f"stopped {name}; go on with: darkroom-server run start {name}")
    else:
        typer.echo(f"{name} does not run; nothing was left to stop. Go on with: darkroom-server run start {name}")


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
    from server.release.adapter_files import write_adapter

    rounds = write_adapter(_files(name, directory), base, out)
    typer.echo(f"wrote {out} after {rounds} rounds")


def _finished(files: RunFiles) -> str:
    rounds = files.signed()[0].config.rounds
    return f"{files.name}: is finished, all {rounds} rounds (next: darkroom-server release make {files.name})"


def _check_under_way(files: RunFiles, to_do: str) -> None:
    state = run_state(files)
    if state is RunState.FINISHED:
        raise ProvisioningError(f"{_finished(files)}; nothing is left to {to_do}")
    if not state.is_under_way:
        start = f"darkroom-server run start {files.name}"
        raise ProvisioningError(f"{files.name}: does not run, so there is nothing to {to_do}; start it with: {start}")


def _away(run: FlowerRun) -> list[str]:
    """Sites of the manifest that are not connected to the SuperLink."""
    try:
        online = {node.node_id for node in run.launch.nodes() if node.status == "online"}
    except ProvisioningError:
        return []
    roster = run.files.signed()[0].roster
    return [member.name for member in roster if run.launch.node_id(member.name) not in online]


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
    from server.flower.runs import FlowerRun
    from server.flower.superlink import Launch

    files = _files(name, directory)
    return FlowerRun(Launch(files.federation, files.federation.config()), files)
