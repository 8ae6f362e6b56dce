"""One HTML page of before and after, for a person at the institution to look at.

It holds what must not leave: previews and captions as they came in. So it is one file, readable by its owner alone,
that loads nothing, runs no script and is never overwritten over another file's link.
"""

from __future__ import annotations

import base64
import os
from importlib import resources
from typing import TYPE_CHECKING, Final

from client.intake.intake_report import SHEET_PICTURES
from client.intake.outcomes import describe, detail

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from client.intake.intake_report import Example, IntakeReport

_TEMPLATE: Final = "contact_sheet.html"
_TITLES: Final = (
    ("refused", "Refused"),
    ("duplicate", "Duplicates"),
    ("converted", "Converted"),
    ("accepted", "Accepted"),
)


def write_contact_sheet(report: IntakeReport, path: Path, *, now: datetime) -> None:
    """Write or replace the page; a link in its place is replaced and not followed."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(render_contact_sheet(report, now=now))
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


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
