"""A coordinator sends another app than the one that a site installed: against a real SuperLink, it does not run there.

The attacks are run first at a SuperNode without our gate, to see that they are attacks.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from client.connection.supernode import SuperNode, request_to_join
from client.site.layout import SiteLayout
from common.host.flower_commands import program
from common.provisioning import coordinator_fingerprint
from server.flower.superlink import CONNECTION, Launch
from simulations.pilot.users import FIRST_UID, UnixUser, give, whole_installation, why_not_separate
from tests.federation.foreign_bundles import write_app
from tests.federation.live_federation import ROOT, LiveFederation, environment, free_port, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
USER = UnixUser(uid=FIRST_UID + 50)


@dataclass(frozen=True)
class JoinedSite:
    """A site whose SuperNode runs as a user without rights where root runs this, else as whoever does."""

    node: int


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    subprocess.run(
        [program("flwr"), "build", "--app", str(ROOT)], cwd=folder, env=environment(), check=True, capture_output=True
    )
    (built,) = folder.glob("*.fab")
    return built


def as_user(needed: Sequence[Path], *command: str) -> list[str]:
    return [*(() if why_not_separate(needed) else USER.prefix((*whole_installation(), *needed))), *command]


@contextlib.contextmanager
def site(federation: LiveFederation, folder: Path, name: str, bundle: Path, *, gate: bool) -> Iterator[JoinedSite]:
    """Approve a new site in the running federation and join it with the product's own command."""
    layout = SiteLayout(folder / name)
    layout.root.mkdir(mode=0o700)
    request, _ = request_to_join(layout, name=name, contact="x")
    digest = f"sha256:{hashlib.sha256(bundle.read_bytes()).hexdigest()}"
    (join_file,) = federation.directory.approve([request], bundle=digest)
    launch = Launch(federation.directory, federation.config)
    wait_for(lambda: launch.node_id(name), 40, "the node is registered")
    supernode = SuperNode(layout)
    fingerprint = coordinator_fingerprint(federation.directory.identity().public)
    join = supernode.open_join_file(join_file, fingerprint=fingerprint)
    supernode.install(join, bundle)
    if os.geteuid() == 0:
        give(layout.root, USER)
    if gate:
        copy = layout.supernode / "site.join"
        copy.write_bytes(join_file.read_bytes())
        words = [sys.executable, "-m", "client.cli", "join", str(copy), "--bundle", str(bundle)]
        words += ["--fingerprint", fingerprint, "--directory", str(layout.root), "--port", str(free_port())]
        words += ["--steward", f'steward="unix://{layout.root}/none.sock" token="{layout.root}/token"']
        added = {"HOME": str(layout.supernode)}
    else:
        words = list(supernode.command(join, port=free_port(), node_config="x=1").arguments)
        added = {**supernode.environment(), "PATH": environment()["PATH"], "HOME": str(layout.supernode)}
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            as_user([layout.root, folder / "open"], *words),
            env={**environment(), **added},
            cwd="/",
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for(lambda: "online" in federation.node_status(name), 60, f"{name} is online: {log}")
        yield JoinedSite(node=int(launch.node_id(name)))
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run_app(federation: LiveFederation, app: Path, node: int, answer: Path) -> str:
    """What the site's reply was, as the coordinator's side of the app saw it."""
    launch = Launch(federation.directory, federation.config)
    said = launch.flwr("run", str(app), CONNECTION, "-c", f'node="{node}" answer="{answer}"', "--format", "json")
    assert '"success": true' in said, said
    wait_for(answer.exists, 40, "the app's server side has a reply; see logs/superexec.log")
    return answer.read_text()


def path_as_version(bundle: Path, folder: Path) -> str:
    """From the installed bundle's folder, up to the root and down to one that the SuperNode's user can write to."""
    digits = hashlib.sha256(bundle.read_bytes()).hexdigest()[:8]
    return f"0.1.0.{digits}/{'../' * 30}{str(folder).lstrip('/')}/unpacked"


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """In a folder that every user can write to."""
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    return folder / "ran"


@pytest.fixture
def apps(tmp_path: Path, bundle: Path, marker: Path) -> tuple[Path, Path]:
    """Another app, and one that passes for another version of the installed one."""
    named = {"package": "darkroom", "publisher": "darkroom", "version": path_as_version(bundle, marker.parent)}
    return write_app(tmp_path / "plain", marker=marker), write_app(tmp_path / "path", marker=marker, **named)


def test_a_read_only_folder_alone_keeps_one_out_and_not_the_other(
    federation: LiveFederation, tmp_path: Path, bundle: Path, marker: Path, apps: tuple[Path, Path]
) -> None:
    if why_not_separate([tmp_path]):
        pytest.skip("root writes to read-only folders, and only root starts others")
    with site(federation, tmp_path, "larch", bundle, gate=False) as joined:
        assert "PermissionError" in run_app(federation, apps[0], joined.node, tmp_path / "answer0")
        assert not marker.exists()
        # the coordinator, on the same machine here, unpacks it first and for itself alone; on its own the site does
        assert run_app(federation, apps[1], joined.node, tmp_path / "answer1").startswith("error")
        for path in marker.parent.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        assert "foreign" in run_app(federation, apps[1], joined.node, tmp_path / "answer2")
        assert marker.exists()


def test_a_foreign_bundle_does_not_run(
    federation: LiveFederation, tmp_path: Path, bundle: Path, marker: Path, apps: tuple[Path, Path]
) -> None:
    with site(federation, tmp_path, "maple", bundle, gate=True) as joined:
        for number, app in enumerate(apps):
            said = run_app(federation, app, joined.node, tmp_path / f"answer{number}")
            assert said.startswith("error")
            assert "this site runs one bundle alone, and this is another" in said
            assert str(tmp_path) not in said  # nothing of the site's paths goes to the coordinator
    assert not marker.exists()
