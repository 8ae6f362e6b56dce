"""Processes as other Unix users, started by root: every party of a pilot gets a user of its own, by number alone.

What a process needs may lie where other users cannot go, as a Python in ``/root`` does. Such a folder is then replaced,
for that process alone and in a mount namespace of its own, by an empty one with what it needs.
"""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from common.host.supervision import Command

FIRST_UID: Final = 61_200
"""systemd's range for users that exist while a service runs: nobody has files under these numbers."""
_TOOLS: Final = ("unshare", "setpriv", "mount", "umount")
_SEARCH_BY_OTHERS: Final = stat.S_IXOTH
_SECONDS: Final = 60.0


@dataclass(frozen=True, kw_only=True)
class UnixUser:
    """A user, its own group of the same number, and other groups that it is in."""

    uid: int
    groups: tuple[int, ...] = ()

    def prefix(self, needed: Iterable[Path], *, network: bool = True) -> tuple[str, ...]:
        """What to put before a command so that it runs as this user, without any capability.

        Args:
            needed: Folders that the command reads or writes, wherever they are.
            network: False: it has no network, not even loopback.

        """
        groups = ("--groups", ",".join(map(str, self.groups))) if self.groups else ("--clear-groups",)
        # --pdeathsig: the kernel drops the wish to end with its supervisor when a process changes its user
        reduced = ("--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--pdeathsig", "keep")
        drop = ("setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", *groups, *reduced, "--")
        spaces = ("unshare", "--mount", "--propagation", "private", *(() if network else ("--net",)), "--")
        # the folders on the way are made here, and others must pass through them; the command keeps its umask
        opened = ("kept=$(umask)", "umask 022", *_openings(needed), 'umask "$kept"')
        script = "\n".join(("set -e", *opened, 'exec "$@"'))
        return (*spaces, "sh", "-c", script, "sh", *drop)


def whole_installation() -> tuple[Path, ...]:
    """Folders that every one of our programs needs: Python, its packages, and this copy of the code."""
    return (Path(sys.base_prefix), Path(sys.prefix), Path(__file__).parents[2])


def why_not_separate(needed: Iterable[Path]) -> str:
    """Why processes that need these folders cannot be started as other users here; empty if they can."""
    if os.geteuid() != 0:
        return "only root can start processes as other users"
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"not installed: {', '.join(missing)}"
    prefix = UnixUser(uid=FIRST_UID).prefix((*whole_installation(), *needed), network=False)
    command = (*prefix, sys.executable, "-c", "import flwr, msgspec")
    done = subprocess.run(  # noqa: S603 - no shell
        command, capture_output=True, encoding="utf-8", errors="replace", timeout=_SECONDS, check=False
    )
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it failed without a word"])[-1]


def as_user(command: Command, user: UnixUser, *, needed: Iterable[Path], home: Path, network: bool = True) -> Command:
    """The same command as another user, whose home is a folder that it can enter."""
    prefix = user.prefix((*whole_installation(), *needed), network=network)
    environment = {**command.environment, "HOME": str(home)}
    return replace(command, arguments=(*prefix, *command.arguments), environment=environment)


def give(path: Path, user: UnixUser) -> None:
    """Make everything at and below this path the user's."""
    for each in (path, *path.rglob("*")):
        os.chown(each, user.uid, user.uid, follow_symlinks=False)


def _openings(needed: Iterable[Path]) -> Iterator[str]:
    """Shell lines that open the way to what is needed."""
    closed: dict[Path, list[Path]] = {}
    for path in dict.fromkeys(each.resolve() for each in needed):
        if (door := _closed_door(path)) is not None:
            closed.setdefault(door, []).append(path)
    for door, paths in closed.items():
        within = [path for path in paths if not any(path.is_relative_to(other) for other in paths if other != path)]
        yield "mount -t tmpfs tmpfs /mnt"
        for number, path in enumerate(within):
            yield f"mkdir /mnt/{number}; mount --rbind {shlex.quote(str(path))} /mnt/{number}"
        yield f"mount -t tmpfs -o mode=755 tmpfs {shlex.quote(str(door))}"
        for number, path in enumerate(within):
            yield f"mkdir -p {shlex.quote(str(path))}; mount --move /mnt/{number} {shlex.quote(str(path))}"
        yield "umount /mnt"


def _closed_door(path: Path) -> Path | None:
    """The first folder on the way that others cannot enter, or the path itself if there is none above it."""
    for folder in reversed(path.parents):
        if not folder.stat().st_mode & _SEARCH_BY_OTHERS:
            return folder
    return None
