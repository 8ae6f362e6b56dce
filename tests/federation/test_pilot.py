"""A whole federation of separate processes, from requests to a picture, in its short form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from client.drawing.credentials import AUTHORITY_FILE, read_credentials
from common.adapter.export import read_adapter_spec, read_adapter_vector
from common.config import RunConfig
from common.release.check import Expected, check_release
from common.release.folder import ReleaseFolder
from server.run.directory import read_metrics
from simulations.pilot.pilot import Pilot, PilotPlan
from tests.simulations.worlds import COLOURS, write_world

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROUNDS = 2


def short_config() -> RunConfig:
    return msgspec.convert(
        {
            "name": "short",
            "rounds": ROUNDS,
            "privacy": {
                "unit": "image",
                "epsilon": 4.0,
                "delta": 1e-5,
                "clip": 0.05,
                "population": 24,
                "largest_site": 8,
                "sampling_rate": 0.5,
            },
            "base": {"path": "base"},
            "adapter": {"rank": 2, "train": "core"},
            "server": {"minimum_institutions": 3},
        },
        type=RunConfig,
    )


def colour_folders(root: Path) -> dict[str, Path]:
    """One image folder a colour, from the folder that they share."""
    rows = (root / "pictures" / "metadata.jsonl").read_text().splitlines()
    for colour in COLOURS:
        ours = [row.replace(f"{colour}/", "") for row in rows if f"{colour}/" in row]
        (root / "pictures" / colour / "metadata.jsonl").write_text("\n".join(ours))
    return {colour: root / "pictures" / colour for colour in COLOURS}


def test_a_pilot_from_requests_to_a_picture(tmp_path: Path) -> None:
    write_world(tmp_path)
    said: list[str] = []
    plan = PilotPlan(
        directory=tmp_path / "pilot",
        base=tmp_path / "base",
        folders=colour_folders(tmp_path),
        config=short_config(),
        prompt="red noise",
        run_seconds=400,
    )
    result = Pilot(plan, said.append).run()

    rows = [row for row in read_metrics(result.files.directory) if row["kind"] == "round"]
    assert [row["round"] for row in rows] == list(range(1, ROUNDS + 1))
    assert all(len(row["answered"]) == len(COLOURS) for row in rows)
    manifest, _ = result.files.signed()
    assert manifest.secure_aggregation is not None
    assert manifest.privacy is not None
    signed = {path.stem for path in (result.files.directory / "countersignatures").glob("*.bin")}
    assert signed == set(COLOURS)
    spec = read_adapter_spec(result.release)
    assert spec.digest == manifest.adapter_digest
    assert read_adapter_vector(result.release, spec).any()
    checked = check_release(ReleaseFolder(result.release), Expected())
    assert (checked.faults, checked.unsigned) == ((), ())
    (picture,) = result.pictures.glob("*.png")
    authority = (result.sites[0].root / "pictures" / AUTHORITY_FILE).read_bytes()
    found = read_credentials(picture.read_bytes(), authority=authority)
    assert (found.signer, found.release) == ("trusted", checked.release.digest().hex())
    assert_no_captions(plan.directory)


def assert_no_captions(pilot: Path) -> None:
    """In nothing that the coordinator has: logs, the SuperLink's database, the run's directory."""
    for path in (pilot / "coordinator").rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert not [colour for colour in COLOURS if f"{colour} noise".encode() in content], path
