"""Which nodes Flower is told to take and to drop, against Flower's own table of nodes."""

from __future__ import annotations

import json
import logging
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from flwr.cli.supernode.register import try_load_public_key
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState

from common.durable_files import write_atomically
from common.errors import ProvisioningError
from server.federation.roster import Roster
from server.flower import superlink as launch_module
from server.flower.reconciler import RETRY_SECONDS, RosterReconciler
from server.flower.site_nodes import SiteNodes, number_by_key
from server.flower.superlink import Launch
from tests.federation.live_federation import BUNDLE, federation_on_disk, site_request

if TYPE_CHECKING:
    from server.federation.directory import FederationDirectory

pytestmark = pytest.mark.filterwarnings("ignore:No path_separator:DeprecationWarning")
OWNER = "owner"


class Flower:
    """Flower's commands on its own table of nodes, without a SuperLink."""

    def __init__(self, database: Path) -> None:
        database.parent.mkdir(parents=True)
        self.state = SqlLinkState(str(database), cast("Any", types.SimpleNamespace()), cast("Any", None))
        self.state.initialize()
        self.asked: list[str] = []

    def __call__(self, *arguments: str) -> str:
        self.asked.append(arguments[1])
        if arguments[1] == "list":
            rows = [{"node-id": str(node.node_id), "status": node.status} for node in self.state.get_node_info()]
            return json.dumps({"nodes": rows})
        if arguments[1] == "unregister":
            self.state.delete_node(OWNER, int(arguments[2]))
            return ""
        try:
            return json.dumps({"node-id": str(self.register(Path(arguments[2])))})
        except ValueError as error:
            raise ProvisioningError(f"flwr supernode register: code 1: {error}") from error

    def register(self, key: Path) -> int:
        return self.state.create_node(OWNER, OWNER, try_load_public_key(key), 30.0)

    def statuses(self) -> list[str]:
        return sorted(str(node.status) for node in self.state.get_node_info())


@pytest.fixture
def federation(tmp_path: Path) -> FederationDirectory:
    made = federation_on_disk(tmp_path / "coordinator")
    made.approve([site_request(tmp_path, name) for name in ("ash", "birch")], bundle=BUNDLE)
    return made


@pytest.fixture
def launch(federation: FederationDirectory) -> Launch:
    return Launch(federation, federation.config())


