from __future__ import annotations

import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from flwr.app import Context, RecordDict

from client.app import make_client_app
from common.adapter.spec import AdapterSpec, Family, TensorSpec, encode_spec
from common.config import AdapterConfig
from common.crypto.identity_file import create_identity_file
from common.errors import ConfigError
from common.manifest.manifest import open_manifest
from common.wire.messages import decode_request, encode
from server.app import make_server_app, read_spec, run_deployed
from server.rounds.transport import Failure
from server.run.checkpoint import checkpoint_files, load_checkpoint
from server.run.coordinator import CHECKPOINTS
from server.run.directory import read_metrics
from server.run.leadership import standing
from simulations.engines.inprocess import InProcessGrid
from tests.server.rounds.test_secagg_session import Ring, make_ring

if TYPE_CHECKING:
    from tests.server.rounds.test_secagg_session import Site

ROOT = Path(__file__).parents[2]


def spec(**changes: Any) -> AdapterSpec:
    return AdapterSpec(
        config=AdapterConfig(**changes),
        base_digest="sha256:" + "0" * 64,
        family=Family.SD1,
        tensors=(TensorSpec("mid.to_k.lora_B", (4, 2)), TensorSpec("mid.to_q.lora_B", (4, 2))),
    )


@dataclass(frozen=True)
class Port:
    """An honest institution, as Flower's shim sees it."""

    site: Site

    def answer(self, request: bytes) -> bytes:
        reply = self.site.answer(decode_request(request))
        assert not isinstance(reply, Failure | bytes)
        return encode(reply)


@dataclass(frozen=True)
class Deployed:
    """A signed run of three institutions with the files that the server app is given."""

    ring: Ring
    settings: dict[str, Any]

    @property
    def directory(self) -> Path:
        return Path(self.settings["directory"])

    def serve(self, **changes: str) -> None:
        """Start the deployed ServerApp as Flower does, on the institutions in this process."""

        def connect(context: Context) -> Port:
            return Port(self.ring.sites[int(context.node_config["partition-id"])])

        grid = InProcessGrid(make_client_app(connect), 3)
        settings = self.settings | changes
        context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=settings)
        make_server_app(run_deployed)(grid, context)

    def rounds(self) -> list[Any]:
        return [row["round"] for row in read_metrics(self.directory) if row["kind"] == "round"]


@pytest.fixture
def deployed(tmp_path: Path) -> Deployed:
    owner = create_identity_file(tmp_path / "coordinator.key")
    ring = make_ring(tmp_path / "ring", 3, rounds=3, spec=spec(), owner=owner)
    (tmp_path / "run.manifest").write_bytes(ring.secure.manifest)
    (tmp_path / "spec.json").write_bytes(encode_spec(spec()))
    names = {"manifest": "run.manifest", "identity": "coordinator.key", "spec": "spec.json", "directory": "out"}
    return Deployed(ring, {key: str(tmp_path / name) for key, name in names.items()})


def test_a_run_as_flower_starts_it(deployed: Deployed) -> None:
    deployed.serve()
    checkpoint = load_checkpoint(deployed.directory / CHECKPOINTS)
    assert (checkpoint.round, checkpoint.spec_digest) == (3, spec().digest)
    assert checkpoint.manifest == open_manifest(deployed.ring.secure.manifest)[1].hex()
    assert deployed.rounds() == [1, 2, 3]
    deployed.serve()  # decided by whoever holds the run's lock: another start may have gone further meanwhile
    assert deployed.rounds() == [1, 2, 3]


def test_the_bundle_offers_the_settings_that_are_read_and_no_other(deployed: Deployed) -> None:
    """Flower refuses what is not named there: a setting that nobody reads would be taken without a word."""
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert named == dict.fromkeys(deployed.settings, "")


@pytest.mark.parametrize("key", ["manifest", "identity", "spec", "directory"])
def test_a_missing_key_is_named(deployed: Deployed, key: str) -> None:
    with pytest.raises(ConfigError, match=f"run config: {key} is missing"):
        deployed.serve(**{key: ""})


def test_a_spec_of_another_run_is_refused(deployed: Deployed) -> None:
    Path(deployed.settings["spec"]).write_bytes(encode_spec(spec(rank=3)))
    with pytest.raises(ConfigError, match="rank=3"):
        deployed.serve()


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


def test_a_run_that_fails_says_why_in_its_directory(deployed: Deployed) -> None:
    with pytest.raises(ConfigError):
        deployed.serve(manifest="nowhere.manifest")
    assert "nowhere.manifest: the manifest cannot be read" in str(standing(deployed.directory))


def test_a_damaged_checkpoint_is_passed_over_aloud(deployed: Deployed, caplog: pytest.LogCaptureFixture) -> None:
    deployed.serve()
    newest = checkpoint_files(deployed.directory / CHECKPOINTS)[-1]
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    deployed.serve()
    assert "damaged: its content is not what was written; going on from round 2" in caplog.text
    assert deployed.rounds() == [1, 2, 3]
