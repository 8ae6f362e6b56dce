"""One HTML page of before and after, for a person at the institution to look at.

It holds what must not leave: previews and captions as they came in. So it is one file, readable by its owner alone,
that loads nothing, runs no script and is never overwritten over another file's link.

Files in which text was found, and which a person has looked at and lets in.

A line is one of ``sha256sum``: 64 hexadecimal digits, two blanks (or a blank and an asterisk), and the name below the
folder. Name and content must both fit, so that a file which was changed, or another one under the same name, is asked
for again.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Final

from client.intake.captions import read_list
from client.intake.outcomes import SHEET_PICTURES, describe, detail
from common.durable_files import write_atomically
from common.errors import ConfigError

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from client.intake.outcomes import Example, IntakeReport


_TEMPLATE: Final = "contact_sheet.html"
_TITLES: Final = (
    ("refused", "Refused"),
    ("duplicate", "Duplicates"),
    ("converted", "Converted"),
    ("accepted", "Accepted"),
)


def write_contact_sheet(report: IntakeReport, path: Path, *, now: datetime) -> None:
    """Write or replace the page; a link in its place is replaced and not followed."""
    write_atomically(path, render_contact_sheet(report, now=now).encode(errors="backslashreplace"))


def render_contact_sheet(report: IntakeReport, *, now: datetime) -> str:
    """The page's HTML; everything from files is escaped."""
    import jinja2  # noqa: PLC0415 - only a dry run needs this extra

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(resources.files("client.intake").joinpath(_TEMPLATE).read_text("utf-8"))
    shown = [_shown(example) for example in report.examples]
    sections = [(title, [each for each in shown if each["outcome"] == kind]) for kind, title in _TITLES]
    return template.render(
        time=now.isoformat(timespec="seconds"),
        mode="dry run, nothing was added",
        counts=sorted(report.outcomes.items()),
        sections=[(title, examples) for title, examples in sections if examples],
        limit=SHEET_PICTURES,
    )


def _shown(example: Example) -> dict[str, str]:
    outcome, why = describe(example.outcome)
    return {
        "name": example.name,
        "outcome": outcome,
        "why": why,
        "detail": detail(example.outcome),
        "caption_before": example.caption_before,
        "caption_after": example.caption_after,
        "before": base64.b64encode(example.before).decode(),
        "after": base64.b64encode(example.after).decode(),
    }


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
