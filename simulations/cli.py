"""``darkroom-sim``: many virtual institutions on one machine."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.command_line import last_words, run_command_line
from common.errors import ConfigError, EmptyFolder
from common.host.file_lock import locked
from simulations.scenario.scenario import load_scenario
from simulations.sweep.trial import Axis

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

app = typer.Typer(help="Darkroom on one machine.", no_args_is_help=True, pretty_exceptions_enable=False)


class EngineName(StrEnum):
    """Where institutions are played."""

    INPROCESS = "inprocess"
    RAY = "ray"


ScenarioName = Annotated[str, typer.Argument(help="A shipped scenario's name, or the path of a TOML file.")]
RunsDirectory = Annotated[Path, typer.Option("--runs", help="Directory that holds the runs.")]
Cache = Annotated[Path, typer.Option(help="Where source packages and encoded pictures are kept.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads for each worker.")]
DEFAULT_THREADS = min(8, os.cpu_count() or 1)


@app.command()
def run(
    scenario: ScenarioName,
    name: Annotated[str | None, typer.Option(help="The run's directory below --runs; absent: its name.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds instead of the scenario's.")] = None,
    engine: Annotated[
        EngineName, typer.Option(help="Flower in this process, or Flower on Ray.")
    ] = EngineName.INPROCESS,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an earlier run.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Remove an earlier run of this name first.")] = False,
    runs: RunsDirectory = Path("runs"),
    cache: Cache = Path(".cache"),
    threads: Threads = DEFAULT_THREADS,
) -> None:
    """Run a scenario; pictures, curves and the adapter are in its directory afterwards."""
    loaded = load_scenario(scenario, rounds=rounds)
    directory = runs / (name or loaded.name)
    if resume and again:
        raise ConfigError("--resume goes on with the earlier run and --again removes it; give one of them")
    with _alone(directory):
        if again:
            _remove(directory)
        if not resume:
            _check_free(directory, "go on with --resume, start over with --again, or use --name")
        elif _is_finished(directory, loaded.rounds):
            return

        with last_words(lambda: _kept(directory)):
            from simulations.experiments.run import RunPlan, run_scenario  # noqa: PLC0415 - torch takes seconds to load

            plan = RunPlan(
                scenario=loaded, directory=directory, cache=cache, engine=engine.value, resume=resume, threads=threads
            )
            run_scenario(plan, _warn)
    typer.echo(_what_to_look_at(directory))


@app.command()
def compare(
    scenario: ScenarioName,
    runs: RunsDirectory = Path("runs"),
    cache: Cache = Path(".cache"),
    threads: Threads = DEFAULT_THREADS,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds instead of the scenario's.")] = None,
) -> None:
    """Base, each institution alone, federated and centralised in one table. Goes on where it was stopped."""
    loaded = load_scenario(scenario, rounds=rounds)
    directory = runs / f"{loaded.name}-compare"
    _check_is_directory(directory)
    with _alone(directory), last_words(lambda: f"stopped; what was trained is kept in {directory}; {_same_command()}"):
        import torch  # noqa: PLC0415 - takes seconds to load

        from simulations.experiments.compare import compare_scenario  # noqa: PLC0415 - as above

        torch.set_num_threads(threads)
        typer.echo(compare_scenario(loaded, directory, cache, _warn))


@app.command()
def budget(
    scenario: Annotated[str | None, typer.Argument(help="A scenario with privacy; absent: the options alone.")] = None,
    noise_multiplier: Annotated[float | None, typer.Option(help="Asks for epsilon.")] = None,
    epsilon: Annotated[float | None, typer.Option(help="Asks for the noise; with a scenario, instead of its.")] = None,
    sampling_rate: Annotated[float | None, typer.Option(help="Chance of a unit to be in a round's sample.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="With a scenario: rounds instead of its.")] = None,
    delta: Annotated[float | None, typer.Option(help="Delta; below 1/population.")] = None,
    population: Annotated[int | None, typer.Option(min=1, help="Privacy units of all institutions together.")] = None,
    institutions: Annotated[int, typer.Option(min=1, help="Institutions that add noise.")] = 1,
    colluders: Annotated[int, typer.Option(min=0, help="Of them, how many may collude.")] = 0,
) -> None:
    """What epsilon these settings have, or how much noise an epsilon takes; nothing is trained."""
    from simulations.experiments.budget import budget_of, budget_of_scenario, checked_settings  # noqa: PLC0415 - scipy takes a second

    if scenario is not None:
        options = (noise_multiplier, sampling_rate, delta, population)
        if any(option is not None for option in options) or (institutions, colluders) != (1, 0):
            raise ConfigError("with a scenario, only --epsilon and --rounds can be given beside it")
        typer.echo(budget_of_scenario(load_scenario(scenario, rounds=rounds), epsilon=epsilon))
        return
    if sampling_rate is None or rounds is None or delta is None:
        raise ConfigError("without a scenario, --sampling-rate, --rounds and --delta are needed")
    given = {
        "noise-multiplier": noise_multiplier,
        "epsilon": epsilon,
        "delta": delta,
        "sampling-rate": sampling_rate,
        "rounds": rounds,
        "population": population,
        "institutions": institutions,
        "colluders": colluders,
    }
    typer.echo(budget_of(checked_settings(given)))


@app.command()
def sweep(
    scenario: ScenarioName = "three-institutions",
    axis: Annotated[
        list[Axis] | None, typer.Option(help="Question to answer; repeat for several. Absent: all.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each setting.")] = 2,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds instead of the scenario's.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Trainings at a time, one CPU thread each.")] = DEFAULT_THREADS,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the trainings; run none.")] = False,
    runs: RunsDirectory = Path("runs"),
    cache: Cache = Path(".cache"),
) -> None:
    """What privacy costs: one training for each setting, as a table and a picture. Goes on where it was stopped."""
    loaded = load_scenario(scenario, rounds=rounds)
    directory = runs / f"{loaded.name}-sweep"
    _check_is_directory(directory)
    with (
        _alone(directory),
        last_words(lambda: f"stopped; every training that ended is kept in {directory}; {_same_command()}"),
    ):
        from simulations.sweep.study import StudyPlan, planned, run_study  # noqa: PLC0415 - torch takes seconds to load

        plan = StudyPlan(
            scenario=loaded,
            axes=tuple(axis or Axis),
            seeds=tuple(range(seeds)),
            directory=directory,
            cache=cache,
            workers=workers,
        )
        wanted, todo = planned(plan)
        if dry_run:
            typer.echo("\n".join(trial.key for trial in todo))
            typer.echo(f"{len(todo)} trainings to run for {len(wanted)} points of {len(plan.axes)} axes")
            return
        typer.echo(f"{run_study(plan)}\n{plan.table}\n{directory / 'sweep.png'}")


@app.command()
def wiretap(
    scenario: ScenarioName = "three-institutions",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds to listen to.")] = 3,
    runs: RunsDirectory = Path("runs"),
    cache: Cache = Path(".cache"),
    threads: Threads = DEFAULT_THREADS,
) -> None:
    """Keep every byte that coordinator and network see of a private run, and compare it with what they do not see."""
    loaded = load_scenario(scenario, rounds=rounds)
    directory = runs / f"{loaded.name}-wiretap"
    with _alone(directory):
        _check_free(directory, "move it away, or keep this one elsewhere with --runs")
        with last_words(lambda: f"stopped; remove {directory} before you start it again"):
            import torch  # noqa: PLC0415 - takes seconds to load

            from simulations.experiments.wiretap import tap_scenario  # noqa: PLC0415 - as above

            torch.set_num_threads(threads)
            typer.echo(tap_scenario(loaded, directory, cache))
    typer.echo(f"Look at:\n  {directory / 'comparison.png'}\n  {directory / 'messages'}")


@app.command()
def check(folder: Annotated[Path, typer.Argument(help="Image folder, with metadata.jsonl or without.")]) -> None:
    """Check an image folder before a run: every picture and caption, all faults at once. Nothing is changed."""
    with last_words(lambda: "stopped; nothing was changed, and nothing is kept of the check: start it again"):
        from simulations.scenario.imagefolder import check_images, look_at  # noqa: PLC0415 - SciPy takes a second

        found = look_at(folder)
        check_images(folder, found.pictures)
    if not found.pictures:
        raise EmptyFolder(f"{folder}: no picture that may be used")
    subjects = len({picture.subject_id for picture in found.pictures})
    typer.echo(f"{folder}: {len(found.pictures)} pictures of {subjects} subjects can be used")
    if without := sum(not picture.caption for picture in found.pictures):
        typer.echo(f"{without} of them have no caption")
    reasons = ("no consent or expired", "no row in the metadata", "no picture by its name")
    for reason, names in zip(reasons, (found.left_out, found.unlisted, found.others), strict=True):
        for name in names:
            typer.echo(f"not used, {reason}: {name}")
    for note in found.notes:
        typer.echo(note)


@app.command()
def fetch(cache: Cache = Path(".cache")) -> None:
    """Fetch and build the demonstration's pictures, so that later commands need no network."""
    with last_words(lambda: f"stopped; what was fetched is kept in {cache}; {_same_command()}"):
        from simulations.scenario.medical import build_institutions  # noqa: PLC0415 - as above

        for made in build_institutions(cache / "institutions-48", cache / "sources", resolution=48):
            typer.echo(f"{made.name}: {made.folder}")


