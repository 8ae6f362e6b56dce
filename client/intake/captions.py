"""Take out of a caption what tells who somebody is: by rules that anybody can read, and a site's own list of names.

Rules find what has a form: mail and web addresses, numbers, dates. They do not find a name that is not in the list, a
place, or a diagnosis so rare that it names its patient; names in scripts that put no spaces between words are not
found either. A person must look at the contact sheet. Too much is removed rather than too little: any seven digits in a
row of digits and separators go, but for a range of two numbers before a unit of measure.

Guarantee:
    With the built-in rules: the result is valid Unicode in NFKC, of at most ``max_characters``, without control, format
    (zero-width, bidirectional), surrogate, private or unassigned characters; scrubbing it again changes nothing; and no
    rule matches it outside a placeholder.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from client.intake.caption_patterns import PATTERNS, PLACEHOLDER
from common.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

MAX_RAW_CHARACTERS: Final = 20_000
"""A longer text is no caption; it is refused and not searched, so that no text takes long to search."""
_MARKS: Final = "\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
_WORD: Final = re.compile(rf"\d+|[^\W\d_](?:[^\W\d_]|[{_MARKS}])*")
"""Letters with their accents, or digits: a name that runs into a number is still one."""
_UNDECOMPOSED: Final = str.maketrans(
    {"ı": "i", "ł": "l", "ø": "o", "đ": "d", "æ": "ae", "œ": "oe", "þ": "th", "ð": "d"}
)
_UMLAUTS: Final = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ø": "oe", "å": "aa"})
_DIGRAPHS: Final = re.compile(r"(?<=[aou])e")
_LONG_ENOUGH: Final = 4
"""Letters of a name for which a spelling without its umlauts is looked for; shorter ones would hit other words."""
_ACCENTS: Final = frozenset({"Mn", "Me"})
_UNWANTED: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
_BLANK: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Letters and marks that show nothing (Unicode's default ignorable ones), such as selectors of a glyph's variant."""
_MAX_LIST_BYTES: Final = 64 << 20


class CaptionTooLong(ValueError):
    """A text that is too long to be a caption."""


class SpanFinder(Protocol):
    """Another finder of what identifies people, such as Presidio's analyser."""

    def find(self, text: str) -> Sequence[tuple[int, int, str]]:
        """Start, end and kind of each finding; the kind is one lower-case word."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ScrubbedCaption:
    """What may be kept, and how often each rule matched."""

    text: str = field(repr=False)
    counts: tuple[tuple[str, int], ...]
    is_cut: bool = False


class Names:
    """A site's list of names, matched word by word whatever the case, accents or what stands between.

    A name of several words is found backwards and written as one, and one with umlauts (or Danish vowels) in either
    spelling.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """One entry a name of one or more words; single letters are left out, since they would hit everything."""
        words = {spelling for name in names for spelling in _spellings(name)}
        self._by_first: dict[str, list[tuple[str, ...]]] = {}
        for entry in sorted(words, key=len, reverse=True):
            if sum(map(len, entry)) > 1:
                self._by_first.setdefault(entry[0], []).append(entry)

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        """Spans that do not overlap, longest entry first."""
        words = [(match.start(), match.end(), folded(match.group())) for match in _WORD.finditer(text)]
        index = 0
        while index < len(words):
            size = self._match(words, index)
            if size:
                yield words[index][0], words[index + size - 1][1]
            index += size or 1

    def _match(self, words: list[tuple[int, int, str]], index: int) -> int:
        for entry in self._by_first.get(words[index][2], ()):
            if entry == tuple(word for _, _, word in words[index : index + len(entry)]):
                return len(entry)
        return 0


