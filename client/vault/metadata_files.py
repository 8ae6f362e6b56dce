"""Which files of a folder are its metadata.

``metadata.jsonl``, ``.json`` or ``.csv``, in whatever letter case, at the top or in any folder below: each speaks of
the pictures below its own folder. A file that may be metadata and is not read could hold somebody's "no", so it stops
the intake: one that is named like it, one that is a link, and, where there is no metadata, any table.
"""

from __future__ import annotations

import difflib
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

from common.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_STEM: Final = "metadata"
_SUFFIXES: Final = frozenset({".jsonl", ".json", ".csv"})
_TABLES: Final = frozenset(
    {".csv", ".tsv", ".jsonl", ".ndjson", ".xlsx", ".xls", ".ods", ".parquet", ".arrow", ".feather"}
)
_TEXTS: Final = _TABLES | {".json", ".txt", ".yaml", ".yml", ".xml", ".bak", ".old", ".tmp", ""}
_SPEAK: Final = ("metadata", "consent", "optout", "optedout")
_WAY_OUT: Final = "name it metadata.jsonl, .json or .csv if it speaks of the pictures, or take it out of the folder"


def find_metadata(folder: Path, names: Iterable[str]) -> tuple[str, ...]:
    """Those of the folder's file names that are to be read, at most one in each folder.

    Raises:
        DataError: One that may be metadata cannot be read.

    """
    names = tuple(names)
    found = tuple(name for name in names if _is_metadata(PurePosixPath(name)))
    for name in names:
        if name not in found and (_seems(PurePosixPath(name)) or (not found and _suffix(name) in _TABLES)):
            raise DataError(f"{folder / name}: may say who consents, and is not read; {_WAY_OUT}")
    folders: dict[PurePosixPath, str] = {}
    for name in found:
        if other := folders.setdefault(PurePosixPath(name).parent, name).removeprefix(name):
            raise DataError(f"{folder}: both {other} and {name}; keep one")
        if (folder / name).is_symlink() or not (folder / name).is_file():
            raise DataError(f"{folder / name}: is no file but a link or something else; copy the file into the folder")
    return found


def above(folder: Path) -> Path | None:
    """A metadata file in the folder above, which is not read."""
    try:
        names = sorted(path for path in folder.resolve().parent.iterdir() if path.is_file())
    except OSError:
        return None
    return next((path for path in names if _is_metadata(PurePosixPath(path.name))), None)


def _is_metadata(name: PurePosixPath) -> bool:
    return name.stem.casefold() == _STEM and _suffix(name) in _SUFFIXES


def _seems(name: PurePosixPath) -> bool:
    """Whether it is named as if it were metadata, or spoke of consent, and is no picture by its suffix."""
    if _suffix(name) not in _TEXTS:
        return False
    squeezed = "".join(char for char in name.name.casefold() if char.isalnum())
    if any(word in squeezed for word in _SPEAK):
        return True
    is_table = _suffix(name) in _TABLES
    return is_table and bool(difflib.get_close_matches(name.stem.casefold(), [_STEM], cutoff=0.8))


def _suffix(name: str | PurePosixPath) -> str:
    return PurePosixPath(name).suffix.casefold()
