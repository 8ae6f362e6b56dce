"""A site's two services: the steward, which has the data and no network, and the SuperNode, which has it the other way.

What runs in the SuperNode's service comes from the coordinator. It sees one network address worth talking to, the
steward's socket and its token; vault, keys and books are not even there.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from client.joining import steward_node_config
from common.errors import ConfigError
from common.units import (
    WITHOUT_CAPABILITIES,
    WITHOUT_DEVICES,
    WITHOUT_NEW_CODE,
    Setting,
    Unit,
    check_places,
    escaped,
    path_value,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from client.site import SiteConfig
    from client.site_layout import SiteLayout
    from common.units import Installation

ENVIRONMENT_FILE: Final = "/etc/darkroom/steward.env"
"""Where a passphrase from the environment is to stand, mode 0600, root's."""
_JOIN_FILE: Final = "site.join"
_BUNDLE: Final = "bundle.fab"


@dataclass(frozen=True, kw_only=True)
class Users:
    """Unix users of the two services."""

    steward: str = "darkroom-steward"
    supernode: str = "darkroom-supernode"


@dataclass(frozen=True, kw_only=True)
class SiteServices:
    """Everything that the units are made from."""

    layout: SiteLayout
    site: SiteConfig
    users: Users
    installation: Installation
    fingerprint: str
    port: int

    def __post_init__(self) -> None:
        """Refuse what cannot run as two services.

        Raises:
            ConfigError: No group, a key in a session's keyring, or something in a home directory.

        """
        if not self.site.service.group:
            raise ConfigError('service.group: wanted a group of both users for socket and token, as group = "darkroom"')
        if self.site.vault.keyring is not None:
            raise ConfigError("vault.keyring: a service has no session with a keyring; use a key or passphrase file")
        check_places((self.layout.root, Path(self.site.base), self.installation.programs, self.installation.prefix))

    def units(self) -> tuple[Unit, Unit]:
        """Steward, then SuperNode."""
        return (self._steward(), self._supernode())

    def _steward(self) -> Unit:
        return Unit(
            name="darkroom-steward",
            description=f"Darkroom steward of {self.site.name}",
            after=("local-fs.target",),
            user=self.users.steward,
            arguments=(
                *(self.installation.program("darkroom-client"), "steward"),
                *("--config", str(self.layout.site_file)),
            ),
            stop_seconds=round(self.site.service.stop_seconds) + 30,
            settings=tuple(self._steward_settings()),
        )

    def _steward_settings(self) -> Iterator[Setting]:
        yield from self._shared_settings()
        yield "ReadWritePaths", path_value(self.layout.root)
        yield "InaccessiblePaths", f"-{path_value(self.layout.supernode)}"
        if self.site.vault.passphrase_env is not None:
            yield "EnvironmentFile", ENVIRONMENT_FILE
        if self.site.service.tcp is None:
            yield "PrivateNetwork", "yes"
            yield "RestrictAddressFamilies", "AF_UNIX"
            yield "IPAddressDeny", "any"
        else:
            yield "RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6"
        if self.site.device == "cpu":
            yield WITHOUT_DEVICES
        else:
            yield "DevicePolicy", "closed"
            yield "DeviceAllow", "char-nvidia* rw"
        # the socket is given to the group
        yield "SystemCallFilter", "@chown"

    def _supernode(self) -> Unit:
        folder = self.layout.supernode
        return Unit(
            name="darkroom-supernode",
            description=f"Darkroom connection of {self.site.name}",
            after=("network-online.target", "darkroom-steward.service"),
            user=self.users.supernode,
            arguments=(
                *(self.installation.program("darkroom-client"), "join", str(folder / _JOIN_FILE)),
                *("--bundle", str(folder / _BUNDLE), "--fingerprint", self.fingerprint),
                *("--directory", str(self.layout.root), "--port", str(self.port)),
                *("--steward", steward_node_config(self.site)),
            ),
            stop_seconds=60,
            settings=tuple(self._supernode_settings()),
        )

    def _supernode_settings(self) -> Iterator[Setting]:
        yield from self._shared_settings()
        yield "ReadWritePaths", path_value(self.layout.supernode_log.parent)
        for path in self._steward_things():
            yield "InaccessiblePaths", f"-{path_value(path)}"
        yield "RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6"
        yield WITHOUT_DEVICES
        yield WITHOUT_NEW_CODE

    def _steward_things(self) -> Iterator[str]:
        site, vault = self.site, self.site.vault
        yield from (site.identity, site.policy, site.ledger, site.audit_log, site.approvals, vault.directory, site.base)
        yield from (path for path in (vault.key_file, vault.passphrase_file) if path is not None)

    def _shared_settings(self) -> Iterator[Setting]:
        yield "WorkingDirectory", escaped(str(self.layout.root))
        yield "SupplementaryGroups", self.site.service.group
        yield from WITHOUT_CAPABILITIES

    def steps(self, *, units: Path, join_file: Path, bundle: Path) -> Iterator[str]:
        """Commands for root, which put the units in place; each safe to run again."""
        layout, users, group = self.layout, self.users, self.site.service.group
        root, run = shlex.quote(str(layout.root)), shlex.quote(str(layout.run))
        token, folder = shlex.quote(self.site.service.token), shlex.quote(str(layout.supernode))
        yield f"getent group {group} || groupadd --system {group}"
        for user in (users.steward, users.supernode):
            yield (
                f"id {user} || useradd --system --user-group --groups {group} --no-create-home "
                f"--home-dir / --shell /usr/sbin/nologin {user}"
            )
        yield f"chown -R {users.steward}: {root}"
        yield f"chgrp {group} {root} {run} {token}; chmod 710 {root} {run}; chmod 640 {token}"
        # root's own, so that the SuperNode's user puts no other program or home for Flower in their place
        yield f"chown -R root:{users.supernode} {folder}; chmod 750 {folder}"
        logs, key = (shlex.quote(str(path)) for path in (layout.supernode_log.parent, layout.node_key_file))
        yield f"install -d -o {users.supernode} -g {users.supernode} -m 700 {logs}; chown {users.supernode}: {key}"
        for given, name in ((join_file, _JOIN_FILE), (bundle, _BUNDLE)):
            target = shlex.quote(str(layout.supernode / name))
            yield f"install -m 640 -g {users.supernode} {shlex.quote(str(given))} {target}"
        program = shlex.quote(self.installation.program("darkroom-client"))
        # as root: the SuperNode's user cannot give itself the right to write bundles
        yield (
            f"{program} install {shlex.quote(str(layout.supernode / _JOIN_FILE))} --bundle "
            f"{shlex.quote(str(layout.supernode / _BUNDLE))} --fingerprint {shlex.quote(self.fingerprint)} "
            f"--directory {root}"
        )
        yield f"cp {shlex.quote(str(units))}/darkroom-*.service /etc/systemd/system/"
        yield "systemctl daemon-reload"
        yield "systemctl enable --now darkroom-steward darkroom-supernode"
