"""Releases that this site signed, kept so that it can tell later what became public of a subject, and within which ε.

One pair of files a release, named by its digest: the coordinator's statement and this site's own word on it. A record
that is damaged is an error and not an empty answer: the one who asks wants to know of every release.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from common.release import MAX_RELEASE_BYTES, MAX_WORD_BYTES, ReleaseError, file_bytes, parse_release, parse_word
from common.release_folder import ReleaseFolder

if TYPE_CHECKING:
    from pathlib import Path

    from common.crypto import Identity
    from common.release import Release, SiteWord

_STATEMENT: Final = re.compile(r"([0-9a-f]{64})\.json")


@dataclass(frozen=True, kw_only=True)
class ReleaseBook:
    """The site's folder of releases, which is made when the first is noted."""

    folder: Path
    identity: Identity = field(repr=False)

    def note(self, release: Release, word: SiteWord) -> None:
        """Keep both; noting a release again replaces the word."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        name = release.digest().hex()
        _write(self.folder / f"{name}.word", file_bytes(word))
        _write(self.folder / f"{name}.json", file_bytes(release))  # last: with it the word is there

    def releases(self, *, run: str) -> tuple[Release, ...]:
        """Every release of this run (the manifest's digest, in hex) that this site signed, oldest first.

        Raises:
            ReleaseError: A record is damaged or not signed by this site.

        """
        found = [self._read(name) for name in self._names()]
        return tuple(sorted((each for each in found if each.manifest == run), key=lambda each: each.time))

    def _names(self) -> list[str]:
        if not self.folder.is_dir():
            return []
        matches = (_STATEMENT.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(match[1] for match in matches if match is not None)

    def _read(self, name: str) -> Release:
        files = ReleaseFolder(self.folder)
        release = parse_release(files.read(f"{name}.json", most=MAX_RELEASE_BYTES))
        source = f"{self.folder / name}.word"
        word = parse_word(
            files.read(f"{name}.word", most=MAX_WORD_BYTES), key=self.identity.public.hex(), source=source
        )
        if not name == release.digest().hex() == word.release:
            raise ReleaseError(f"{source}: is of another release than its name says; restore the folder from a backup")
        return release


def _write(path: Path, content: bytes) -> None:
    """All of it or nothing, and on disk."""
    new = path.with_name(f".{path.name}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
