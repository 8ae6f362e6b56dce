"""Releases that this site signed, kept so that it can tell later what became public of a subject, and within which ε.

One pair of files a release, named by its digest: the coordinator's statement and this site's own word on it. A record
that is damaged is an error and not an empty answer: the one who asks wants to know of every release.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from common.durable_files import write_atomically
from common.release.folder import ReleaseFolder
from common.release.statement import (
    MAX_RELEASE_BYTES,
    MAX_WORD_BYTES,
    ReleaseError,
    file_bytes,
    parse_release,
    parse_word,
)

if TYPE_CHECKING:
    from pathlib import Path

    from common.crypto.primitives import Identity
    from common.release.statement import Release, SiteWord

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
        write_atomically(self.folder / f"{name}.word", file_bytes(word), mode=0o600)
        # last: with it the word is there
        write_atomically(self.folder / f"{name}.json", file_bytes(release), mode=0o600)

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
