"""A list of the files that an intake left out, one a line, for the institution's own people.

It names files, whose names may say who somebody is: it is its owner's alone, stays beside the vault, and no receipt and
no log holds a word of it. Lines are written as files are judged, so that an intake that is cut off leaves its list.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, TextIO

from client.intake.outcomes import Duplicate, Refused, describe, detail
from common.command_line import spelt_out
from common.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from client.intake.intake_report import Example

SUFFIX: Final = ".left-out.txt"


@dataclass(slots=True)
class LeftOut:
    """The list, open for writing; a context manager."""

    path: Path
    _file: TextIO

    @classmethod
    def create(cls, path: Path) -> Self:
        """A new list; one that exists is not overwritten.

        Raises:
            DataError: It cannot be made.

        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise DataError(
                f"{path}: the list of files cannot be made ({error.strerror}); give another path"
            ) from error
        return cls(path, os.fdopen(descriptor, "w", encoding="utf-8", buffering=1))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()
        if not self.path.stat().st_size:
            self.path.unlink()

    def note(self, example: Example) -> None:
        """Write a file down unless it is kept.

        Raises:
            DataError: The disk does not take it.

        """
        if isinstance(example.outcome, Refused | Duplicate):
            try:
                self._file.write(f"{line(example)}\n")
            except OSError as error:
                raise DataError(f"{self.path}: {error.strerror}; make room and begin again") from error


def line(example: Example) -> str:
    """Outcome, reason, name and detail; what does not print is spelt out, so that a name cannot write a line."""
    outcome, why = describe(example.outcome)
    told = detail(example.outcome)
    more = f" ({told})" if told else ""
    return spelt_out(f"{outcome}: {why}: {example.name}{more}")
