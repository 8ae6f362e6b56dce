"""What a site adds to its environment, and the name under which Flower takes a bundle."""

from __future__ import annotations

import hashlib
import io
import zipfile
from typing import TYPE_CHECKING

import pytest

from client import joining
from client.joining import SuperNode, bundle_file_name, proxy_exceptions
from client.site_layout import SiteLayout
from common.errors import ProvisioningError
from common.provisioning import JoinFile

if TYPE_CHECKING:
    from pathlib import Path


def test_a_site_s_own_exceptions_from_the_proxy_stay() -> None:
    found = proxy_exceptions({"NO_PROXY": "intra.example, 10.0.0.0/8", "no_proxy": "localhost"})
    assert found["NO_PROXY"] == "intra.example,10.0.0.0/8,localhost,127.0.0.1"
    assert found["no_proxy"] == found["NO_PROXY"]
    assert proxy_exceptions({})["NO_PROXY"] == "127.0.0.1,localhost"


def bundle(project: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("pyproject.toml", project)
    return stream.getvalue()


def test_a_bundle_is_named_by_publisher_app_version_and_digest() -> None:
    content = bundle('[project]\nname="app"\nversion="1.2.0"\n[tool.flwr.app]\npublisher="us"')
    assert bundle_file_name(content) == f"us.app.1-2-0.{hashlib.sha256(content).hexdigest()[:8]}.fab"


def test_a_name_in_a_bundle_leads_to_no_other_folder() -> None:
    content = bundle('[project]\nname="app"\nversion="1"\n[tool.flwr.app]\npublisher="../../us"')
    assert "/" not in bundle_file_name(content)


@pytest.mark.parametrize("content", [b"", b"PK", bundle("= ="), bundle("[project]\nname='a'")])
def test_what_is_no_bundle_is_refused(content: bytes) -> None:
    with pytest.raises(ProvisioningError, match="not an app bundle"):
        bundle_file_name(content)


JOIN = JoinFile(
    federation="Test",
    site="ash",
    identity="1" * 64,
    address="coordinator.example:443",
    authority="an authority",
    coordinator="2" * 64,
    bundle="sha256:" + "3" * 64,
    darkroom="0.1.0",
    flower="1.41.0",
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
    monkeypatch.setattr("client.joining.os.access", lambda *_: False)
    return SuperNode(layout)


def test_an_administrators_installation_is_left_alone(installed: SuperNode) -> None:
    assert installed.is_installed(JOIN)


@pytest.mark.parametrize("name", ["ca.crt", "flower/installed", "bin/flwr-clientapp"])
def test_anything_else_than_the_join_files_is_installed_anew(installed: SuperNode, name: str) -> None:
    path = installed.site.supernode / name
    path.write_text("other")
    assert not installed.is_installed(JOIN)
    path.unlink()
    assert not installed.is_installed(JOIN)


def test_a_folder_of_bundles_that_its_user_can_write_to_is_made_anew(
    installed: SuperNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.joining.os.access", lambda *_: True)
    assert not installed.is_installed(JOIN)


def test_our_gate_comes_before_flowers_own_program(installed: SuperNode) -> None:
    first = installed.environment()["PATH"].split(":")[0]
    assert first == str(installed.site.supernode / "bin")
    assert "bundle_gate.py" in (installed.site.supernode / "bin" / "flwr-clientapp").read_text()


def test_what_the_coordinator_sends_runs_without_this_processes_secrets(installed: SuperNode) -> None:
    assert installed.command(JOIN, port=9094, node_config="").inherits == "ordinary"
