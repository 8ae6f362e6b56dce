"""A folder of keys and settings that is made whole or not at all."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from common.durable_files import sync_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

UNFINISHED: Final = ".init-"
"""How the names of what a killed process leaves begin. Its keys were never shown or used: it can go."""


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
