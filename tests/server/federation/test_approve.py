"""``approve``: which bundles are taken, and that a refusal changes nothing."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import Mock

import pytest
from typer.testing import CliRunner

from common.errors import ProvisioningError
from common.host import app_bundle
from common.host.app_bundle import parse_bundle
from common.provisioning import encode_request
from server.cli import app
from server.flower.runs import KeptBundle
from tests.federation.live_federation import federation_on_disk, site_request

if TYPE_CHECKING:
    from click.testing import Result

    from server.federation.directory import FederationDirectory

PROJECT = """
[project]
name = "darkroom"
version = "0.1.0"
[tool.flwr.app]
publisher = "darkroom"
"""


def packed(files: dict[str, str], *, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as bundle:
        for name, text in files.items():
            bundle.writestr(name, text)
    return made.getvalue()


GOOD = packed({"pyproject.toml": PROJECT, "client/app.py": "app = 1"})
OTHER = packed({"pyproject.toml": PROJECT, "client/app.py": "app = 2"})


def flipped(content: bytes, *, local: int, central: int, value: int) -> bytes:
    """One byte of the first entry's two headers changed."""
    made = bytearray(content)
    made[local] |= value
    made[made.index(b"PK\x01\x02") + central] |= value
    return bytes(made)


def damaged(content: bytes) -> bytes:
    made = bytearray(content)
    made[50:60] = b"\xff" * 10
    return bytes(made)


REFUSED = {
    "no zip": b"nonsense",
    "another zip": packed({"holiday.jpg": "nonsense"}),
    "no table": packed({"pyproject.toml": "good"}),
    "no publisher": packed({"pyproject.toml": PROJECT.partition("[tool")[0]}),
    "no version": packed({"pyproject.toml": PROJECT.replace("version", "motto")}),
    "no text": packed({"pyproject.toml": "\ud800".encode("utf-16", "surrogatepass").decode("latin-1")}),
    "damaged": damaged(GOOD),
    "encrypted": flipped(GOOD, local=6, central=8, value=1),
    "packed unknown": flipped(GOOD, local=8, central=10, value=0x40),
    "absolute": packed({"pyproject.toml": PROJECT, "/etc/passwd": "x"}),
    "outside": packed({"pyproject.toml": PROJECT, "../x": "x"}),
    "twice": packed({"pyproject.toml": PROJECT, "a//b": "x", "a/b": "y"}),
    "cut": GOOD[:-30],
}


