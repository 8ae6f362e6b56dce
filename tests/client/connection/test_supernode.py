"""What a site adds to its environment, and what it takes for an installation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from client.connection import supernode as joining
from client.connection.supernode import SuperNode, proxy_exceptions
from client.site.layout import SiteLayout
from common.provisioning import JoinFile

if TYPE_CHECKING:
    from pathlib import Path


def test_a_site_s_own_exceptions_from_the_proxy_stay() -> None:
    found = proxy_exceptions({"NO_PROXY": "intra.example, 10.0.0.0/8", "no_proxy": "localhost"})
    assert found["NO_PROXY"] == "intra.example,10.0.0.0/8,localhost,127.0.0.1"
    assert found["no_proxy"] == found["NO_PROXY"]
    assert proxy_exceptions({})["NO_PROXY"] == "127.0.0.1,localhost"


JOIN = JoinFile(
    federation="Test",
    site="ash",
    identity="1" * 64,
    address="coordinator.example:443",
    authority="an authority",
    coordinator="2" * 64,
    bundle="sha256:" + "3" * 64,
    darkroom="0.1.0",
    flower="1.42.0",
)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SuperNode:
    """What an administrator's ``install`` leaves, as a user without rights sees it."""
    layout = SiteLayout(tmp_path)
    texts = {"ca.crt": JOIN.authority, "flower/installed": JOIN.bundle, "bin/flwr-clientapp": joining._program_text()}
    for name, text in texts.items():
        path = layout.supernode / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    app = layout.flower_home / "apps" / "us.app.1.33333333"
    app.mkdir(parents=True)
    (app / "pyproject.toml").write_text("")
    monkeypatch.setattr("client.connection.supernode.os.access", lambda *_: False)
    return SuperNode(layout)


def test_an_administrators_installation_is_left_alone(installed: SuperNode) -> None:
    assert installed.is_installed(JOIN)


@pytest.mark.parametrize("name", ["ca.crt", "flower/installed", "bin/flwr-clientapp"])
def test_anything_else_than_the_join_files_is_installed_anew(installed: SuperNode, name: str) -> None:
    path = installed.site.supernode / name
    path.write_text("other")
    assert not installed.is_installed(JOIN)
    path.write_bytes(b"\xff\xfe")
    assert not installed.is_installed(JOIN)
    path.unlink()
    assert not installed.is_installed(JOIN)


def test_a_bundle_that_is_gone_or_is_led_elsewhere_is_installed_anew(installed: SuperNode) -> None:
    apps = installed.site.flower_home / "apps"
    for name in ("us.app.1.33333333", "."):
        (apps / name).rename(apps.parent / "elsewhere")
        assert not installed.is_installed(JOIN)
        (apps / name).symlink_to(apps.parent / "elsewhere")
        assert not installed.is_installed(JOIN)
        (apps / name).unlink()
        (apps.parent / "elsewhere").rename(apps / name)
    assert installed.is_installed(JOIN)


def test_a_folder_of_bundles_that_its_user_can_write_to_is_made_anew(
    installed: SuperNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.connection.supernode.os.access", lambda *_: True)
    assert not installed.is_installed(JOIN)


def test_our_gate_comes_before_flowers_own_program(installed: SuperNode) -> None:
    first = installed.environment()["PATH"].split(":")[0]
    assert first == str(installed.site.supernode / "bin")
    assert "bundle_gate.py" in (installed.site.supernode / "bin" / "flwr-clientapp").read_text()


def test_what_the_coordinator_sends_runs_without_this_processes_secrets(installed: SuperNode) -> None:
    assert installed.command(JOIN, port=9094, node_config="").inherits == "ordinary"