@pytest.fixture
def flower(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> Flower:
    made = Flower(launch.database)
    monkeypatch.setattr(Launch, "flwr", lambda _launch, *arguments: made(*arguments))
    return made


def numbers(launch: Launch) -> dict[str, str]:
    return {name: launch.node_id(name) for name in ("ash", "birch")}


def test_approved_sites_are_registered_once_and_revoked_ones_dropped(launch: Launch, flower: Flower) -> None:
    nodes = SiteNodes(launch)
    assert nodes.align(launch.directory.roster())
    first = numbers(launch)
    assert nodes.align(launch.directory.roster())
    assert numbers(launch) == first
    assert flower.statuses() == ["registered", "registered"]
    launch.directory.revoke("ash")
    for _ in range(2):
        assert nodes.align(launch.directory.roster())
    assert flower.statuses() == ["registered", "unregistered"]
    assert flower.asked.count("unregister") == 1


def test_a_node_whose_number_could_not_be_noted_is_found_by_its_key(
    launch: Launch, flower: Flower, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, _data: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(launch_module, "write_atomically", full)
        assert not SiteNodes(launch).align(launch.directory.roster())
    assert numbers(launch) == {"ash": "", "birch": ""}
    assert SiteNodes(launch).align(launch.directory.roster())
    listed = {str(node.node_id) for node in flower.state.get_node_info()}
    assert set(numbers(launch).values()) == listed
    assert flower.statuses() == ["registered", "registered"]


@pytest.mark.parametrize("note", [b"", b"17", b"\xff\xfe"])
def test_a_lost_or_damaged_note_is_mended(launch: Launch, flower: Flower, note: bytes) -> None:
    SiteNodes(launch).align(launch.directory.roster())
    before = numbers(launch)
    write_atomically(launch.node_file("ash", "id"), note)
    assert SiteNodes(launch).align(launch.directory.roster())
    assert numbers(launch) == before
    assert flower.statuses() == ["registered", "registered"]


def test_a_revoked_site_is_dropped_even_where_its_number_was_never_noted(launch: Launch, flower: Flower) -> None:
    SiteNodes(launch).align(launch.directory.roster())
    launch.node_file("ash", "id").unlink()
    launch.directory.revoke("ash")
    assert SiteNodes(launch).align(launch.directory.roster())
    assert flower.statuses() == ["registered", "unregistered"]


def test_an_older_roster_shuts_nobody_out(launch: Launch, flower: Flower, caplog: pytest.LogCaptureFixture) -> None:
    nodes, newest = SiteNodes(launch), launch.directory.roster()
    nodes.align(newest)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert nodes.align(Roster())
    assert flower.statuses() == ["registered", "registered"]
    assert len([line for line in caplog.messages if "is of no site in the roster" in line]) == 2  # once for each node
    before = numbers(launch)
    assert nodes.align(newest)
    assert numbers(launch) == before


def test_one_sites_trouble_keeps_no_other_out(launch: Launch, flower: Flower, caplog: pytest.LogCaptureFixture) -> None:
    ash, _ = launch.directory.roster().site
    write_atomically(launch.node_file("ash", "pub"), ash.node_key.encode())
    number = flower.register(launch.node_file("ash", "pub"))
    flower.state.delete_node(OWNER, number)
    nodes = SiteNodes(launch)
    for _ in range(2):
        assert nodes.align(launch.directory.roster())
    assert flower.statuses() == ["registered", "unregistered"]
    assert len([line for line in caplog.messages if "never takes its key again" in line]) == 1


def test_a_new_superlink_gets_every_node_anew(launch: Launch, flower: Flower) -> None:
    write_atomically(launch.node_file("ash", "id"), b"123")
    assert SiteNodes(launch).align(launch.directory.roster())
    assert flower.statuses() == ["registered", "registered"]
    assert launch.node_id("ash") != "123"


@pytest.mark.parametrize("content", [b"", b"no table" * 1000])
def test_a_table_of_another_form_is_said_so(launch: Launch, tmp_path: Path, content: bytes) -> None:
    damaged = tmp_path / "superlink.db"
    damaged.write_bytes(content)
    line = launch.directory.roster().site[0].node_key
    for path in (damaged, tmp_path / "missing.db"):
        with pytest.raises(ProvisioningError, match="cannot be read"):
            number_by_key(path, line)


def test_the_roster_is_tried_again_until_flower_took_it(
    launch: Launch, flower: Flower, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(_launch: Launch, *_arguments: str) -> str:
        raise OSError(28, "No space left on device", "nodes/ash.pub")

    time = [0.0]
    reconciler = RosterReconciler(launch, now=lambda: time[0])
    with monkeypatch.context() as patch:
        patch.setattr(Launch, "flwr", away)
        for _ in range(12):
            reconciler.reconcile()
            time[0] += 1
    assert len([line for line in caplog.messages if "not registered yet" in line]) == 1
    time[0] += RETRY_SECONDS
    reconciler.reconcile()
    assert flower.statuses() == ["registered", "registered"]
    asked = len(flower.asked)
    reconciler.reconcile()
    assert len(flower.asked) == asked


def test_a_roster_that_cannot_be_read_changes_nothing(
    launch: Launch, flower: Flower, caplog: pytest.LogCaptureFixture
) -> None:
    reconciler = RosterReconciler(launch)
    reconciler.reconcile()
    launch.directory.roster_file.write_bytes(b"\xff")
    reconciler.reconcile()
    reconciler.reconcile()
    assert flower.statuses() == ["registered", "registered"]
    assert len([line for line in caplog.messages if "is not read" in line]) == 1
