"""Captions that lie beside pictures: ``a.txt``, ``a.caption`` or ``a.png.txt`` for ``a.png``, in any letter case."""

from __future__ import annotations

import unicodedata
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

from client.intake.captions import MAX_RAW_CHARACTERS
from client.intake.outcomes import Reason, Refused

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_SUFFIXES: Final = frozenset({".txt", ".caption"})
_TABLES: Final = frozenset({".jsonl", ".json", ".csv"})
"""Beside these, a text is no caption."""
_MAX_BYTES: Final = 4 * MAX_RAW_CHARACTERS


class Sidecars:
    """The caption files among the names of a folder's files."""

    def __init__(self, names: Iterable[str]) -> None:
        self._exact: dict[str, list[str]] = {}
        self._loose: dict[str, list[str]] = {}
        texts, keys = set[str](), set[str]()
        for name in names:
            stem, suffix = _split(name)
            if suffix in _SUFFIXES:
                texts.add(name)
                self._exact.setdefault(stem, []).append(name)
                self._loose.setdefault(_folded(stem), []).append(name)
            elif suffix not in _TABLES:
                keys |= {_folded(stem), _folded(name)}
        self.names: Final = frozenset(name for name in texts if _folded(_split(name)[0]) in keys)
        """Those that lie beside another file."""
        self.alone: Final = frozenset(texts - self.names)

    def beside(self, name: str) -> tuple[str, ...]:
        """Those of one picture, in order."""
        for key in (name, _split(name)[0]):
            if found := self._exact.get(key) or self._loose.get(_folded(key)):
                return tuple(each for each in found if each != name)
        return ()

    def read(self, folder: Path, name: str) -> str | Refused:
        """The caption beside a picture; empty if there is none."""
        texts = {each: _read(folder / each) for each in self.beside(name)}
        for text in texts.values():
            if isinstance(text, Refused):
                return text
        if len({str(text).strip() for text in texts.values()}) > 1:
            return Refused(Reason.BAD_CAPTION, f"{' and '.join(texts)} differ; keep one")
        return str(next(iter(texts.values()), ""))


def _read(path: Path) -> str | Refused:
    if path.is_symlink() or not path.is_file():
        return Refused(Reason.BAD_CAPTION, f"{path.name}: is no file but a link or something else; copy the file")
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            return Refused(Reason.BAD_CAPTION, f"{path.name}: more than {MAX_RAW_CHARACTERS} characters")
        return data.decode("utf-8-sig")
    except OSError as error:
        return Refused(Reason.BAD_CAPTION, f"{path.name}: {error.strerror}")
    except UnicodeDecodeError as error:
        return Refused(Reason.BAD_CAPTION, f"{path.name}: not UTF-8 at byte {error.start}; save it as UTF-8")


def _split(name: str) -> tuple[str, str]:
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix else name, path.suffix.casefold()


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
