"""A site's two services: the steward, which has the data and no network, and the SuperNode, which has it the other way.

What runs in the SuperNode's service comes from the coordinator. It sees one network address worth talking to, the
steward's socket and its token; vault, keys and books are not even there.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from client.connection.endings import NOT_RESTARTED
from client.connection.supernode import steward_node_config
from client.site.layout import SitePlaces
from common.errors import ConfigError
from common.host import systemd
from common.host.systemd import ServiceFile, check_places, escaped, path_value

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from client.site.layout import SiteLayout
    from client.site.settings import SiteConfig
    from common.host.systemd import Installation, Setting


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
    """Everything that the service files are made from."""

    layout: SiteLayout
    site: SiteConfig
    users: Users
    installation: Installation
    fingerprint: str
    port: int

    def __post_init__(self) -> None:
        """Refuse what cannot run as two services.

        Raises:
            ConfigError: No group, a key in a session's keyring, something in a home directory, or a place that is too
                wide to be hidden or written to.

        """
        if not self.site.service.group:
            raise ConfigError('service.group: wanted a group of both users for socket and token, as group = "darkroom"')
        if self.site.vault.keyring is not None:
            raise ConfigError("vault.keyring: a service has no session with a keyring; use a key or passphrase file")
        programs = (self.installation.programs, self.installation.prefix)
        check_places((*self.places.all(), *programs))
        self.places.check(programs)

    @property
    def places(self) -> SitePlaces:
        """Where its things lie."""
        return SitePlaces(self.layout, self.site)

    def service_files(self) -> tuple[ServiceFile, ServiceFile]:
        """Steward, then SuperNode."""
        return (self._steward(), self._supernode())

    def _steward(self) -> ServiceFile:
        return ServiceFile(
            name="darkroom-steward",
            description=f"Darkroom steward of {self.site.name}",
            after=("local-fs.target",),
            user=self.users.steward,
            arguments=(
                *(self.installation.program("darkroom-client"), "steward"),
                *("--config", str(self.layout.site_file)),
            ),
            stop_seconds=round(self.site.service.stop_seconds) + 30,
            not_restarted=NOT_RESTARTED,
            settings=tuple(self._steward_settings()),
        )

    def _steward_settings(self) -> Iterator[Setting]:
        yield from self._shared_settings()
        for path in self.places.written():
            yield "ReadWritePaths", path_value(path)
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
            yield systemd.WITHOUT_DEVICES
        else:
            yield "DevicePolicy", "closed"
            yield "DeviceAllow", "char-nvidia* rw"
        # the socket is given to the group
        yield "SystemCallFilter", "@chown"

    def _supernode(self) -> ServiceFile:
        folder = self.layout.supernode
        return ServiceFile(
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
            not_restarted=NOT_RESTARTED,
            settings=tuple(self._supernode_settings()),
        )

    def _supernode_settings(self) -> Iterator[Setting]:
        yield from self._shared_settings()
        yield "ReadWritePaths", path_value(self.layout.supernode_log.parent)
        for path in self.places.secrets():
            yield "InaccessiblePaths", f"-{path_value(path)}"
        yield "RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6"
        yield systemd.WITHOUT_DEVICES
        yield systemd.WITHOUT_NEW_CODE

    def _shared_settings(self) -> Iterator[Setting]:
        yield "WorkingDirectory", escaped(str(self.layout.root))
        yield "SupplementaryGroups", self.site.service.group
        yield from systemd.WITHOUT_CAPABILITIES

    def steps(self, *, files: Path, join_file: Path, bundle: Path) -> Iterator[str]:
        """Commands for root, which put the files in place; each safe to run again."""
        users, group = self.users, self.site.service.group
        yield f"getent group {group} || groupadd --system {group}"
        for user in (users.steward, users.supernode):
            yield (
                f"id {user} || useradd --system --user-group --groups {group} --no-create-home "
                f"--home-dir / --shell /usr/sbin/nologin {user}"
            )
        yield from self._give_to_steward()
        yield from self._give_to_supernode(join_file, bundle)
        yield f"cp {_quoted(files)}/darkroom-*.service /etc/systemd/system/"
        yield "systemctl daemon-reload"
        yield "systemctl enable --now darkroom-steward darkroom-supernode"

    def _give_to_steward(self) -> Iterator[str]:
        places, user, group = self.places, self.users.steward, self.site.service.group
        yield f"chown -R {user}: {_quoted(self.layout.root)}"
        for path in filter(places.is_outside, places.folders()):
            yield f"install -d -m 700 {_quoted(path)}; chown -R {user}: {_quoted(path)}"
        token = places.token
        for path in filter(places.is_outside, (*places.files(), token)):
            yield f"chown -h {user}: {_quoted(path)}"
        # neither given to it nor closed to others, who may have things there
        for path in (each for each in places.written()[1:] if each not in places.folders()):
            words = _quoted(f"{path}: {user} has to be able to make files here")
            yield f"runuser -u {user} -- test -w {_quoted(path)} || echo {words} >&2"
        folders = " ".join(_quoted(path) for path in places.doors())
        yield f"chgrp {group} {folders} {_quoted(token)}; chmod 710 {folders}; chmod 640 {_quoted(token)}"

    def _give_to_supernode(self, join_file: Path, bundle: Path) -> Iterator[str]:
        layout, user = self.layout, self.users.supernode
        folder, logs = _quoted(layout.supernode), _quoted(layout.supernode_log.parent)
        # root's own, so that the SuperNode's user puts no other program or home for Flower in their place
        owned = f"chown -R root:{user} {folder}; chmod -R go-w {folder}; chmod 750 {folder}"
        # without the links that it may have left, so that root changes nothing through one
        yield f"{owned}; find {folder} -type l -delete"
        yield f"install -d -m 700 {logs}; chown -R {user}: {logs} {_quoted(layout.node_key_file)}"
        for given, name in ((join_file, _JOIN_FILE), (bundle, _BUNDLE)):
            yield f"install -T -m 640 -g {user} {_quoted(given)} {_quoted(layout.supernode / name)}"
        program = _quoted(self.installation.program("darkroom-client"))
        # as root: the SuperNode's user cannot give itself the right to write bundles
        yield (
            f"{program} install {_quoted(layout.supernode / _JOIN_FILE)} --bundle "
            f"{_quoted(layout.supernode / _BUNDLE)} --fingerprint {_quoted(self.fingerprint)} "
            f"--directory {_quoted(layout.root)}"
        )


def _quoted(text: str | Path) -> str:
    return shlex.quote(str(text))
