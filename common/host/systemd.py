"""systemd service files for both sides: what a process may still do once it has been taken over.

Only text is made here: files are put in place by an administrator, who has read them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from common.durable_files import PUBLIC, write_atomically
from common.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Setting = tuple[str, str]
RESTART_SECONDS: Final = 15
"""Flower refuses a SuperNode's key for a while after a crash."""
_NETWORK: Final = "network-online.target"
_HIDDEN: Final = ("/home", "/root", "/run/user")
"""What ``ProtectHome=yes`` hides."""

HARDENING: Final[tuple[Setting, ...]] = (
    ("UMask", "0077"),
    ("NoNewPrivileges", "yes"),
    ("ProtectSystem", "strict"),
    ("ProtectHome", "yes"),
    ("ProtectProc", "invisible"),
    ("ProtectClock", "yes"),
    ("ProtectHostname", "yes"),
    ("ProtectKernelLogs", "yes"),
    ("ProtectKernelModules", "yes"),
    ("ProtectKernelTunables", "yes"),
    ("ProtectControlGroups", "yes"),
    ("PrivateTmp", "yes"),
    ("PrivateIPC", "yes"),
    ("RemoveIPC", "yes"),
    ("RestrictNamespaces", "yes"),
    ("RestrictRealtime", "yes"),
    ("RestrictSUIDSGID", "yes"),
    ("LockPersonality", "yes"),
    ("KeyringMode", "private"),
    ("SystemCallArchitectures", "native"),
    ("SystemCallFilter", "@system-service"),
    ("SystemCallFilter", "~@privileged @obsolete"),
    ("SystemCallErrorNumber", "EPERM"),
    ("LimitCORE", "0"),  # a core file would hold keys and pictures
)
"""Of every service."""
WITHOUT_CAPABILITIES: Final[tuple[Setting, ...]] = (("CapabilityBoundingSet", ""), ("AmbientCapabilities", ""))
WITHOUT_DEVICES: Final[Setting] = ("PrivateDevices", "yes")
WITHOUT_NEW_CODE: Final[Setting] = ("MemoryDenyWriteExecute", "yes")
"""Not for torch: its convolutions are compiled while they run, and fail with "could not create a primitive"."""


@dataclass(frozen=True, kw_only=True)
class ServiceFile:
    """One service, as systemd reads it."""

    name: str
    """Of its file, without ``.service``."""
    description: str
    after: tuple[str, ...]
    user: str
    arguments: tuple[str, ...]
    """The program's absolute path, then its arguments."""
    stop_seconds: int
    not_restarted: tuple[int, ...] = ()
    """Exit codes after which only a person starts it again."""
    settings: tuple[Setting, ...]
    """After :data:`HARDENING`; names may repeat, and a later system call filter adds to the earlier ones."""

    @property
    def file_name(self) -> str:
        """As systemd wants it."""
        return f"{self.name}.service"

    def text(self) -> str:
        """All of it."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield "[Unit]"
        yield f"Description={escaped(self.description)}"
        yield f"After={' '.join(self.after)}"
        if _NETWORK in self.after:
            yield f"Wants={_NETWORK}"
        yield "StartLimitIntervalSec=0"
        yield "\n[Service]"
        yield "Type=exec"
        yield f"User={self.user}"
        yield f"Group={self.user}"
        yield f"ExecStart={' '.join(argument(each) for each in self.arguments)}"
        yield "Restart=always"
        yield "SuccessExitStatus=130 143"  # told to end by SIGINT or SIGTERM
        yield f"RestartSec={RESTART_SECONDS}"
        if self.not_restarted:
            yield f"RestartPreventExitStatus={' '.join(map(str, self.not_restarted))}"
        # its own children are ended in order by itself
        yield "KillMode=mixed"
        yield f"TimeoutStopSec={self.stop_seconds}"
        yield from (f"{name}={value}" for name, value in (*HARDENING, *self.settings))
        yield "\n[Install]"
        yield "WantedBy=multi-user.target"


@dataclass(frozen=True, kw_only=True)
class Installation:
    """Where Darkroom's own programs are."""

    programs: Path
    """Folder of ``darkroom-client`` and the like."""
    prefix: Path
    """Of the Python that they run with."""

    @classmethod
    def of_this_process(cls) -> Installation:
        """The one that runs now."""
        return cls(programs=Path(sys.executable).parent, prefix=Path(sys.base_prefix))

    def program(self, name: str) -> str:
        """Absolute path of a program."""
        return str(self.programs / name)


def check_places(paths: Iterable[Path]) -> None:
    """Refuse what ``ProtectHome=yes`` would hide from the service.

    Raises:
        ConfigError: A path is in somebody's home.

    """
    for path in paths:
        for given in (path.absolute(), path.resolve()):
            if any(given.is_relative_to(home) for home in _HIDDEN):
                raise ConfigError(
                    f"{given}: is in a home directory, which services do not see; move it, to /srv or /opt for example"
                )


def escaped(text: str) -> str:
    """A value that systemd takes as it is, free of its specifiers.

    Raises:
        ConfigError: It has a control character, which could begin another setting.

    """
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ConfigError(f"{text!r}: a service file cannot hold control characters")
    return text.replace("%", "%%")


def path_value(path: Path | str) -> str:
    """A path in a list of paths."""
    text = escaped(str(path)).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"' if " " in text or "'" in text or '"' in text else text


def argument(text: str) -> str:
    """One word of a command line, free of systemd's variables and quotes."""
    quoted = escaped(text).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    plain = all(character.isalnum() or character in "/._:=@,+-%" for character in quoted)
    return quoted if plain and quoted else f'"{quoted}"'


def write_service_files(files: Iterable[ServiceFile], folder: Path) -> tuple[Path, ...]:
    """Write service files into a folder of the user's; nothing is installed."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for file in files:
        path = folder / file.file_name
        write_atomically(path, file.text().encode(), mode=PUBLIC)
        written.append(path)
    return tuple(written)
