"""Every example is run as a reader would, with fewer rounds and less to learn from."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from typer.testing import CliRunner

from common.adapter.spec import Family
from common.crypto.identity_file import read_identity_file
from simulations.cli import app
from tests.tiny_base import write_tiny_base

if TYPE_CHECKING:
    from types import ModuleType

EXAMPLES = Path(__file__).parents[2] / "examples"


def loaded(name: str) -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the federation of three left everything."""
    root = tmp_path_factory.mktemp("three")
    script = loaded("federation_of_three")
    script.PICTURES, script.SIDE = 8, 32
    script.BASE = str(write_tiny_base(root / "base", Family.SD2))
    script.teach(root, rounds=1, threads=1)
    return root


def test_own_pictures_teach_an_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = write_tiny_base(tmp_path / "base", Family.SD2)
    scenario = (EXAMPLES / "own_pictures.toml").read_text(encoding="utf-8")
    assert scenario.count('path = "bundled"') == 1
    (tmp_path / "own_pictures.toml").write_text(scenario.replace('"bundled"', f'"{small}"'), encoding="utf-8")
    mine = tmp_path / "my-pictures"
    mine.mkdir()
    rows = []
    for number in range(12):
        Image.new("RGB", (32, 32), (20 * number, 90, 200 - 10 * number)).save(mine / f"{number}.png")
        rows.append(json.dumps({"file_name": f"{number}.png", "text": "a bee on a daisy"}))
    (mine / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
    done = CliRunner().invoke(app, ["run", "own_pictures.toml", "--rounds", "1", "--threads", "1"])
    assert done.exit_code == 0, done.exception
    assert (tmp_path / "runs/own-pictures/adapter/pytorch_lora_weights.safetensors").is_file()
    assert (tmp_path / "runs/own-pictures/samples/round_0001.png").is_file()


def test_three_institutions_teach_an_adapter_and_keep_their_accounts(taught: Path) -> None:
    run = taught / "runs/federation-of-three"
    assert (run / "adapter/pytorch_lora_weights.safetensors").is_file()
    assert len(list((run / "institutions").glob("*/ledger.sqlite"))) == 3


def test_a_release_is_in_order_until_a_byte_of_it_changes(
    taught: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(taught)
    script = loaded("check_release")
    monkeypatch.setattr("sys.argv", ["check_release.py"])
    script.main()
    untouched, changed = capsys.readouterr().out.split("fault:", 1)
    assert "in order: every file, figure and signature that was checked" in untouched
    assert "pytorch_lora_weights.safetensors" in changed
    monkeypatch.setattr("sys.argv", ["check_release.py", "runs/federation-of-three/release", "00" * 32])
    script.main()
    assert "another coordinator" in capsys.readouterr().out
    own = read_identity_file(taught / "runs/federation-of-three/coordinator/identity").public.hex()
    assert script.check(taught / "runs/federation-of-three/release", own).faults == ()
