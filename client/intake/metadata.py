"""What the metadata of a folder says of its pictures, and the captions that lie beside them.

Files: ``metadata.jsonl``, ``.json`` or ``.csv``, in whatever letter case, at the top or in any folder below; each
speaks of the pictures below its own folder. A file that may be metadata and is not read could hold somebody's "no", so
it stops the intake: one that is named like it, one that is a link, one with a key that speaks of consent, such as
``0001.json`` beside ``0001.png``, and, where there is no metadata, any table.

Rows: one that cannot be used becomes a refusal and never stops others. Lines are read one at a time and have a largest
length, so that neither a huge line nor deep nesting fills the memory; a ``.json`` file, which holds one list, has a
largest size. What is said of consent counts only if it is said exactly: whatever is not a known yes is a no or a
refusal, and so is an empty cell under ``consent``.

Keys: one that nobody reads is how a "no" gets lost. ``Consent``, ``consent `` or ``opt-out`` with ``false`` beside them
would leave the picture as if nothing had been said. So a key near one that counts is refused, and others are told of.

Captions beside pictures: ``a.txt``, ``a.caption`` or ``a.png.txt`` for ``a.png``, in any letter case.
"""

from __future__ import annotations

import csv
import difflib
import json
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec
from msgspec import UNSET, UnsetType

from client.intake.captions import MAX_RAW_CHARACTERS
from client.intake.outcomes import Reason, Refused
from client.intake.subjects import clean_subject_id
from common.errors import DataError

if TYPE_CHECKING:
    from _csv import Reader
    from collections.abc import Collection, Iterable, Iterator
    from io import TextIOWrapper
    from pathlib import Path

MAX_LINE_BYTES: Final = 1 << 20
MAX_LIST_BYTES: Final = 256 << 20
_MAX_CAPTION_BYTES: Final = 4 * MAX_RAW_CHARACTERS
_MOST_LOOKED_AT: Final = 256 << 20
_BOM: Final = b"\xef\xbb\xbf"
_STEM: Final = "metadata"
_TABLE_SUFFIXES: Final = frozenset({".jsonl", ".json", ".csv"})
"""Of metadata; beside these, a text is no caption."""
_CAPTION_SUFFIXES: Final = frozenset({".txt", ".caption"})
_TABLES: Final = frozenset(
    {".csv", ".tsv", ".jsonl", ".ndjson", ".xlsx", ".xls", ".ods", ".parquet", ".arrow", ".feather"}
)
_TEXTS: Final = _TABLES | {".json", ".txt", ".yaml", ".yml", ".xml", ".bak", ".old", ".tmp", ""}
_KEYED: Final = frozenset({".json", ".yaml", ".yml", ".xml", ".xmp", ".toml", ".ini"})
"""Texts with keys, of which datasets put one beside each picture or one over all."""
_CONSENT_KEY: Final = re.compile(
    rb"(?:consent|opt(?:ed)?[ _-]?(?:out|in)|withdr[ae]w|revok|einwillig)[\w -]*[\"']?\s*[:=>]", re.IGNORECASE
)
"""A key of JSON, YAML, TOML or XML; not the same words in a text."""
_SPEAK: Final = ("metadata", "consent", "optout", "optedout")
_WAY_OUT: Final = "name it metadata.jsonl, .json or .csv if it speaks of the pictures, or take it out of the folder"
KEYS: Final = ("file_name", "text", "caption", "subject_id", "label", "consent", "expires")
_SQUEEZED: Final = {key.replace("_", ""): key for key in KEYS}
_LISTED: Final = 10
_NEAR: Final = 0.8
"""Share of letters in common, by difflib's measure: one wrong, missing, exchanged or too many in five or more."""
_SPEAKS_OF: Final = (
    ("consent", re.compile(r"consent|opt(?:ed)?(?:out|in)|withdr[ae]w|revok|permission|permitted|objection|einwillig")),
    ("expires", re.compile(r"expir|valid(?:until|till?|to)|useuntil|deleteafter|notafter")),
    (
        "subject_id",
        re.compile(
            r"(?:subject|patient|person|participant|donor|proband|sitter)s?"
            r"(?:id|ids|no|nr|num|number|name|key|code|uid|uuid|identifier|pseudonym)?"
        ),
    ),
)
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


def find_metadata(folder: Path, names: Iterable[str]) -> tuple[str, ...]:
    """Those of the folder's file names that are to be read, at most one in each folder.

    Raises:
        DataError: One that may be metadata cannot be read.

    """
    names = tuple(names)
    found = tuple(name for name in names if _is_metadata(PurePosixPath(name)))
    for name in names:
        unread = _seems(PurePosixPath(name)) or (not found and _suffix(name) in _TABLES)
        if name not in found and (unread or _has_consent_key(folder / name)):
            raise DataError(f"{folder / name}: may say who consents, and is not read; {_WAY_OUT}")
    folders: dict[PurePosixPath, str] = {}
    for name in found:
        if other := folders.setdefault(PurePosixPath(name).parent, name).removeprefix(name):
            raise DataError(f"{folder}: both {other} and {name}; keep one")
        if (folder / name).is_symlink() or not (folder / name).is_file():
            raise DataError(f"{folder / name}: is no file but a link or something else; copy the file into the folder")
    return found


