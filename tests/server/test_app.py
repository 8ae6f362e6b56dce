from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from flwr.app import Context, RecordDict

from common.adapter.spec import AdapterSpec, Family, TensorSpec, encode_spec
from common.config import PLAIN_WORDS, AdapterConfig
from common.errors import CheckpointError, ConfigError
from server.app import make_server_app, read_spec, run_deployed
from server.run.checkpoint import checkpoint_files, load_checkpoint
from server.run.coordinator import CHECKPOINTS
from server.run.directory import read_metrics
from server.run.leadership import standing
from simulations.engines.inprocess import InProcessGrid
from tests.server.toy import centre, toy_client_app

ROOT = Path(__file__).parents[2]
RUN = f"""
name = "toy"
rounds = 3
privacy = "none"
acknowledge = "{PLAIN_WORDS}"
base.path = "bundled"
server = {{ optimizer = "sgd", momentum = 0.0, learning_rate = 1.0, schedule = "constant" }}
"""


def spec(**changes: Any) -> AdapterSpec:
    return AdapterSpec(
        config=AdapterConfig(**changes),
        base_digest="sha256:" + "0" * 64,
        family=Family.SD1,
        tensors=(TensorSpec("mid.to_k.lora_B", (4, 2)), TensorSpec("mid.to_q.lora_B", (4, 2))),
    )


def run_config(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "run.toml").write_text(RUN)
    (tmp_path / "spec.json").write_bytes(encode_spec(spec()))
    return {
        "config": str(tmp_path / "run.toml"),
        "spec": str(tmp_path / "spec.json"),
        "directory": str(tmp_path / "out"),
        "resume": False,
    }


def serve(settings: dict[str, Any]) -> None:
    """Start the deployed ServerApp as Flower does, on two institutions in this process."""
    grid = InProcessGrid(toy_client_app(), 2)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=settings)
    make_server_app(run_deployed)(grid, context)


def test_a_run_as_flower_starts_it(tmp_path: Path) -> None:
    settings = run_config(tmp_path)
    serve(settings)
    checkpoint = load_checkpoint(tmp_path / "out" / CHECKPOINTS)
    assert (checkpoint.round, checkpoint.spec_digest) == (3, spec().digest)
    np.testing.assert_allclose(checkpoint.adapter, np.mean([centre(i, 16) for i in range(2)], axis=0), rtol=1e-5)

    (tmp_path / "run.toml").write_text(RUN.replace("rounds = 3", "rounds = 4"))
    serve(settings)  # decided by whoever holds the run's lock: another start may have gone further meanwhile
    rows = read_metrics(tmp_path / "out")
    assert [row["round"] for row in rows if row["kind"] == "round"] == [1, 2, 3, 4]


@pytest.mark.parametrize("key", ["config", "spec", "directory"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=f"run config: {key} is missing"):
        serve(run_config(tmp_path) | {key: ""})


def test_a_spec_of_another_run_is_refused(tmp_path: Path) -> None:
    settings = run_config(tmp_path)
    (tmp_path / "spec.json").write_bytes(encode_spec(spec(rank=3)))
    with pytest.raises(ConfigError, match="rank=3"):
        serve(settings)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", msgspec.json.encode({"config": 3})])
def test_what_is_no_spec_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "spec.json").write_bytes(content)
    with pytest.raises(ConfigError, match="wanted an adapter specification"):
        read_spec(tmp_path / "spec.json")


def test_a_missing_spec_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="wanted an adapter specification"):
        read_spec(tmp_path / "nowhere.json")


def test_the_server_app_does_without_torch() -> None:
    """It would double the start of every run and the memory of the server."""
    code = "import sys, server.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_run_that_fails_says_why_in_its_directory(tmp_path: Path) -> None:
    settings = run_config(tmp_path) | {"resume": True}
    with pytest.raises(CheckpointError):
        serve(settings)
    assert "no checkpoint to resume from" in str(standing(tmp_path / "out"))


def test_a_damaged_checkpoint_is_passed_over_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = run_config(tmp_path)
    serve(settings)
    newest = checkpoint_files(tmp_path / "out" / CHECKPOINTS)[-1]
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    serve(settings | {"resume": True})
    assert "damaged: its content is not what was written; going on from round 2" in caplog.text
    rows = read_metrics(tmp_path / "out")
    assert [row["round"] for row in rows if row["kind"] == "round"] == [1, 2, 3]
    assert load_checkpoint(tmp_path / "out" / CHECKPOINTS).round == 3
