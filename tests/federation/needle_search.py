"""Many byte strings looked for in many files at once: a capture has tens of megabytes, the needles are thousands."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

HEAD = 8
"""Bytes that every needle has at least."""


class NeedleSearch:
    """Compares eight bytes at every offset with the needles' first eight, and the rest where they agree."""

    def __init__(self, needles: Iterable[bytes]) -> None:
        self._by_head: dict[int, list[bytes]] = defaultdict(list)
        for needle in needles:
            assert len(needle) >= HEAD, needle
            self._by_head[int.from_bytes(needle[:HEAD], "little")].append(needle)
        self._heads = np.array(sorted(self._by_head), dtype="<u8")

    def in_bytes(self, content: bytes) -> Iterator[bytes]:
        for shift in range(min(HEAD, max(0, len(content) - HEAD + 1))):
            words = np.frombuffer(content, dtype="<u8", count=(len(content) - shift) // HEAD, offset=shift)
            places = np.searchsorted(self._heads, words)
            places[places == len(self._heads)] = 0
            for index in np.nonzero(self._heads[places] == words)[0]:
                at = shift + HEAD * int(index)
                yield from (needle for needle in self._by_head[int(words[index])] if content.startswith(needle, at))

    def in_folders(self, *folders: Path) -> list[tuple[str, bytes]]:
        """Of every file below, by content and by name."""
        files = [each for folder in folders for each in sorted(folder.rglob("*")) if each.is_file()]
        return [
            (str(path), needle)
            for path in files
            for content in (path.read_bytes(), str(path).encode())
            for needle in self.in_bytes(content)
        ]
