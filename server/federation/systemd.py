"""The coordinator's service: SuperLink, executor and, unless nginx stands in front, the public listener."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from common.host import systemd
from common.host.systemd import ServiceFile, check_places, escaped, path_value

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from common.host.systemd import Installation, Setting
    from server.federation.directory import FederationConfig, FederationDirectory

_NAME: Final = "darkroom-coordinator"
_FIRST_FREE_PORT: Final = 1024


@dataclass(frozen=True, kw_only=True)
class CoordinatorService:
    """Everything that the service file is made from."""

    directory: FederationDirectory
    config: FederationConfig
    user: str
    installation: Installation

    def __post_init__(self) -> None:
        """Refuse what the service would not see.

        Raises:
            ConfigError: Something is in a home directory.

        """
        check_places((self.directory.root, self.installation.programs, self.installation.prefix))

    def service_file(self) -> ServiceFile:
        """The service."""
        return ServiceFile(
            name=_NAME,
            description=f"Darkroom coordinator of {self.config.name}",
            after=("network-online.target",),
            user=self.user,
            arguments=(self.installation.program("darkroom-server"), "up", str(self.directory.root)),
            stop_seconds=90,
            settings=tuple(self._settings()),
        )

    def _settings(self) -> Iterator[Setting]:
        yield "WorkingDirectory", escaped(str(self.directory.root))
        yield "ReadWritePaths", path_value(self.directory.root)
        yield "RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6"
        yield systemd.WITHOUT_DEVICES
        yield systemd.WITHOUT_NEW_CODE
        if self.config.front == "nginx":
            yield from systemd.WITHOUT_CAPABILITIES
            yield "IPAddressDeny", "any"
            yield "IPAddressAllow", "localhost"
        elif self.config.public_port < _FIRST_FREE_PORT:
            yield "CapabilityBoundingSet", "CAP_NET_BIND_SERVICE"
            yield "AmbientCapabilities", "CAP_NET_BIND_SERVICE"
        else:
            yield from systemd.WITHOUT_CAPABILITIES

    def steps(self, *, files: Path) -> Iterator[str]:
        """Commands for root, which put the file in place; each safe to run again."""
        root = shlex.quote(str(self.directory.root))
        yield (
            f"id {self.user} || useradd --system --user-group --no-create-home --home-dir / "
            f"--shell /usr/sbin/nologin {self.user}"
        )
        yield f"chown -R {self.user}: {root}; chmod 700 {root}"
        yield f"cp {shlex.quote(str(files))}/{_NAME}.service /etc/systemd/system/"
        yield "systemctl daemon-reload"
        yield f"systemctl enable --now {_NAME}"
        yield f"# other commands as the same user: runuser -u {self.user} -- darkroom-server run status …"
