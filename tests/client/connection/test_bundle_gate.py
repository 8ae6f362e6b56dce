"""What the gate lets through, on a stand-in for Flower's module; the real one is in tests/federation."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from client.connection import bundle_gate
from client.connection.bundle_gate import ForeignBundle, watch
from common.host.flower_commands import FLOWER

OURS, THEIRS = b"our bundle", b"their bundle"


def digits(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Runtime(SimpleNamespace):
    """Names of Flower's module, with what its server said."""

    def __init__(self, content: bytes, *, said: str | None = None, version: str = "0.1.0") -> None:
        self.installed: list[bytes] = []
        self.fab = SimpleNamespace(content=content, hash_str=said or digits(content))
        self.run = SimpleNamespace(fab_id="us/app", fab_version=version)

    def pull_task_input(self, client: object) -> tuple[Any, ...]:
        return ("message", client, self.run, self.fab)

    def install_from_fab(self, content: bytes, *, skip_prompt: bool) -> Path:
        assert skip_prompt
        self.installed.append(content)
        return Path(f"/apps/us.app.0.1.0.{digits(content)[:8]}")

    def get_project_dir(self, fab_id: str, fab_version: str, fab_hash: str) -> Path:
        return Path(f"/apps/{fab_id.replace('/', '.')}.{fab_version}.{fab_hash[:8]}")


def taken(runtime: Runtime) -> Path:
    watch(runtime, f"sha256:{digits(OURS)}")
    _, context, _, fab = runtime.pull_task_input("client")
    assert context == "client"
    path: Path = runtime.install_from_fab(fab.content, skip_prompt=True)
    return path


def test_the_installed_bundle_passes() -> None:
    runtime = Runtime(OURS)
    assert taken(runtime) == Path(f"/apps/us.app.0.1.0.{digits(OURS)[:8]}")
    assert runtime.installed == [OURS]


@pytest.mark.parametrize(
    "runtime",
    [
        Runtime(THEIRS),
        Runtime(THEIRS, said=digits(OURS)),
        Runtime(OURS, said=digits(THEIRS)),
        Runtime(OURS, said=digits(OURS)[:8]),
    ],
    ids=["other", "other under our name", "ours under another name", "the digest's beginning"],
)
def test_any_other_is_refused_before_it_is_unpacked(runtime: Runtime) -> None:
    with pytest.raises(ForeignBundle, match="this is another"):
        taken(runtime)
    assert runtime.installed == []


@pytest.mark.parametrize("version", ["0.2.0", f"0.1.0.{digits(OURS)[:8]}/../../../tmp/x"])
def test_the_installed_bundle_is_loaded_from_where_it_is_installed(version: str) -> None:
    with pytest.raises(ForeignBundle, match="otherwise"):
        taken(Runtime(OURS, version=version))


def test_it_is_for_the_pinned_flower_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"{FLOWER}." == bundle_gate.MADE_FOR
    monkeypatch.setattr(bundle_gate, "version", lambda _: "1.999.0")
    with pytest.raises(SystemExit, match=r"1\.999\.0"):
        bundle_gate.main()


def test_without_an_installed_bundle_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError):
        bundle_gate.main()


def test_the_way_to_the_client_app_leads_past_the_supernode() -> None:
    """Half of the time that a message's process takes to start."""
    code = """
import sys
from importlib import import_module
from client.connection.bundle_gate import leave_supernode_out
leave_supernode_out(sys.modules)
import_module("flwr.supernode.runtime.run_clientapp")
assert callable(import_module("flwr.supernode.cli").flwr_clientapp)
sys.exit("alembic" in sys.modules or "flwr.supernode.start_client_internal" in sys.modules)
"""
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
