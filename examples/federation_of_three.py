"""Three painters, none of whom shows a picture to the others, teach one model; every picture is protected.

    .venv/bin/python examples/federation_of_three.py

Change :func:`paint` for other pictures, the table ``[privacy]`` for another promise, ``ROUNDS`` for more patience.
Afterwards ``runs/federation-of-three`` holds the adapter and what everybody kept: the coordinator's log, each painter's
ledger.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw

from common.command_line import run_command_line
from simulations.experiments.run import ADAPTER, RunPlan, run_scenario
from simulations.scenario.scenario import load_scenario

NAME = "federation-of-three"
ROUNDS = 20
PICTURES = 24
"""Of each painter; a quarter of all only measures what was learnt."""
SIDE = 64
BASE = "bundled"
"""Or any SD 1.x, 2.x or SDXL directory in diffusers format."""
PAINTERS = {"ruby": (190, 40, 60), "moss": (60, 130, 70), "lake": (50, 90, 180)}
"""Institution and colour."""


def paint(painter: str, number: int) -> Image.Image:
    """One picture: a disc of the painter's colour, every one at another place."""
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    left, top = 4 + number % 8 * 3, 4 + number // 8 * 5
    ImageDraw.Draw(picture).ellipse((left, top, left + 30, top + 30), fill=PAINTERS[painter])
    return picture


def write_pictures(folder: Path) -> None:
    """One sub-folder for each painter, and one file that says what is in the pictures."""
    rows = []
    for painter in PAINTERS:
        (folder / painter).mkdir(parents=True, exist_ok=True)
        for number in range(PICTURES):
            file_name = f"{painter}/{number}.png"
            paint(painter, number).save(folder / file_name)
            rows.append(json.dumps({"file_name": file_name, "text": f"a {painter} disc"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")


def write_scenario(folder: Path, *, rounds: int) -> Path:
    """What all three agree on before they begin."""
    path = folder / "scenario.toml"
    path.write_text(
        f"""
name = "{NAME}"
rounds = {rounds}
[privacy]
unit = "image"
epsilon = 8.0
delta = 1e-3                # below 1 / population
clip = 0.1
population = {len(PAINTERS) * PICTURES * 3 // 4}
largest_site = {PICTURES}
sampling_rate = 0.25        # about a dozen pictures in a round
[institutions]
source = "folder"
folder = "pictures"
scheme = "site"             # one institution for each sub-folder
holdout_share = 0.25
[base]
path = "{BASE}"
[adapter]
train = "core"              # few trained numbers, because each gets as much noise
[server]
learning_rate = 2e-2
minimum_institutions = {len(PAINTERS)}
[evaluation]
every = {ROUNDS}
draws = 2
""",
        encoding="utf-8",
    )
    return path


def teach(folder: Path, *, rounds: int = ROUNDS, threads: int = 2) -> Path:
    """Everything, in that folder; the run's own folder is returned."""
    write_pictures(folder / "pictures")
    scenario = load_scenario(str(write_scenario(folder, rounds=rounds)))
    run_scenario(
        RunPlan(
            scenario=scenario,
            directory=folder / "runs" / NAME,
            cache=folder / ".cache",
            engine="inprocess",
            resume=False,
            threads=threads,
        ),
        print,
    )
    return folder / "runs" / NAME


def main() -> None:
    """In the working directory, or in the one that is given."""
    run = teach(Path(*sys.argv[1:2]))
    print(f"the adapter: {run / ADAPTER}; what everybody kept: {run / 'coordinator'}, {run / 'institutions'}")


if __name__ == "__main__":
    run_command_line(main)
