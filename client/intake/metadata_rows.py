"""Rows of ``metadata.jsonl``, ``.json`` and ``.csv``: one that cannot be used becomes a refusal and never stops others.

Lines are read one at a time and have a largest length, so that neither a huge line nor deep nesting fills the memory; a
``.json`` file, which holds one list, has a largest size.

What is said of consent counts only if it is said exactly: whatever is not a known yes is a no or a refusal, and so is
an empty cell under ``consent``.
"""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import TYPE_CHECKING, Final, NoReturn, Protocol

import msgspec
from msgspec import UNSET, UnsetType

from client.intake.metadata_keys import KEYS, has_key, unused_keys
from client.intake.outcomes import Reason, Refused
from client.intake.subjects import clean_subject_id
from common.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import TextIOWrapper
    from pathlib import Path

MAX_LINE_BYTES: Final = 1 << 20
MAX_LIST_BYTES: Final = 256 << 20
_BOM: Final = b"\xef\xbb\xbf"
_YES: Final = frozenset({"true", "yes", "y", "1"})
_NO: Final = frozenset({"false", "no", "n", "0", "", "n/a", "na", "nan", "none", "null", "unknown", "-", "?"})
_UNTIL: Final = re.compile(r"(?:until )?(\d{4}-\d{2}-\d{2})")
_EXAMPLE: Final = '{"file_name": "0001.png", "text": "what the picture shows"}'
_SEPARATORS: Final = ",;\t|"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What one row says about a file."""

    where: str
    """File and line, for the institution's own people."""
    file_name: str = field(repr=False)
    """As the row spells it: below the folder that the metadata lies in."""
    caption: str = field(repr=False, default="")
    subject_id: str | None = field(repr=False, default=None)
    label: str | None = field(repr=False, default=None)
    consent: bool | None = None
    """None: the row says nothing about it."""
    expires: date | None = None
    """First day on which the picture may no longer be used."""
    unused: tuple[str, ...] = ()
    """Keys that nobody reads."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that names no file, or cannot be used."""

    where: str
    refused: Refused
    file_name: str | None = field(repr=False, default=None)
    """The file that it is about, if that can be told."""


class _Fields(msgspec.Struct, frozen=True):
    """The keys that count."""

    file_name: str
    text: str | None = None
    caption: str | None = None
    subject_id: str | int | UnsetType | None = UNSET
    label: str | int | None = None
    consent: bool | int | str | UnsetType | None = UNSET
    expires: str | None = None


class _Table(Protocol):
    """What :func:`csv.reader` makes."""

    @property
    def line_num(self) -> int: ...
    def __next__(self) -> list[str]: ...


def read_rows(path: Path, shown: str) -> Iterator[Row | BadRow]:
    """The rows of a file, by its suffix; ``shown`` is what it is called.

    Raises:
        DataError: A table whose columns, or a list whose form, cannot be used: then no row can be trusted.
        OSError: It cannot be read.

    """
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return _read_csv(path, shown)
    return _read_list(path, shown) if suffix == ".json" else _read_jsonl(path, shown)


def _read_jsonl(path: Path, shown: str) -> Iterator[Row | BadRow]:
    """One JSON object a line; blank lines do not count."""
    for number, line in enumerate(_lines(path), start=1):
        where = f"{shown} line {number}"
        if line is None:
            yield _bad(where, f"longer than {MAX_LINE_BYTES} bytes")
        elif line.strip():
            yield _parsed(line, where)


def _read_list(path: Path, shown: str) -> Iterator[Row | BadRow]:
    """One JSON list of objects."""
    with path.open("rb") as file:
        data = file.read(MAX_LIST_BYTES + 1).removeprefix(_BOM)
    if len(data) > MAX_LIST_BYTES:
        raise DataError(f"{path}: more than {MAX_LIST_BYTES >> 20} MiB; write one row a line into metadata.jsonl")
    try:
        rows = msgspec.json.decode(data, type=list[msgspec.Raw])
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: wanted a list [{_EXAMPLE}, ...] ({error}); or write one row a line into metadata.jsonl"
        ) from error
    for number, row in enumerate(rows, start=1):
        yield _parsed(bytes(row), f"{shown} row {number}")