@pytest.mark.parametrize("content", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_bundle_of_a_flower_app_is_refused(content: bytes) -> None:
    with pytest.raises(ProvisioningError, match="not an app bundle"):
        parse_bundle(content, source="x")


def test_a_bundle_is_small_packed_and_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    swollen = packed({"pyproject.toml": PROJECT, "bomb": "0" * 50_000})
    parse_bundle(swollen, source="x")
    monkeypatch.setattr(app_bundle, "MAX_BYTES", 40_000)
    with pytest.raises(ProvisioningError, match="when unpacked"):
        parse_bundle(swollen, source="x")
    monkeypatch.setattr(app_bundle, "MAX_PACKED_BYTES", len(swollen) - 1)
    with pytest.raises(ProvisioningError, match="more than"):
        parse_bundle(swollen, source="x")


class Office:
    """A federation, requests and bundles in files, and the command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.federation: FederationDirectory = federation_on_disk(folder / "federation")
        self.requests: dict[str, Path] = {}
        for name in ("ash", "birch"):
            path = self.requests[name] = folder / f"{name}.request"
            path.write_bytes(encode_request(site_request(folder, name)))

    def approve(self, name: str, content: bytes, *, answers: str | None = None) -> Result:
        bundle = self.folder / "given.fab"
        bundle.write_bytes(content)
        arguments = [str(self.requests[name]), "--bundle", str(bundle), "--directory", str(self.federation.root)]
        agreed = ["--yes"] if answers is None else []
        return CliRunner().invoke(app, ["approve", *arguments, *agreed], input=answers)

    def kept(self) -> tuple[bytes, dict[str, bytes]]:
        """The kept bundle and its unpacked files; nothing else lies around."""
        kept = KeptBundle(self.federation)
        assert not list(self.federation.root.glob(".*"))
        files = {str(p.relative_to(kept.app)): p.read_bytes() for p in kept.app.rglob("*") if p.is_file()}
        return kept.file.read_bytes(), files


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path)


def test_the_bundle_is_kept_as_it_was_given(office: Office) -> None:
    assert office.approve("ash", GOOD).exit_code == 0
    assert office.kept() == (GOOD, {"pyproject.toml": PROJECT.encode(), "client/app.py": b"app = 1"})
    assert office.federation.join_file("ash").bundle == parse_bundle(GOOD, source="x").digest


@pytest.mark.parametrize("content", [REFUSED["another zip"], REFUSED["damaged"], REFUSED["encrypted"]])
def test_a_refused_bundle_leaves_the_last_one_and_the_roster(office: Office, content: bytes) -> None:
    office.approve("ash", GOOD)
    before = office.kept()
    assert isinstance(office.approve("birch", content).exception, ProvisioningError)
    assert office.kept() == before
    assert [member.name for member in office.federation.roster().members()] == ["ash"]


def test_a_refused_request_leaves_the_last_bundle(office: Office) -> None:
    for name in ("ash", "birch"):
        office.approve(name, GOOD)
    office.federation.revoke("birch")
    before = office.kept()
    refused = office.approve("birch", OTHER, answers="")
    assert isinstance(refused.exception, ProvisioningError)
    assert "telephone" not in refused.output  # nobody is troubled for nothing
    assert office.kept() == before


def test_a_full_disk_leaves_the_last_bundle(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    office.approve("ash", GOOD)
    before = office.kept()

    def full(_directory: FederationDirectory, _requests: object, *, bundle: str) -> None:
        raise OSError(28, f"No space left on device for {bundle}", "roster.toml")

    monkeypatch.setattr(type(office.federation), "approve", full)
    assert isinstance(office.approve("birch", OTHER).exception, OSError)
    assert office.kept() == before


def test_a_new_bundle_names_the_sites_that_need_new_join_files(office: Office) -> None:
    office.approve("ash", GOOD)
    assert "another bundle" not in office.approve("birch", GOOD).output
    refused = office.approve("birch", OTHER, answers="y\nn\n")
    assert refused.exit_code != 0
    assert "join files of ash name" in refused.output
    assert office.kept()[0] == GOOD
    assert office.approve("birch", OTHER, answers="y\ny\n").exit_code == 0
    assert office.kept()[0] == OTHER
    said = office.approve("ash", OTHER)  # who asks gets a new one
    assert "another bundle" not in said.output


def test_with_yes_it_says_so_and_does_not_ask(office: Office) -> None:
    office.approve("ash", GOOD)
    said = office.approve("birch", OTHER)
    assert said.exit_code == 0
    assert "join files of ash name" in said.output


def test_a_revoked_site_needs_no_new_join_file(office: Office) -> None:
    office.approve("ash", GOOD)
    office.federation.revoke("ash")
    assert "another bundle" not in office.approve("birch", OTHER).output


@pytest.mark.parametrize("step", ["rename", "write"])
def test_a_bundle_that_cannot_be_kept_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    kept = KeptBundle(federation_on_disk(tmp_path / "coordinator"))
    kept.keep(GOOD)
    before = {path: path.read_bytes() for path in (*kept.app.rglob("*.*"), kept.file)}
    rename = Path.rename

    def full(path: Path, target: Path) -> Path:
        if path.name.endswith(".partial"):
            raise OSError("full")
        return rename(path, target)

    if step == "rename":
        monkeypatch.setattr(Path, "rename", full)
    else:
        monkeypatch.setattr("server.flower.runs.write_atomically", Mock(side_effect=OSError("full")))
    with pytest.raises(OSError, match="full"):
        kept.keep(OTHER)
    assert {path: path.read_bytes() for path in (*kept.app.rglob("*.*"), kept.file)} == before
    assert not list(kept.federation.root.glob(".app.*"))