@dataclass(frozen=True, kw_only=True)
class CaptionScrubber:
    """The rules of one intake."""

    names: Names = field(default_factory=lambda: Names(()))
    max_characters: int = 1000
    finder: SpanFinder | None = None

    def scrub(self, raw: str) -> ScrubbedCaption:
        """Normalise, replace what identifies by placeholders such as ``[name]``, and shorten.

        Raises:
            CaptionTooLong: More than :data:`MAX_RAW_CHARACTERS`.

        """
        if len(raw) > MAX_RAW_CHARACTERS:
            raise CaptionTooLong(f"{len(raw)} characters; at most {MAX_RAW_CHARACTERS} are read")
        counts: Counter[str] = Counter()
        text, is_cut = clean_text(raw), False
        if self.finder is not None:
            text = self._apply_finder(text, counts)
        while True:  # each turn takes something away: a placeholder is never looked into
            scrubbed = clean_text(self._apply_rules(text, counts))
            if len(scrubbed) > self.max_characters:
                scrubbed, is_cut = _shortened(scrubbed, self.max_characters), True
            if scrubbed == text:
                return ScrubbedCaption(text=text, counts=tuple(sorted(counts.items())), is_cut=is_cut)
            text = scrubbed

    def _apply_finder(self, text: str, counts: Counter[str]) -> str:
        spans = self.finder.find(text) if self.finder is not None else ()
        for start, end, kind in sorted(spans, reverse=True):
            word = kind.lower().replace("_", " ") if re.fullmatch(r"[A-Za-z_]{1,30}", kind) else "removed"
            text = f"{text[:start]}[{word}]{text[end:]}"
            counts[f"presidio {word}"] += 1
        return text

    def _apply_rules(self, text: str, counts: Counter[str]) -> str:
        for rule, pattern in PATTERNS:
            text = _outside_placeholders(text, partial(_replace, rule=rule, pattern=pattern, counts=counts))
        return _outside_placeholders(text, lambda part: self._replace_names(part, counts))

    def _replace_names(self, part: str, counts: Counter[str]) -> str:
        spans = list(self.names.find(part))
        counts.update({"name": len(spans)} if spans else {})
        for start, end in reversed(spans):
            part = f"{part[:start]}[name]{part[end:]}"
        return part


def clean_text(text: str) -> str:
    """NFKC, one blank for each run of white space, and no character that is invisible or means nothing.

    NFKC, not NFC: otherwise full-width or superscript look-alikes of digits and of ``@`` pass every rule.
    """
    while True:  # taking a character out can bring two together that compose
        spaced = "".join(" " if char.isspace() else char for char in unicodedata.normalize("NFKC", text))
        visible = "".join(char for char in without_blanks(spaced) if unicodedata.category(char) not in _UNWANTED)
        cleaned = " ".join(visible.split())
        if cleaned == text:
            return cleaned
        text = cleaned


def without_blanks(text: str) -> str:
    """The text without letters and marks that show nothing."""
    return _BLANK.sub("", text)


def folded(word: str) -> str:
    """Lower case without accents."""
    decomposed = unicodedata.normalize("NFKD", word.casefold().translate(_UNDECOMPOSED))
    return "".join(char for char in decomposed if unicodedata.category(char) not in _ACCENTS).translate(_UNDECOMPOSED)


def _spellings(name: str) -> Iterator[tuple[str, ...]]:
    """The forms that a name is looked for in, each as its words."""
    clean = clean_text(name)
    plain = tuple(folded(word) for word in _WORD.findall(clean))
    spelt_out = tuple(folded(word) for word in _WORD.findall(clean.casefold().translate(_UMLAUTS)))
    shortened = (_DIGRAPHS.sub("", word) for word in plain)
    contracted = tuple(
        short if len(short) >= _LONG_ENOUGH else word for short, word in zip(shortened, plain, strict=True)
    )
    for words in {plain, spelt_out, contracted}:
        yield words
        yield words[::-1]
        yield ("".join(words),)


def read_list(path: Path) -> tuple[str, ...]:
    """Entries of a text file, one a line; blank lines and those that begin with ``#`` do not count.

    Raises:
        ConfigError: Missing, larger than 64 MiB, or not UTF-8.

    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_LIST_BYTES + 1)
        if len(data) > _MAX_LIST_BYTES:
            raise ConfigError(f"{path}: wanted a list of at most {_MAX_LIST_BYTES >> 20} MiB")
        lines = data.decode("utf-8-sig").splitlines()
    except OSError as error:
        raise ConfigError(f'{path}: cannot be read ({error.strerror}); mend the path or set it to ""') from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    return tuple(line.strip() for line in lines if line.strip() and not line.strip().startswith("#"))


def _outside_placeholders(text: str, change: Callable[[str], str]) -> str:
    parts = PLACEHOLDER.split(text)  # the odd ones are placeholders
    return "".join(part if index % 2 else change(part) for index, part in enumerate(parts))


def _replace(part: str, *, rule: str, pattern: re.Pattern[str], counts: Counter[str]) -> str:
    replaced, count = pattern.subn(f"[{rule}]", part)
    if count:
        counts[rule] += count
    return replaced


def _shortened(text: str, limit: int) -> str:
    """At most ``limit`` characters, cut between words if there is a blank in the last quarter."""
    head = text[: limit + 1]
    blank = head.rfind(" ")
    return head[:blank] if blank >= limit * 3 // 4 else text[:limit].rstrip()
