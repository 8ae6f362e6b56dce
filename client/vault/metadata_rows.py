"""Rows of ``metadata.jsonl`` and ``metadata.csv``: a row that cannot be used becomes a refusal and never stops others.

Lines are read one at a time and have a largest length, so that neither a huge line nor deep nesting fills the memory.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from client.vault.outcomes import Reason, Refused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_LINE_BYTES: Final = 1 << 20
_BOM: Final = b"\xef\xbb\xbf"
_YES: Final = frozenset({"true", "yes", "y", "1"})
_NO: Final = frozenset({"false", "no", "n", "0"})
_UNTIL: Final = re.compile(r"(?:until )?(\d{4}-\d{2}-\d{2})")
_EXAMPLE: Final = '{"file_name": "0001.png", "text": "what the picture shows"}'
Scalar: TypeAlias = str | int | bool | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What one row says about a file."""

    where: str
    """File and line, for the institution's own people."""
    file_name: str = field(repr=False)
    caption: str = field(repr=False, default="")
    subject_id: str | None = field(repr=False, default=None)
    label: str | None = field(repr=False, default=None)
    consent: bool | None = None
    """None: the row says nothing about it."""
    expires: date | None = None
    """First day on which the picture may no longer be used."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that names no file, or cannot be read."""

    where: str
    refused: Refused


class _Fields(msgspec.Struct, frozen=True):
    """The keys that count; others are ignored."""

    file_name: str
    text: str | None = None
    caption: str | None = None
    subject_id: str | int | None = None
    label: str | int | None = None
    consent: bool | str | None = None
    expires: str | None = None


def read_jsonl(path: Path) -> Iterator[Row | BadRow]:
    """One JSON object a line; blank lines do not count."""
    for number, line in enumerate(_lines(path), start=1):
        where = f"{path.name} line {number}"
        if line is None:
            yield _bad(where, f"longer than {MAX_LINE_BYTES} bytes")
        elif line.strip():
            try:
                yield _row(msgspec.json.decode(line, type=_Fields), where)
            except (ValueError, RecursionError) as error:  # msgspec's and Unicode's are ValueErrors
                yield _bad(where, f"{error}; wanted {_EXAMPLE}")


def read_csv(path: Path) -> Iterator[Row | BadRow]:
    """A comma-separated table whose first line names the columns, ``file_name`` among them."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file, restkey="", restval="")
        while True:
            where = f"{path.name} line {reader.reader.line_num + 1}"
            try:
                cells = next(reader)
                fields = {key: text for key, text in cells.items() if key in _Fields.__struct_fields__ and text}
                for text in fields.values():
                    text.encode()  # not UTF-8 became surrogates, which have no encoding
                yield _row(msgspec.convert(fields, _Fields), where)
            except StopIteration:
                return
            except (csv.Error, ValueError, TypeError) as error:
                reason = "not UTF-8" if isinstance(error, UnicodeEncodeError) else str(error)
                yield _bad(where, reason)


def _lines(path: Path) -> Iterator[bytes | None]:
    """Lines without their ends; None for one that is too long. Only a line feed ends a line."""
    with path.open("rb") as file:
        start = file.read(len(_BOM))
        if start != _BOM:
            file.seek(0)
        while line := file.readline(MAX_LINE_BYTES + 1):
            if len(line) <= MAX_LINE_BYTES or line.endswith(b"\n"):
                yield line
                continue
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE_BYTES)
            yield None


def _row(fields: _Fields, where: str) -> Row:
    """Check what types cannot say; raises ValueError."""
    if not fields.file_name.strip():
        raise ValueError("file_name is blank")
    if None not in {fields.text, fields.caption} and fields.text != fields.caption:
        raise ValueError('"text" and "caption" differ; keep one')
    if fields.subject_id is not None and not str(fields.subject_id).strip():
        raise ValueError("subject_id is blank; name the subject or leave the key out")
    consent, until = _consent(fields.consent)
    ends = [day for day in (until, _day(fields.expires)) if day is not None]
    return Row(
        where=where,
        file_name=fields.file_name,
        caption=fields.text or fields.caption or "",
        subject_id=None if fields.subject_id is None else str(fields.subject_id),
        label=None if fields.label is None else str(fields.label),
        consent=consent,
        expires=min(ends, default=None),
    )


def _consent(value: bool | str | None) -> tuple[bool | None, date | None]:  # noqa: FBT001 - the row's own value
    """Whether there is consent, and the first day without; anything unclear is refused, never taken for a yes."""
    if value is None or isinstance(value, bool):
        return value, None
    word = value.strip().lower()
    if word in _YES | _NO:
        return word in _YES, None
    if found := _UNTIL.fullmatch(word):
        return True, date.fromisoformat(found.group(1)) + timedelta(days=1)
    raise ValueError('consent: wanted true, false or "until YYYY-MM-DD"')


def _day(text: str | None) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text.strip())
    except ValueError:
        raise ValueError("expires: wanted YYYY-MM-DD, the first day on which the picture may not be used") from None


def _bad(where: str, detail: str) -> BadRow:
    return BadRow(where, Refused(Reason.BAD_ROW, detail[:300]))