@app.command()
def pilot(
    directory: Annotated[Path, typer.Argument(help="New folder for coordinator, sites and all logs.")] = Path("pilot"),
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of the run.")] = 5,
    again: Annotated[bool, typer.Option("--again", help="Remove an earlier pilot of this name first.")] = False,
    cache: Cache = Path(".cache"),
) -> None:
    """Run a real federation of separate processes on this machine, from requests over TLS to a picture."""
    with _alone(directory):
        if again and (directory / "commands.log").exists():
            shutil.rmtree(directory)
        _check_free(directory, "start over with --again if it is an earlier pilot, or give a new folder")
        with last_words(lambda: f"stopped, with every process; logs are in {directory}; start over with --again"):
            from simulations.pilot.pilot import Pilot, demonstration  # noqa: PLC0415 - as above

            plan = demonstration(directory.resolve(), cache.resolve(), rounds=rounds)
            result = Pilot(plan, typer.echo).run()
    look = (("release", result.release), ("pictures", result.pictures), ("logs", directory))
    typer.echo("\nLook at:\n" + "\n".join(f"  {what:9} {path}" for what, path in look))


def _alone(directory: Path) -> AbstractContextManager[int]:
    """Keep a second command out: until the first round the directory looks free, and ``--again`` would remove it."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    busy = ConfigError(f"{directory}: another darkroom-sim works in it; wait for it, end it, or use another directory")
    return locked(directory.parent / f".{directory.name}.lock", wait_s=0, busy=busy)


def _remove(directory: Path) -> None:
    """Remove an earlier run, and nothing else."""
    if directory.is_dir() and any(directory.iterdir()):
        if not _is_run(directory):
            raise ConfigError(f"{directory}: not a run's directory, so it is not removed; move it away or use --name")
        shutil.rmtree(directory)


def _check_is_directory(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"{directory}: a file where the run's directory would be; move it away or use --name")


def _check_free(directory: Path, else_do: str) -> None:
    """Refuse to mix two runs in one directory."""
    _check_is_directory(directory)
    if directory.exists() and any(directory.iterdir()):
        raise ConfigError(f"{directory} is there already; {else_do}")


def _is_run(directory: Path) -> bool:
    """Whether a run left this, be it one that was killed before it described itself."""
    parts = {"coordinator", "institutions", "store", "samples", "metrics.jsonl"}
    return (directory / "run.json").exists() or all(path.name in parts for path in directory.iterdir())


def _is_finished(directory: Path, rounds: int) -> bool:
    """Whether nothing is left to resume, which is said; also where there is only a start from the beginning."""
    from server.run.directory import finished_rounds  # noqa: PLC0415 - as above

    _check_is_directory(directory)
    if not directory.exists() or not any(directory.iterdir()):
        raise ConfigError(f"{directory}: nothing to resume, no run is there; start without --resume")
    if not _is_run(directory):
        raise ConfigError(f"{directory}: nothing to resume, this is not a run's directory; see --runs and --name")
    if finished_rounds(directory) == rounds and (directory / "adapter" / "adapter_spec.json").exists():
        typer.echo(f"{directory}: finished already, all {rounds} rounds; nothing to resume. --again starts over.")
        typer.echo(_what_to_look_at(directory))
        return True
    from simulations.experiments.run import has_begun  # noqa: PLC0415 - as above

    if not has_begun(directory):
        typer.echo(f"{directory}: no round is kept yet, so there is nothing to go on from; starting at the first")
    return False


def _kept(directory: Path) -> str:
    from server.run.checkpoint import last_round  # noqa: PLC0415 - as above

    rounds = last_round(directory / "checkpoints")
    words = [word for word in sys.argv[1:] if word not in {"--again", "--resume"}]
    go_on = shlex.join(["darkroom-sim", *words, "--resume"])
    kept = "no round is kept yet" if rounds is None else f"{directory} holds it as of round {rounds}"
    return f"stopped; {kept}; go on with: {go_on}"


def _same_command() -> str:
    return f"go on with: {shlex.join(['darkroom-sim', *sys.argv[1:]])}"


def _what_to_look_at(directory: Path) -> str:
    sheets = sorted((directory / "samples").glob("round_*.png"))
    none = "none: the scenario has no evaluation.prompts; darkroom-client generate draws what you ask for"
    look = [("pictures", str(sheets[-1]) if sheets else none)]
    look += [("curves", str(path)) for path in (directory / "curves.png",) if path.exists()]
    look += [
        ("adapter", str(directory / "adapter" / "pytorch_lora_weights.safetensors")),
        ("metrics", str(directory / "metrics.jsonl")),
        ("settings", str(directory / "run.json")),
    ]
    return "\nLook at:\n" + "\n".join(f"  {what:9} {path}" for what, path in look)


def _warn(text: str) -> None:
    typer.secho(f"warning: {text}", fg="yellow", err=True)


def main() -> None:
    """Entry point."""
    run_command_line(app)


if __name__ == "__main__":
    main()
