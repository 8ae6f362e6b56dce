"""``python -m simulations.bench``: measurements as tables on the screen and as JSON in a file."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from common.command_line import run_command_line

app = typer.Typer(help="Measure Darkroom on this machine.", no_args_is_help=True, pretty_exceptions_enable=False)


class Train(StrEnum):
    """Which factors are trained."""

    B = "B"
    AB = "AB"
    CORE = "core"


@app.callback()
def bench() -> None:
    """Measure Darkroom on this machine."""


@app.command()
def dp(
    model: Annotated[list[str] | None, typer.Option(help="base, mid, sd15 or tiny; repeat for several.")] = None,
    slow: Annotated[bool, typer.Option("--slow", help="Stable Diffusion 1.5's size too: minutes and 8 GB.")] = False,
    train: Train = Train.B,
    rank: Annotated[int, typer.Option(min=1)] = 8,
    batch: Annotated[int | None, typer.Option(min=1, help="Units in a batch; absent: 8, or 1 for sd15.")] = None,
    draws: Annotated[int, typer.Option(min=1, help="Draws for each unit.")] = 1,
    side: Annotated[int | None, typer.Option(min=4, help="Latent side; absent: 32, or the base's own.")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 9,
    step: Annotated[
        list[str] | None, typer.Option(help="Steps to compare; absent: all but the two rarer ones.")
    ] = None,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Gradient checkpointing in every step.")
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1)] = None,
    device: str = "cpu",
    output: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file.")] = None,
) -> None:
    """Private step against the plain LoRA step and Opacus: time and peak memory as ratios."""
    import torch  # noqa: PLC0415 - takes seconds to load

    from common.config import AdapterConfig  # noqa: PLC0415 - as above
    from simulations.bench.dp import DEFAULT_STEPS, as_table, measure  # noqa: PLC0415 - as above
    from simulations.bench.dp_models import BUNDLED, Setting  # noqa: PLC0415 - as above

    if threads is not None:
        torch.set_num_threads(threads)
    models = model or [*(["base"] if BUNDLED.is_dir() else []), "mid", *(["sd15"] if slow else [])]
    reports = []
    for name in models:
        setting = Setting(
            model=name,
            batch=batch or (1 if name == "sd15" else 8),
            side=side or (16 if name == "base" else 32),
            draws=draws,
            adapter=AdapterConfig(train=train.value, rank=rank, alpha=float(rank)),
            checkpointing=checkpointing,
            device=device,
        )
        reports.append(measure(setting, rounds=rounds, steps=step or DEFAULT_STEPS))
        typer.echo(as_table(reports[-1]) + "\n")
        if output is not None:
            output.write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Entry point."""
    run_command_line(app)
