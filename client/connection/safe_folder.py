"""Files that root makes where somebody else could write before: through no symbolic link.

The SuperNode's user runs the coordinator's code. A link that it leaves in place of a file or folder would have root's
``install`` overwrite, or change the mode of, whatever the link points to.

Guarantee: no file outside the given folder is written, removed or given another mode. Assumed: nobody else can write
to the folder itself while this runs, which :func:`refuse_others_folder` looks at.
"""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from common.durable_files import write_atomically
from common.errors import ProvisioningError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ALONE: Final = 0o700
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class SafeFolder:
    """One folder, made if it is missing, and what is made anew in it."""

    path: Path

    def make(self) -> None:
        """The folder itself, if it is missing.

        Raises:
            ProvisioningError: A link stands there, or it cannot be made.

        """
        _refuse_link(self.path)
        with _told(self.path):
            self.path.mkdir(parents=True, exist_ok=True, mode=_ALONE)

    def new_folder(self, name: str) -> Path:
        """An empty folder in place of whatever tree is there.

        Raises:
            ProvisioningError: A link stands there, or it cannot be made.

        """
        path = self._cleared(name)
        with _told(path):
            path.mkdir(mode=_ALONE)
        return path

    def write(self, path: Path, text: str, *, mode: int) -> None:
        """A new file below this folder, in place of whatever file is there.

        Raises:
            ProvisioningError: A link stands there, or it cannot be written.

        """
        _refuse_link(path)
        with _told(path):
            write_atomically(path, text.encode(), mode=mode)

    def _cleared(self, name: str) -> Path:
        path = self.path / name
        _refuse_link(path)
        with _told(path):
            if path.is_dir():
                _set_modes(path, folder=_ALONE, file=None)
                shutil.rmtree(path)  # takes links away, and goes through none
            else:
                path.unlink(missing_ok=True)
        return path


def refuse_others_folder(path: Path) -> None:
    """Refuse a folder, if there is one, in which another user than this process's could put links meanwhile.

    Raises:
        ProvisioningError: A link, another's, or one that others can write to.

    """
    _refuse_link(path)
    if not path.exists():
        return
    found = path.lstat()
    writers = stat.S_IWOTH if found.st_gid == 0 else _OTHERS_WRITE
    if found.st_uid != os.geteuid() or found.st_mode & writers:
        raise ProvisioningError(
            f"{path}: another user can write here, and could lead what is installed to other places; for an "
            f"installation by root run: chown root {path}; chmod go-w {path}"
        )


def make_read_only(root: Path) -> None:
    """Readable for all, whatever the administrator's own files are; writable for nobody.

    Raises:
        ProvisioningError: There is a link in it, or a mode cannot be set.

    """
    with _told(root):
        _set_modes(root, folder=0o555, file=0o444)


def set_folder_mode(path: Path, mode: int) -> None:
    """Of a folder that is no link.

    Raises:
        ProvisioningError: It is one, or the mode cannot be set.

    """
    with _told(path):
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            os.fchmod(handle, mode)
        finally:
            os.close(handle)


def _set_modes(root: Path, *, folder: int, file: int | None) -> None:
    """By handle and not by name, so that nothing is reached through a link that is put there meanwhile."""
    for place, folders, files, handle in os.fwalk(root):
        os.fchmod(handle, folder)
        if file is None:
            continue
        for name in (*folders, *files):
            if stat.S_ISLNK(os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode):
                raise ProvisioningError(f"{place}/{name}: a symbolic link; a bundle has none")
        for name in files:
            one = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=handle)
            try:
                os.fchmod(one, file)
            finally:
                os.close(one)


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise ProvisioningError(
            f"{path}: a symbolic link, which can lead an installation to other places; look who made it, and remove it"
        )


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ProvisioningError(f"{error.filename or path}: cannot be made anew ({error.strerror})") from error
