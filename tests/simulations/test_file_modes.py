"""What the programs leave on a disk, under the most careless umask there is: for nobody but their user."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from PIL import Image

from common.adapter.model import Family, open_base
from tests.server.federation.test_approve import GOOD
from tests.simulations.worlds import MASKED, THREE, write_world
from tests.tiny_base import write_tiny_base

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
FOR_ALL = {"identity.pub", "darkroom.conf", "darkroom-coordinator.service"}
"""What another user of the machine reads."""
PROGRAM = """
import importlib, json, os, sys
os.umask(0)
for line in json.loads(sys.argv[1]):
    program, *sys.argv = line
    try:
        importlib.import_module(program).main()
    except SystemExit as ended:
        if ended.code:
            raise
"""
"""Several commands in one process: a Python without torch in it takes seconds to get it."""


def commands(folder: Path, *lines: list[str], answer: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(lines)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        input=answer,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def open_to_others(folder: Path) -> Iterator[str]:
    """Whatever another user could change, or read without need."""
    for path in (folder, *folder.rglob("*")):
        mode = path.lstat().st_mode
        if not path.is_symlink() and mode & (0o022 if path.name in FOR_ALL else 0o077):
            yield f"{mode & 0o777:o} {path}"


def trial(base: Path) -> bytes:
    privacy = {"unit": "subject", "epsilon": 4.0, "delta": 1e-5, "clip": 0.05, "population": 24, "sampling_rate": 0.5}
    return msgspec.toml.encode(
        {
            "name": "trial",
            "rounds": 2,
            "privacy": privacy,
            "base": {"path": str(base)},
            "adapter": {"rank": 2},
            "server": {"minimum_institutions": 3},
        }
    )


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    given = tmp_path / "given"
    write_tiny_base(given / "base", Family.SD1)
    (given / "pictures").mkdir()
    rng = np.random.default_rng(5)
    for number in range(4):
        coarse = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8))
        coarse.resize((64, 64), Image.Resampling.BICUBIC).save(given / "pictures" / f"{number}.png")
        (given / "pictures" / f"{number}.txt").write_text("a field")
    (given / "bundle.fab").write_bytes(GOOD)
    (given / "trial.toml").write_bytes(trial(given / "base"))
    return given


def fill_in(made: Path, given: Path, printed: str) -> None:
    """As people do, with an editor that keeps a file's mode."""
    keys = re.findall(r"public key: ([0-9a-f]{64})", printed)
    (coordinator,) = re.findall(r"for the sites' policies: ([0-9a-f]{64})", printed)
    for name in ("ash", "birch", "cedar"):
        site = made / name
        settings = site / "site.toml"
        settings.write_text(settings.read_text().replace('base = "base"', f'base = "{given / "base"}"'))
        policy = (site / "policy.toml").read_text()
        for field, values in {
            "coordinators": [coordinator],
            "institutions": keys,
            "base_digests": [open_base(str(given / "base")).digest],
        }.items():
            policy = policy.replace(f"{field} = []", f"{field} = {json.dumps(values)}")
        (site / "policy.toml").write_text(policy)


def test_a_federation_is_its_users_alone_under_umask_000(inputs: Path, tmp_path: Path) -> None:
    made, base = tmp_path / "made", str(inputs / "base")
    made.mkdir(mode=0o700)
    client, server = "client.cli", "server.cli"
    names = ("ash", "birch", "cedar")
    place = ["--directory", "federation"]
    printed = commands(
        made,
        [server, "", "init", "federation", "--name", "F", "--address", "127.0.0.1:8443"],
        *([client, "", "init", name, "--name", name] for name in names),
        *([client, "", "request", "--name", name, "--contact", "x", "--directory", name] for name in names),
    )
    fill_in(made, inputs, printed)
    config = ["--config", "ash/site.toml"]
    commands(
        made,
        *(
            [server, "", "approve", f"{name}/{name}.request", "--bundle", str(inputs / "bundle.fab"), *place, "--yes"]
            for name in names
        ),
        [server, "", "manifest", "new", str(inputs / "trial.toml"), "--base", base, *place],
        [server, "", "manifest", "sign", "trial", *place],
        [server, "", "nginx", *place],
        [client, "", "ingest", str(inputs / "pictures"), *config, "--report", "sheet.html"],
        [client, "", "ingest", str(inputs / "pictures"), *config, "--commit", "--yes"],
        [client, "", "approve", "federation/runs/trial/trial.manifest", *config, "--yes"],
        [client, "", "status", *config],
        [client, "", "rotate-key", *config, "--key-file", "ash/second.key"],
        [client, "", "erase", *config, "--commit", "--yes"],
        [client, "", "picture", "key", "picture-key", "--institution", "Ash"],
        answer="0.png\n",
    )
    assert (made / "sheet.html").is_file()
    assert list(open_to_others(made)) == []


def test_a_simulation_is_its_users_alone_under_umask_000(tmp_path: Path) -> None:
    scenario = write_world(tmp_path / "world", rounds=1, privacy=MASKED, more=THREE)
    line = ["simulations.cli", "", "run", str(scenario), "--runs", "runs", "--cache", "cache", "--threads", "1"]
    commands(tmp_path, line)
    assert list((tmp_path / "runs").rglob("*.safetensors"))
    assert list(open_to_others(tmp_path / "runs")) == []
    assert list(open_to_others(tmp_path / "cache")) == []
