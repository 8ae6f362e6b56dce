"""What one user of a pilot can do to another's things: nothing but ask the own steward.

Looked at from the SuperNode's user, because the coordinator chooses what runs there.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from client.connection.supernode import request_to_join
from client.operations.new_site import make_site
from client.site.settings import read_site
from simulations.pilot.site import LocalSite, SiteUsers
from simulations.pilot.users import UnixUser, whole_installation, why_not_separate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root starts processes as other users")
SECRETS = ("identity.key", "vault.key", "site.toml", "policy.toml", "ledger.sqlite", "audit.log", "vault/index.sqlite3")
ATTACH = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long] * 4
print(libc.ptrace(16, int(sys.argv[1]), 0, 0), ctypes.get_errno())
"""
"""PTRACE_ATTACH."""


@dataclass(frozen=True)
class Two:
    ours: LocalSite
    theirs: LocalSite

    def as_user(self, user: UnixUser, *command: str, network: bool = True) -> subprocess.CompletedProcess[str]:
        needed = (*whole_installation(), self.ours.root.parent)
        prefix = user.prefix(needed, network=network)
        return subprocess.run([*prefix, *command], capture_output=True, text=True, timeout=60, check=False)

    def reads(self, user: UnixUser, path: Path) -> bool:
        done = self.as_user(user, "head", "-c", "0", str(path))
        assert done.returncode == 0 or "Permission denied" in done.stderr, done.stderr
        return done.returncode == 0


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Two:
    root = tmp_path_factory.mktemp("users")
    root.chmod(0o755)
    if reason := why_not_separate([root]):
        pytest.skip(reason)
    sites = []
    for number, name in enumerate(("ash", "birch")):
        users = SiteUsers.numbered(number + 20)
        site = LocalSite(name=name, root=root / name, port=1, users=users)
        make_site(site.root, name)
        request_to_join(site.layout, name=name, contact="x")
        site.give_away(users)
        sites.append(site)
    return Two(*sites)


def users_of(site: LocalSite) -> SiteUsers:
    assert site.users is not None
    return site.users


def test_a_command_is_found_behind_closed_folders_whatever_the_umask_which_it_keeps(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    closed = tmp_path_factory.mktemp("closed")
    needed = closed / "a" / "b"
    needed.mkdir(parents=True)
    closed.chmod(0o700)
    (needed / "told").write_text("found")
    needed.chmod(0o755)
    (needed / "told").chmod(0o644)
    if reason := why_not_separate([needed]):
        pytest.skip(reason)
    prefix = UnixUser(uid=SiteUsers.numbered(30).steward.uid).prefix([needed])
    before = os.umask(0o077)  # as every command of ours sets it
    try:
        done = subprocess.run(
            [*prefix, "sh", "-c", f"cat {needed}/told; umask"], capture_output=True, text=True, timeout=60, check=False
        )
    finally:
        os.umask(before)
    assert (done.stdout.split(), done.returncode) == (["found0077"], 0), done.stderr


@pytest.mark.parametrize("name", SECRETS)
def test_the_supernodes_user_reads_nothing_of_its_steward_nor_of_another(two: Two, name: str) -> None:
    supernode = users_of(two.ours).supernode
    for site in (two.ours, two.theirs):
        assert (site.root / name).is_file()
        assert not two.reads(supernode, site.root / name)
    assert two.reads(users_of(two.ours).steward, two.ours.root / name)


def test_a_token_is_for_its_own_site_alone(two: Two) -> None:
    token = two.ours.layout.run / "token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o640  # in itself, not only for want of a way to it
    assert two.reads(users_of(two.ours).supernode, token)
    assert two.reads(users_of(two.ours).steward, token)
    for user in (users_of(two.theirs).supernode, users_of(two.theirs).steward):
        assert not two.reads(user, token)


def test_a_node_key_is_for_its_own_supernode_alone(two: Two) -> None:
    key = two.ours.layout.node_key_file
    assert two.reads(users_of(two.ours).supernode, key)
    for user in (users_of(two.ours).steward, users_of(two.theirs).supernode, users_of(two.theirs).steward):
        assert not two.reads(user, key)


def test_the_supernodes_user_can_neither_list_nor_change_the_sites_folder(two: Two) -> None:
    user, run = users_of(two.ours).supernode, two.ours.layout.run
    assert two.as_user(user, "ls", str(two.ours.root)).returncode != 0
    # whoever could write there could put a socket of its own in the steward's place
    for path in (two.ours.root / "x", run / "x"):
        assert "Permission denied" in two.as_user(user, "touch", str(path)).stderr
    assert "Permission denied" in two.as_user(user, "mv", str(run), str(two.ours.root / "y")).stderr


@pytest.fixture
def steward(two: Two) -> Iterator[subprocess.Popen[str]]:
    """A process of the steward's user; any will do."""
    prefix = users_of(two.ours).steward.prefix(whole_installation())
    command = [*prefix, "sh", "-c", "echo up; exec sleep 60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield process
        process.kill()


def test_the_supernodes_user_cannot_look_into_the_stewards_process(two: Two, steward: subprocess.Popen[str]) -> None:
    supernode = users_of(two.ours).supernode
    attached = two.as_user(supernode, sys.executable, "-c", ATTACH, str(steward.pid))
    assert attached.stdout.split() == ["-1", "1"]  # EPERM
    for name in ("mem", "environ", "maps", "fd"):
        done = two.as_user(supernode, "ls" if name == "fd" else "head", f"/proc/{steward.pid}/{name}")
        assert "Permission denied" in done.stderr
    assert two.as_user(supernode, "kill", str(steward.pid)).returncode != 0


def test_such_a_process_has_no_capability_and_gains_none(two: Two) -> None:
    done = two.as_user(users_of(two.ours).steward, "cat", "/proc/self/status")
    rows = dict(line.split(":\t", 1) for line in done.stdout.splitlines() if ":\t" in line)
    assert {rows[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert rows["NoNewPrivs"] == "1"
    assert set(rows["Uid"].split()) == {str(users_of(two.ours).steward.uid)}
    assert set(rows["Groups"].split()) == {str(users_of(two.ours).supernode.uid)}


def test_a_steward_has_no_network(two: Two) -> None:
    listing = two.as_user(users_of(two.ours).steward, "cat", "/proc/net/dev", network=False).stdout
    assert [line.split(":")[0].strip() for line in listing.splitlines()[2:]] == ["lo"]
    connect = "import socket; socket.create_connection(('127.0.0.1', 9), timeout=2)"
    done = two.as_user(users_of(two.ours).steward, sys.executable, "-c", connect, network=False)
    assert "unreachable" in done.stderr  # not even loopback, which would refuse


def test_a_steward_gives_its_socket_to_the_group_by_number(two: Two) -> None:
    assert read_site(two.ours.site_file).service.group == str(users_of(two.ours).supernode.uid)
