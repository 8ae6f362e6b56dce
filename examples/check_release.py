"""Check a release as anybody can who got one: every file, figure and signature.

    .venv/bin/python examples/check_release.py RELEASE-FOLDER COORDINATORS-KEY

Without arguments it makes a release itself, of the run that ``federation_of_three.py`` left, and then shows what the
check says of one changed byte. A real coordinator makes one with ``darkroom-server release make``, and
``darkroom-server release verify`` is this check as a command.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from common.command_line import run_command_line
from common.crypto.identity_file import read_identity_file
from common.release.card_facts import CardFacts
from common.release.check import Expected, ReleaseCheck, check_release
from common.release.folder import ReleaseFolder
from server.release.release import ReleasePlan, RunLeft, make_release
from server.run.directory import AUDIT_FILE
from simulations.scenario.scenario import load_scenario

RUN = Path("runs/federation-of-three")
SCENARIO = Path("scenario.toml")
SUMMARY = "Discs of three painters, drawn by a program."


def make(run: Path, scenario: Path, out: Path) -> None:
    """A release of a simulated run; ``out`` must not exist."""
    with tempfile.TemporaryDirectory() as kept:
        # a coordinator has its log beside the checkpoints, a simulation in a folder of its own
        directory = Path(shutil.copytree(run, Path(kept) / "run"))
        shutil.copy(run / "coordinator" / AUDIT_FILE, directory / AUDIT_FILE)
        left = RunLeft(
            signed=(run / "coordinator" / "manifest.bin").read_bytes(),
            identity=read_identity_file(run / "coordinator" / "identity"),
            directory=directory,
        )
        base = Path(load_scenario(str(scenario)).base_path())
        make_release(left, ReleasePlan(base=base, out=out, facts=CardFacts(summary=SUMMARY), roster="public"))


def check(folder: Path, coordinator: str | None) -> ReleaseCheck:
    """What is found; its ``faults`` are empty where everything is in order."""
    # whoever wants the institutions' word as well asks for so many signatures; a simulation's have signed nothing
    return check_release(ReleaseFolder(folder), Expected(coordinator=coordinator, signatures=0))


def change_a_byte(folder: Path) -> None:
    """What nobody may do to a release."""
    weights = folder / "pytorch_lora_weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def say(found: ReleaseCheck) -> None:
    """As the command does."""
    print(*found.lines(), *(f"fault: {fault}" for fault in found.faults), sep="\n")


def main() -> None:
    """Check the folder that is given, or one that is made for it."""
    if len(sys.argv) > 1:
        say(check(Path(sys.argv[1]), *sys.argv[2:3] or (None,)))
        return
    out = RUN / "release"
    make(RUN, SCENARIO, out)
    say(check(out, read_identity_file(RUN / "coordinator" / "identity").public.hex()))
    changed = Path(shutil.copytree(out, RUN / "release-changed"))
    change_a_byte(changed)
    say(check(changed, None))


if __name__ == "__main__":
    run_command_line(main)