def above(folder: Path) -> Path | None:
    """A metadata file in the folder above, which is not read."""
    try:
        names = sorted(path for path in folder.resolve().parent.iterdir() if path.is_file())
    except OSError:
        return None
    return next((path for path in names if _is_metadata(PurePosixPath(path.name))), None)


def _is_metadata(name: PurePosixPath) -> bool:
    return name.stem.casefold() == _STEM and _suffix(name) in _TABLE_SUFFIXES


def _seems(name: PurePosixPath) -> bool:
    """Whether it is named as if it were metadata, or spoke of consent, and is no picture by its suffix."""
    if _suffix(name) not in _TEXTS:
        return False
    squeezed = _squeezed(name.name)
    if any(word in squeezed for word in _SPEAK):
        return True
    is_table = _suffix(name) in _TABLES
    return is_table and bool(difflib.get_close_matches(name.stem.casefold(), [_STEM], cutoff=_NEAR))


def _has_consent_key(path: Path) -> bool:
    """Whether a text with keys has one that speaks of consent, or cannot be looked at."""
    if _suffix(path.name) not in _KEYED or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_LOOKED_AT + 1)
    except OSError:
        return True
    return len(text) > _MOST_LOOKED_AT or _CONSENT_KEY.search(text) is not None


def _suffix(name: str | PurePosixPath) -> str:
    return PurePosixPath(name).suffix.casefold()


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
        return _bad(where, f"{error}; a row is like {_EXAMPLE}", name)


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


def _header(file: TextIOWrapper, path: Path) -> tuple[Reader, list[str]]:
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


def unused_keys(keys: Iterable[str]) -> tuple[str, ...]:
    """Keys that are not read, none of which could be meant as one that is.

    Raises:
        ValueError: A key is given twice, or is near one that counts.

    """
    given = Counter(key for key in keys if key)  # a spreadsheet's empty columns have none
    faults = [f"{key[:80]!r} is given {number} times; keep one" for key, number in given.items() if number > 1]
    meant = {key: _meant(key) for key in given if key not in KEYS}
    faults += [f"unknown key {key[:80]!r}, did you mean {near!r}?" for key, near in meant.items() if near]
    if faults:
        raise ValueError(f"{'; '.join(faults[:_LISTED])}; rename such a key, or take it out")
    return tuple(meant)


def has_key(cells: Collection[str], key: str) -> bool:
    """Whether a table's header names the key, in whatever spelling."""
    return any(_squeezed(cell) == key.replace("_", "") for cell in cells)


def _meant(key: str) -> str | None:
    squeezed = _squeezed(key)
    if squeezed in _SQUEEZED:
        return _SQUEEZED[squeezed]
    for meant, pattern in _SPEAKS_OF:
        if pattern.fullmatch(squeezed) if meant == "subject_id" else pattern.search(squeezed):
            return meant
    near = difflib.get_close_matches(squeezed, _SQUEEZED, n=1, cutoff=_NEAR)
    return _SQUEEZED[near[0]] if near else None


def _squeezed(key: str) -> str:
    """Letters and digits alone, in small letters and without accents."""
    folded = unicodedata.normalize("NFKD", key).casefold()
    return "".join(char for char in folded if char.isalnum())


class Sidecars:
    """The caption files among the names of a folder's files."""

    def __init__(self, names: Iterable[str]) -> None:
        self._exact: dict[str, list[str]] = {}
        self._loose: dict[str, list[str]] = {}
        texts, keys = set[str](), set[str]()
        for name in names:
            stem, suffix = _split(name)
            if suffix in _CAPTION_SUFFIXES:
                texts.add(name)
                self._exact.setdefault(stem, []).append(name)
                self._loose.setdefault(_folded(stem), []).append(name)
            elif suffix not in _TABLE_SUFFIXES:
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
        texts = {each: _read_caption(folder / each) for each in self.beside(name)}
        for text in texts.values():
            if isinstance(text, Refused):
                return text
        if len({str(text).strip() for text in texts.values()}) > 1:
            return Refused(Reason.BAD_CAPTION, f"{' and '.join(texts)} differ; keep one")
        return str(next(iter(texts.values()), ""))


def _read_caption(path: Path) -> str | Refused:
    if path.is_symlink() or not path.is_file():
        return Refused(Reason.BAD_CAPTION, f"{path.name}: is no file but a link or something else; copy the file")
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_CAPTION_BYTES + 1)
        if len(data) > _MAX_CAPTION_BYTES:
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
