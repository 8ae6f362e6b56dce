"""Which files of a folder are its metadata.

``metadata.jsonl``, ``.json`` or ``.csv``, in whatever letter case, at the top or in any folder below: each speaks of
the pictures below its own folder. A file that may be metadata and is not read could hold somebody's "no", so it stops
the intake: one that is named like it, one that is a link, one with a key that speaks of consent, such as ``0001.json``
beside ``0001.png``, and, where there is no metadata, any table.
"""

from __future__ import annotations

import difflib
import re
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
_KEYED: Final = frozenset({".json", ".yaml", ".yml", ".xml", ".xmp", ".toml", ".ini"})
"""Texts with keys, of which datasets put one beside each picture or one over all."""
_CONSENT_KEY: Final = re.compile(
    rb"(?:consent|opt(?:ed)?[ _-]?(?:out|in)|withdr[ae]w|revok|einwillig)[\w -]*[\"']?\s*[:=>]", re.IGNORECASE
)
"""A key of JSON, YAML, TOML or XML; not the same words in a text."""
_MOST_LOOKED_AT: Final = 256 << 20
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
        unread = _seems(PurePosixPath(name)) or (not found and _suffix(name) in _TABLES)
        if name not in found and (unread or _has_consent_key(folder / name)):
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


def _has_consent_key(path: Path) -> bool:
    """Whether a text with keys has one that speaks of consent, or cannot be looked at."""
    if _suffix(path.name) not in _KEYED or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_LOOKED_AT + 1)
    except OSError:
        return True
    return len(text) > _MOST_LOOKED_AT or _CONSENT_KEY.search(text) is not None


def _suffix(name: str | PurePosixPath) -> str:
    return PurePosixPath(name).suffix.casefold()
