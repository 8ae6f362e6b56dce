"""One institution on this machine: a folder of its own, filled with the commands that an institution uses."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from client.connection.supernode import steward_node_config
from client.site.layout import SiteLayout
from client.site.open_site import link_to_steward
from client.site.settings import read_site
from client.site.vault_access import count_vault
from client.vault.records import today
from common.errors import StewardUnavailable
from simulations.pilot.processes import client, client_command
from simulations.pilot.users import FIRST_UID, UnixUser, as_user, give

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from common.host.supervision import Command

_RULES: Final = """\
# Neighbouring slices of a scan are nearly equal, and these pictures do not say of whom they are.
[pixels]
near_duplicates = "keep"
"""
"""``ingest.toml``; all else as :mod:`client.intake.rules` has it."""


@dataclass(frozen=True, kw_only=True)
class SiteUsers:
    """Two Unix users, of whom only the steward's is in both groups."""

    steward: UnixUser
    supernode: UnixUser

    @classmethod
    def numbered(cls, number: int) -> SiteUsers:
        """Of the site with this number."""
        steward, supernode = FIRST_UID + 2 * number, FIRST_UID + 2 * number + 1
        return cls(steward=UnixUser(uid=steward, groups=(supernode,)), supernode=UnixUser(uid=supernode))


@dataclass(frozen=True, kw_only=True)
class Sent:
    """What a site joins with."""

    join_file: Path
    bundle: Path
    fingerprint: str

    def words(self) -> tuple[str, ...]:
        """For the command line."""
        return (str(self.join_file), "--bundle", str(self.bundle), "--fingerprint", self.fingerprint)


@dataclass(frozen=True, kw_only=True)
class LocalSite:
    """An institution's folder and processes."""

    name: str
    root: Path
    port: int
    """Loopback port of its SuperNode."""
    users: SiteUsers | None = None
    """Of steward and SuperNode; None: whoever starts them."""

    @property
    def layout(self) -> SiteLayout:
        """Where its things lie."""
        return SiteLayout(self.root)

    @property
    def site_file(self) -> Path:
        """Its settings."""
        return self.layout.site_file

    def copy_base(self, base: Path) -> Path:
        """Its own copy: what others own, its steward's user may not be able to read."""
        return shutil.copytree(base, self.root / "base", copy_function=shutil.copyfile)

    def fill_in(self, *, base: Path, base_digest: str, coordinator: str, unit: str) -> None:
        """What ``darkroom-client init`` leaves to people."""
        _replace(self.site_file, 'base = "base"', f'base = "{base}"')
        policy = self.layout.policy_file
        _replace(policy, "coordinators = []", f'coordinators = ["{coordinator}"]')
        _replace(policy, "base_digests = []", f'base_digests = ["{base_digest}"]')
        _replace(policy, 'units = ["subject"]', f'units = ["{unit}"]')
        _replace(policy, 'adapter_kinds = ["B", "core"]', 'adapter_kinds = ["AB", "B", "core"]')

    def name_institutions(self, keys: Sequence[str]) -> None:
        """What people write once they have compared the fingerprints; here nobody is in between."""
        named = ", ".join(f'"{key}"' for key in keys)
        _replace(self.layout.policy_file, "institutions = []", f"institutions = [{named}]")

    @property
    def key(self) -> str:
        """Its public key, as the others hear it."""
        return self.layout.identity_public_file.read_text(encoding="ascii").strip()

    def fill_vault(self, pictures: Path, log: Path) -> int:
        """Take an image folder into the vault, by the command for that; how many pictures can be trained with."""
        rules = self.root / "ingest.toml"
        rules.write_text(_RULES, encoding="utf-8")
        place = ("--config", str(self.site_file), "--rules", str(rules))
        client(log, "ingest", str(pictures), *place, "--commit", "--yes")
        counts = count_vault(read_site(self.site_file).vault, day=today(), expected=None)
        return counts.pictures - counts.held_out

    def receive(self, sent: Sent, log: Path) -> Sent:
        """Take in what the coordinator sent, and give the site's things to its users; the copies that it joins with."""
        copies = self.layout.supernode / sent.join_file.name, self.layout.supernode / sent.bundle.name
        for given, copy in zip((sent.join_file, sent.bundle), copies, strict=True):
            shutil.copyfile(given, copy)
            copy.chmod(0o644)
        received = replace(sent, join_file=copies[0], bundle=copies[1])
        if self.users is not None:
            self.give_away(self.users)
            # by root, after that: the SuperNode's user cannot change what it may run
            client(log, "install", *received.words(), "--directory", str(self.root))
        return received

    def give_away(self, users: SiteUsers) -> None:
        """To the steward everything, to the SuperNode its key and log and the way to socket and token."""
        group = users.supernode.uid
        _replace(self.site_file, '# group = "darkroom"', f'group = "{group}"')
        give(self.root, users.steward)
        self.layout.supernode_log.parent.mkdir(exist_ok=True)
        for path in (self.layout.supernode_log.parent, self.layout.node_key_file):
            give(path, users.supernode)
        # root's own, so that nobody puts another program or home for Flower in their place
        os.chown(self.layout.supernode, 0, group)
        self.layout.supernode.chmod(0o750)
        for folder in (self.root, self.layout.run):
            os.chown(folder, -1, group)
            folder.chmod(0o710)
        token = self.layout.run / "token"
        os.chown(token, -1, group)
        token.chmod(0o640)

    def steward(self) -> Command:
        """The steward's process; under a user of its own it has no network."""
        command = client_command(f"{self.name}-steward", self.root, "steward", "--config", str(self.site_file))
        if self.users is None:
            return command
        return as_user(command, self.users.steward, needed=(self.root,), home=self.root, network=False)

    def supernode(self, received: Sent) -> Command:
        """The process that keeps the connection."""
        place = ("--directory", str(self.root), "--port", str(self.port))
        steward = ("--steward", steward_node_config(read_site(self.site_file)))
        root = ("--allow-root",) if os.geteuid() == 0 and self.users is None else ()
        words = ("join", *received.words(), *place, *steward, *root)
        command = client_command(f"{self.name}-join", self.root, *words)
        if self.users is None:
            return command
        return as_user(command, self.users.supernode, needed=(self.root,), home=self.layout.supernode_log.parent)

    def serves(self) -> bool:
        """Whether the steward answers on its socket."""
        try:
            return link_to_steward(read_site(self.site_file)).health().serving
        except StewardUnavailable:
            return False


def _replace(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
