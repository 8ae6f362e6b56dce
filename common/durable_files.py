"""Files and folders that survive a crash, whole or not at all, and are their owner's alone unless somebody says else.

==========================  ============================================================================================
:func:`open_new`            a new file, to be written piece by piece and, where it has to last, with :func:`sync`
:func:`write_new`           a new file, such as a key: nothing that is there is ever overwritten
:func:`write_atomically`    the old content or the new
:func:`whole_folder`        a folder of files that belong together
==========================  ============================================================================================
"""

from __future__ import annotations

import os
import secrets
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator


OWNER_ONLY: Final = 0o600
PUBLIC: Final = 0o644
"""For what another user of the machine has to read, and nobody has to keep to himself."""
UNFINISHED: Final = ".init-"
"""How the names of what a killed process leaves begin. Its keys were never shown or used: it can go."""
_NOT_FOR_OTHERS: Final = 0o077


@contextmanager
def owner_only_files() -> Iterator[None]:
    """Files, folders and sockets made in this block are the owner's alone from their first moment on.

    A shell's umask is no promise: under 000, as in some containers and on some shares, every user of the machine could
    read or change what says no mode of its own. Processes that are started in the block inherit it.
    """
    before = os.umask(_NOT_FOR_OTHERS)
    try:
        yield
    finally:
        os.umask(before)


def open_new(path: Path, *, mode: int = OWNER_ONLY) -> int:
    """Descriptor for writing of a new file, whose mode is ``mode`` whatever the umask.

    Raises:
        FileExistsError: There is something, be it a link that leads nowhere.
        OSError: It cannot be made.

    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        os.fchmod(descriptor, mode)
    except BaseException:  # some shares take no modes: an empty file would stay, and be taken for a key that is there
        os.close(descriptor)
        path.unlink(missing_ok=True)
        raise
    return descriptor


def write_new(path: Path, data: bytes, *, mode: int = OWNER_ONLY) -> None:
    """Make a file, and its folder if missing, that survives a power cut once this returns; if it fails, there is none.

    Raises:
        FileExistsError: There is something, and it is left as it is.
        OSError: It cannot be made, or the disk does not take it.

    """
    _fill_new(path, data, mode)
    try:
        sync_folder(path.parent)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, data: bytes, *, mode: int = OWNER_ONLY) -> None:
    """Replace the file's content so that a crash, or a power cut, leaves the old content or the new.

    Its mode is ``mode`` whatever the umask, and nobody has more rights at any moment in between. Of several writers at
    once the last one's content stays, whole. A link in its place is replaced and not followed. A crash may leave a file
    beside it whose name begins with a dot and ends in ``.partial``.
    """
    # a name of its own, and no file that is there already: another writer's must not be renamed half-written
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    with naming(path):
        _fill_new(temporary, data, mode)
        try:
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def _fill_new(path: Path, data: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = open_new(path, mode=mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            sync(file)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an ``OSError`` that names no file, as a full disk's does, name this one: somebody has to make room there."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def sync(file: IO[Any]) -> None:
    """Have on the disk what was written to an open file so far."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make what was made, renamed or removed in it durable."""
    _sync(path, os.O_DIRECTORY)


def sync_tree(folder: Path) -> None:
    """Make everything in a folder durable, so that its rename is never on the disk before its content."""
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def _sync(path: Path, flags: int = 0) -> None:
    handle = os.open(path, os.O_RDONLY | flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def whole_folder(folder: Path, *, last: str) -> Iterator[Path]:
    """A context that gives a private folder to fill, and puts what is in it at ``folder`` when it ends without error.

    A folder that exists stays the same one, since it may be a mount point or where somebody's shell stands.

    Args:
        folder: New, or one that holds nothing of the same names.
        last: Name of the file without which nobody takes the folder for finished: it is moved last.

    """
    folder = folder.resolve()
    parent = folder if folder.exists() else folder.parent
    parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=parent, prefix=UNFINISHED) as unfinished:
        made = Path(unfinished) / "made"
        made.mkdir(mode=0o700)
        yield made
        sync_tree(made)
        if parent == folder:
            _move_into(folder, made, last)
        else:
            made.rename(folder)
    sync_folder(parent)


def _move_into(folder: Path, made: Path, last: str) -> None:
    folder.chmod(0o700)
    children = sorted(made.iterdir(), key=lambda child: child.name == last)
    with ExitStack() as back:
        for child in children:
            target = folder / child.name
            child.rename(target)
            back.callback(target.rename, child)
        back.pop_all()