def _parsed(data: bytes, where: str) -> Row | BadRow:
    name: str | None = None
    try:
        found = json.loads(data.decode(), object_pairs_hook=_once, parse_constant=_no_number)
        if not isinstance(found, dict):
            raise ValueError(f"wanted an object, got a {type(found).__name__}")  # noqa: TRY301, TRY004 - told like the rest
        name = found.get("file_name") if isinstance(found.get("file_name"), str) else None
        for text in found.values():
            if isinstance(text, str):
                text.encode()  # half of a surrogate pair has no encoding
        return _row(found, where)
    except (ValueError, RecursionError) as error:  # msgspec's, JSON's and Unicode's are ValueErrors
        return _bad(where, f"{error}; wanted {_EXAMPLE}", name)


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object whose keys are all different: of ``consent`` given twice, the last would win."""
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)[:80]!r} is given twice; keep one")
    return dict(pairs)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _read_csv(path: Path, shown: str) -> Iterator[Row | BadRow]:
    """A table whose first line names the columns, ``file_name`` among them; separated as that line is."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader, header = _header(file, path)
        width = len(header)
        while True:
            where, name = f"{shown} line {reader.line_num + 1}", None
            try:
                cells = next(reader)
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != width:
                    raise ValueError(f"{len(cells)} cells, and the first line names {width}; put quotes around text")  # noqa: TRY301 - told like the rest
                row = dict(zip(header, cells, strict=True))
                name = row["file_name"]
                for text in cells:
                    text.encode()  # not UTF-8 became surrogates, which have no encoding
                yield _row({key: text or None if key != "consent" else text for key, text in row.items()}, where)
            except StopIteration:
                return
            except (csv.Error, ValueError, TypeError) as error:
                reason = "not UTF-8" if isinstance(error, UnicodeEncodeError) else str(error)
                yield _bad(where, reason, name)


def _header(file: TextIOWrapper, path: Path) -> tuple[_Table, list[str]]:
    first = file.readline(MAX_LINE_BYTES)
    file.seek(0)
    separators = [each for each in _SEPARATORS if has_key(next(csv.reader([first], delimiter=each), []), "file_name")]
    reader = csv.reader(file, delimiter=separators[0] if separators else ",", strict=True)
    try:
        header = next(reader, [])
        unused_keys(header)
    except (csv.Error, ValueError) as error:
        raise DataError(f"{path}: its first line: {error}") from None
    if "file_name" not in header:
        raise DataError(f"{path}: its first line names no file_name; wanted columns such as file_name,text,subject_id")
    return reader, header


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


def _row(found: dict[str, object], where: str) -> Row:
    """Check keys, types and what types cannot say; raises ValueError."""
    unused = unused_keys(found)
    fields = msgspec.convert({key: value for key, value in found.items() if key in KEYS}, _Fields)
    if not fields.file_name.strip():
        raise ValueError("file_name is blank")
    if fields.text and fields.caption and fields.text != fields.caption:
        raise ValueError('"text" and "caption" differ; keep one')
    subject = None if fields.subject_id is UNSET or fields.subject_id is None else str(fields.subject_id)
    if subject is not None and not clean_subject_id(subject):
        raise ValueError("subject_id is blank; name the subject or leave the key out")
    consent, until = (None, None) if fields.consent is UNSET else _consent(fields.consent)
    ends = [day for day in (until, _day(fields.expires)) if day is not None]
    return Row(
        where=where,
        file_name=fields.file_name,
        caption=fields.text or fields.caption or "",
        subject_id=None if subject is None else clean_subject_id(subject),
        label=None if fields.label is None else str(fields.label),
        consent=consent,
        expires=min(ends, default=None),
        unused=unused,
    )


def _consent(value: bool | int | str | None) -> tuple[bool, date | None]:  # noqa: FBT001 - the row's own value
    """Whether there is consent, and the first day without; anything unclear is refused, never taken for a yes."""
    word = "" if value is None else str(value).strip().lower()
    if word in _YES | _NO:
        return word in _YES, None
    if found := _UNTIL.fullmatch(word):
        return True, date.fromisoformat(found.group(1)) + timedelta(days=1)
    raise ValueError('consent: wanted true, false or "until YYYY-MM-DD"')


def _day(text: str | None) -> date | None:
    if text is None or not text.strip():
        return None
    try:
        return date.fromisoformat(text.strip())
    except ValueError:
        raise ValueError("expires: wanted YYYY-MM-DD, the first day on which the picture may not be used") from None


def _bad(where: str, detail: str, file_name: str | None = None) -> BadRow:
    return BadRow(where, Refused(Reason.BAD_ROW, detail[:300]), file_name)
