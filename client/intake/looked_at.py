"""Files in which text was found, and which a person has looked at and lets in.

A line is one of ``sha256sum``: 64 hexadecimal digits, two blanks (or a blank and an asterisk), and the name below the
folder. Name and content must both fit, so that a file which was changed, or another one under the same name, is asked
for again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from client.intake.captions import read_list
from common.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

_LINE: Final = re.compile(r"([0-9a-fA-F]{64}) [ *](\S|\S.*\S)")


@dataclass(frozen=True, slots=True)
class LookedAt:
    """Names and SHA-256 of files."""

    files: frozenset[tuple[str, bytes]] = field(default=frozenset(), repr=False)

    @classmethod
    def read(cls, path: Path) -> LookedAt:
        """One file a line; blank lines and those that begin with ``#`` do not count.

        Raises:
            ConfigError: Missing, not UTF-8, or a line of another form.

        """
        found = []
        for entry in read_list(path):
            match = _LINE.fullmatch(entry)
            if match is None:
                raise ConfigError(
                    f"{path}: {entry[:100]!r}: wanted a file's SHA-256, two blanks and its name, as sha256sum prints; "
                    "a dry run says the line for each picture with text"
                )
            found.append((match[2].removeprefix("./"), bytes.fromhex(match[1])))
        return cls(frozenset(found))

    def covers(self, name: str, file_digest: bytes) -> bool:
        """Whether this very file was looked at."""
        return (name, file_digest) in self.files

    def way_in(self, name: str, file_digest: bytes) -> str:
        """What to do about a picture in which text was found."""
        line = f"{file_digest.hex()}  {name}"
        if not name.isprintable() or _LINE.fullmatch(line) is None:
            return "look at it; to let it in, give it a name that prints"
        asked = "it has changed since: look again" if any(each == name for each, _ in self.files) else "look at it"
        return f"{asked}; to let it in, add this line to the list that pixels.looked_at names: {line}"
