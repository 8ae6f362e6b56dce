"""An installation over what the SuperNode's user left: nothing outside the folder changes."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from client.connection.safe_folder import make_read_only, refuse_others_folder
from client.connection.supernode import SuperNode
from client.site.layout import SiteLayout
from common.errors import ProvisioningError
from tests.client.connection.test_bundle import PROJECT, bundle
from tests.client.connection.test_supernode import JOIN

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = bundle(PROJECT)
SENT = msgspec.structs.replace(JOIN, bundle=f"sha256:{hashlib.sha256(CONTENT).hexdigest()}")
APP = f"us.app.1.2.0.{hashlib.sha256(CONTENT).hexdigest()[:8]}"


def state(folder: Path) -> list[tuple[str, int, bytes]]:
    """Of everything in it."""
    return [
        (str(path), path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in (folder, *sorted(folder.rglob("*")))
    ]


@dataclass(frozen=True)
class Attacked:
    node: SuperNode
    fab: Path
    others: Path
    """What an attacker would have root change."""

    @property
    def folder(self) -> Path:
        return self.node.site.supernode


@pytest.fixture
def attacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attacked:
    layout = SiteLayout(tmp_path / "site")
    layout.supernode.mkdir(parents=True, mode=0o755)
    others = tmp_path / "others"
    (others / "folder").mkdir(parents=True, mode=0o700)
    (others / "file").write_text("root's own")
    (others / "file").chmod(0o600)
    fab = tmp_path / "bundle.fab"
    fab.write_bytes(CONTENT)

    def flower(*_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
        app = layout.flower_home / "apps" / APP
        app.mkdir(parents=True)
        (app / "pyproject.toml").write_text(PROJECT)
        return subprocess.CompletedProcess((), 0, "", "")

    monkeypatch.setattr("client.connection.supernode.subprocess.run", flower)
    return Attacked(SuperNode(layout), fab, others)


@pytest.mark.parametrize("name", ["flower", "bin", "ca.crt"])
@pytest.mark.parametrize("target", ["folder", "file", "none"])
def test_a_link_in_the_way_is_refused(attacked: Attacked, name: str, target: str) -> None:
    (attacked.folder / name).symlink_to(attacked.others / target)
    before = state(attacked.others)
    with pytest.raises(ProvisioningError, match=f"{name}: a symbolic link"):
        attacked.node.install(SENT, attacked.fab)
    assert state(attacked.others) == before


def test_a_link_in_place_of_the_whole_folder_is_refused(attacked: Attacked) -> None:
    attacked.folder.rmdir()
    attacked.folder.symlink_to(attacked.others / "folder")
    before = state(attacked.others)
    with pytest.raises(ProvisioningError, match="supernode: a symbolic link"):
        attacked.node.install(SENT, attacked.fab)
    assert state(attacked.others) == before


@pytest.mark.parametrize("target", ["folder", "file"])
@pytest.mark.parametrize(
    "name", ["flower/apps", "flower/bundle", "flower/installed", "flower/apps/x", "bin/flwr-clientapp"]
)
def test_links_further_in_are_removed_and_not_followed(attacked: Attacked, name: str, target: str) -> None:
    link = attacked.folder / name
    link.parent.mkdir(parents=True)
    link.symlink_to(attacked.others / target)
    link.parent.chmod(0o555)
    before = state(attacked.others)
    attacked.node.install(SENT, attacked.fab)
    assert state(attacked.others) == before
    assert not link.is_symlink()


def test_what_is_installed_replaces_everything_that_was_there_and_cannot_be_written(attacked: Attacked) -> None:
    old = attacked.folder / "flower" / "apps" / "old"
    old.mkdir(parents=True)
    (old / "code.py").write_text("x")
    for path in (old / "code.py", old, old.parent):
        path.chmod(0o555)
    mask = os.umask(0o077)
    try:
        attacked.node.install(SENT, attacked.fab)
    finally:
        os.umask(mask)
    assert not old.exists()
    modes = {
        str(path.relative_to(attacked.folder)): stat.S_IMODE(path.stat().st_mode)
        for path in attacked.folder.rglob("*")
        if "bundle" not in path.parts
    }
    assert modes == {
        "ca.crt": 0o644,
        "bin": 0o755,
        "bin/flwr-clientapp": 0o755,
        "flower": 0o755,
        "flower/installed": 0o644,
        "flower/apps": 0o555,
        f"flower/apps/{APP}": 0o555,
        f"flower/apps/{APP}/pyproject.toml": 0o444,
    }
    assert attacked.node.site.authority_file.read_text() == SENT.authority
    assert attacked.node.is_installed(SENT) == (os.geteuid() != 0)  # root can always write


def test_a_link_in_a_bundle_is_refused(attacked: Attacked) -> None:
    for target in ("folder", "file"):
        before = state(attacked.others)
        folder = attacked.folder / target
        folder.mkdir()
        (folder / "link").symlink_to(attacked.others / target)
        with pytest.raises(ProvisioningError, match="symbolic link"):
            make_read_only(folder)
        assert state(attacked.others) == before


def test_a_folder_where_others_could_put_links_meanwhile_is_refused(attacked: Attacked) -> None:
    folder = attacked.folder
    refuse_others_folder(folder)
    refuse_others_folder(folder / "none")
    folder.chmod(0o757)
    with pytest.raises(ProvisioningError, match="chown root"):
        refuse_others_folder(folder)
    folder.chmod(0o750)
    refuse_others_folder(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("client.connection.safe_folder.os.geteuid", lambda: os.getuid() + 1)
        with pytest.raises(ProvisioningError, match="another user can write here"):
            refuse_others_folder(folder)
