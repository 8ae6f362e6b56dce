"""The steward's Unix socket: its folder, its modes, and that one steward holds it.

A lock file beside the socket is held for the steward's life; the kernel drops it even after SIGKILL, so a left-over
socket without a lock holder is stale and removed.
"""

from __future__ import annotations

import contextlib
import grp
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from common.crypto.primitives import random_key
from common.durable_files import open_new
from common.errors import StewardRunning, StewardUnavailable
from common.host.file_lock import is_locked, locked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LONGEST_PATH: Final = 100
"""Bytes of a Unix socket's path; the kernel takes 107, gRPC needs a few."""


@dataclass(frozen=True, kw_only=True)
class SocketPlace:
    """Where the socket stands and who may open it.

    Args:
        path: The socket. Its folder is made if missing, and must belong to this user alone.
        group: Another Unix group, by name or number, whose members may connect, for a SuperNode under its own user.

    """

    path: Path
    group: str = ""

    @property
    def target(self) -> str:
        """As gRPC spells it."""
        return f"unix://{self.path.absolute()}"

    def group_id(self) -> int:
        """The group's number; -1, which leaves things as they are, without one.

        Raises:
            StewardUnavailable: No such group.

        """
        if not self.group:
            return -1
        if self.group.isdigit():
            return int(self.group)
        try:
            return grp.getgrnam(self.group).gr_gid
        except KeyError as error:
            raise StewardUnavailable(f"service.group: this machine has no group {self.group!r}") from error


@contextlib.contextmanager
def held(place: SocketPlace) -> Iterator[None]:
    """Hold the place: folder made and checked, lock taken, stale socket gone; the socket is removed at the end.

    Raises:
        StewardRunning: Another steward holds it.
        StewardUnavailable: The folder is open to others, the path is too long, or something else stands there.

    """
    if len(os.fsencode(place.path.absolute())) > LONGEST_PATH:
        raise StewardUnavailable(f"{place.path}: a socket's path may have {LONGEST_PATH} bytes; give a shorter one")
    _private_folder(place)
    lock = place.path.with_suffix(".lock")
    busy = StewardRunning(
        f"{place.path}: this site's steward runs already, or a command that writes is at work; stop that first "
        "(Ctrl-C there, or systemctl stop darkroom-steward)"
    )
    with locked(lock, wait_s=0, busy=busy):
        _remove_socket(place.path)
        try:
            yield
        finally:
            _remove_socket(place.path)


def is_held(place: SocketPlace) -> bool:
    """Whether a steward, or a command that writes, holds the place; nothing is made or changed.

    Raises:
        StewardUnavailable: This user cannot look.

    """
    try:
        return is_locked(place.path.with_suffix(".lock"))
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StewardUnavailable(f"{error.filename}: cannot be looked at ({error.strerror})") from error


def open_to_group(place: SocketPlace) -> None:
    """Give the bound socket its final mode: 0600, or 0660 for the group."""
    if place.group:
        os.chown(place.path, -1, place.group_id())
    place.path.chmod(0o660 if place.group else 0o600)


def create_token_file(path: Path, *, group_id: int = -1) -> None:
    """Make a token that its owner, and the group if there is one, can read.

    Raises:
        FileExistsError: There is one.

    """
    with os.fdopen(open_new(path), "wb") as file:
        file.write(random_key().reveal().hex().encode() + b"\n")
        if group_id >= 0:
            os.fchown(file.fileno(), -1, group_id)
            os.fchmod(file.fileno(), 0o640)


def check_token_mode(path: Path, *, group: bool) -> None:
    """Refuse a token that more users can read than may connect.

    Raises:
        StewardUnavailable: It is open to others.

    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise StewardUnavailable(f"{path}: the token cannot be read ({error.strerror})") from error
    if mode & (stat.S_IRWXO | (0 if group else stat.S_IRWXG) | stat.S_IWGRP):
        raise StewardUnavailable(
            f"{path}: other users can read this token; run: chmod {'640' if group else '600'} {path}"
        )


def _private_folder(place: SocketPlace) -> None:
    folder = place.path.parent
    mode = 0o710 if place.group else 0o700
    if not folder.exists():
        folder.mkdir(parents=True, mode=mode)
        if place.group:
            os.chown(folder, -1, place.group_id())
        folder.chmod(mode)
    found = folder.stat()
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & ~mode:
        raise StewardUnavailable(
            f"{folder}: wanted a folder of this user with mode {mode:o}, for whoever can write there can put another "
            f"socket in its place; run: chmod {mode:o} {folder}"
        )


def _remove_socket(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise StewardUnavailable(f"{path}: is no socket, so it is not removed; give another path")
    path.unlink(missing_ok=True)
