"""The coordinator's directory: approving, asking again, and revoking for good."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from common.crypto.primitives import Identity
from common.errors import ProvisioningError
from common.provisioning import create_request
from server.federation.directory import FederationDirectory
from tests.federation.live_federation import BUNDLE, federation_on_disk, site_request

if TYPE_CHECKING:
    from pathlib import Path

    from server.federation.roster import Roster


def test_approved_sites_are_the_manifests_roster(tmp_path: Path) -> None:
    directory = federation_on_disk(tmp_path / "coordinator")
    requests = [site_request(tmp_path, name) for name in ("cedar", "aspen")]
    paths = directory.approve(requests, bundle=BUNDLE)
    assert [path.name for path in paths] == ["cedar.join", "aspen.join"]
    assert [(m.name, m.key) for m in directory.roster().members()] == sorted((r.name, r.identity) for r in requests)


def test_asking_again_changes_nothing(tmp_path: Path) -> None:
    directory = federation_on_disk(tmp_path / "coordinator")
    request = site_request(tmp_path, "aspen")
    directory.approve([request], bundle=BUNDLE)
    before = directory.roster()
    directory.approve([request], bundle=BUNDLE)
    assert directory.roster() == before


def test_a_revoked_site_never_comes_back_with_its_name_or_keys(tmp_path: Path) -> None:
    directory = federation_on_disk(tmp_path / "coordinator")
    identity = Identity.generate()
    old = site_request(tmp_path, "aspen", identity=identity)
    directory.approve([old], bundle=BUNDLE)
    directory.revoke("aspen")
    assert directory.roster().members() == ()
    fresh_node = site_request(tmp_path, "birch", identity=identity)
    same_node = create_request(name="cedar", contact="x", identity=Identity.generate(), node_key=old.node_key)
    fresh_keys = site_request(tmp_path / "again", "aspen")
    for again in (old, fresh_node, same_node, fresh_keys):
        with pytest.raises(ProvisioningError, match="revoked"):
            directory.approve([again], bundle=BUNDLE)
    assert directory.roster().members() == ()


def test_a_refused_request_approves_none_of_the_others(tmp_path: Path) -> None:
    directory = federation_on_disk(tmp_path / "coordinator")
    directory.approve([site_request(tmp_path, "aspen")], bundle=BUNDLE)
    other = site_request(tmp_path, "birch")
    with pytest.raises(ProvisioningError):
        directory.approve([other, site_request(tmp_path / "again", "aspen")], bundle=BUNDLE)
    assert [member.name for member in directory.roster().members()] == ["aspen"]


def test_revoking_somebody_unknown_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ProvisioningError, match="not in"):
        federation_on_disk(tmp_path / "coordinator").revoke("aspen")


def test_a_federation_is_not_made_over_another(tmp_path: Path) -> None:
    federation_on_disk(tmp_path / "coordinator")
    with pytest.raises(ProvisioningError, match="exists"):
        federation_on_disk(tmp_path / "coordinator")


def test_a_revocation_while_another_site_is_approved_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both read the roster, change it and write it back."""
    directory = federation_on_disk(tmp_path / "coordinator")
    directory.approve([site_request(tmp_path, "aspen")], bundle=BUNDLE)
    request, write, revoking = site_request(tmp_path, "birch"), FederationDirectory.write_roster, threading.Event()
    other = threading.Thread(target=lambda: (revoking.set(), directory.revoke("aspen")))

    def slow(federation: FederationDirectory, roster: Roster) -> None:
        if threading.current_thread() is not other:
            other.start()
            revoking.wait()
            other.join(0.5)  # it waits for us; without the lock it has read and written by now
        write(federation, roster)

    monkeypatch.setattr(FederationDirectory, "write_roster", slow)
    directory.approve([request], bundle=BUNDLE)
    other.join()
    assert {site.name: site.status for site in directory.roster().site} == {"aspen": "revoked", "birch": "approved"}


def test_an_init_that_is_broken_off_leaves_nothing_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken_off(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FederationDirectory, "issue", broken_off)
        with pytest.raises(KeyboardInterrupt):
            federation_on_disk(tmp_path / "coordinator")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "coordinator").mkdir()
    (tmp_path / "coordinator" / ".init-0").mkdir()  # as a power cut would leave it
    made = federation_on_disk(tmp_path / "coordinator")
    assert made.config().name == "Pilot"
    assert made.root.stat().st_mode & 0o777 == 0o700


def test_a_federation_is_not_made_among_other_files(tmp_path: Path) -> None:
    (tmp_path / "coordinator").mkdir()
    (tmp_path / "coordinator" / "ca.key").write_text("left by an init that was broken off")
    with pytest.raises(ProvisioningError, match="remove it and try again"):
        federation_on_disk(tmp_path / "coordinator")
    (tmp_path / "file").touch()
    with pytest.raises(ProvisioningError, match="no empty folder"):
        federation_on_disk(tmp_path / "file")
