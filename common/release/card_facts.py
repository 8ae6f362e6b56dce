"""What a coordinator says in a release's card in its own words, and which words a stranger may read there.

Words are plain text of one line: what is seen is what is written. Whoever verifies holds them to this as well, because
a coordinator need not use our command to write them.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta

from common.config import Config
from common.manifest.manifest import InstitutionName  # noqa: TC001 - msgspec reads annotations at run time

if TYPE_CHECKING:
    from collections.abc import Iterator

Line = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=2000,
        pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]+\Z",
        description="one line of 1 to 2000 characters",
    ),
]
Items = Annotated[tuple[Line, ...], Meta(max_length=64)]

_MARKUP: Final = frozenset("<>`[]|\\&$~^{}")
"""Begin tags, entities, code, links, pictures, tables, footnotes, formulas and strikes, in one Markdown or another."""
_SEEN: Final = frozenset("LMNPS")
"""First letters of the general categories that are seen; control, format, private and unassigned characters are not."""
_UNSEEN: Final = frozenset(
    map(chr, (0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0, 0xFFFC, 0xFFFD, 0x1D159))
) | frozenset(map(chr, (*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))
"""Letters, marks and symbols that are not seen either: fillers, variation selectors, empty patterns."""
_MARKS_IN_A_ROW: Final = 3
"""More are stacked over the lines around."""
_EPSILON: Final = re.compile(
    r"(?<![^\W\d_])(?:ε(?![^\W\d_])|eps(?:[\W_]|of|is|was|at|below|under|about|value|total)*\d"
    r"|(?:eps|[єɛԑ∈∊])\s*(?:[=:<≤≈≃∼]|\d))",
)
"""In folded text: by itself, or as an abbreviation or a look-alike before a figure."""
_BETWEEN: Final = re.compile(r"[\W_]+")
_ALPHABETS: Final = ("LATIN", "CYRILLIC", "GREEK")
_UNITS: Final = frozenset("μΩω")
"""Greek letters that stand beside Latin ones in units."""


class DataCategory(Config, frozen=True, kw_only=True):
    """One kind of data that was trained on."""

    category: Line
    """What kind, as "retina photographs"; no count."""
    source: Line | None = None
    """Where from, and on what legal ground."""
    institution: InstitutionName | None = None
    """Whose; only where the roster is public."""

    def faults(self) -> Iterator[str]:
        """Words that a card may not have."""
        yield from _faults(("category", self.category), ("source", self.source))


class CardFacts(Config, frozen=True, kw_only=True):
    """What a coordinator alone can say. Every key may be absent."""

    title: Line | None = None
    """Absent: the run's."""
    summary: Line | None = None
    licence: (
        Annotated[
            str,
            Meta(pattern=r"^[a-z0-9][a-z0-9.-]{0,60}\Z", description="a licence's short name, such as cc-by-4.0"),
        ]
        | None
    ) = None
    """Hugging Face's identifier of a licence, such as ``cc-by-nc-4.0``; mind the base model's own."""
    base_model: (
        Annotated[
            str,
            Meta(
                pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}\Z",
                description="a name on the hub, such as owner/model",
            ),
        ]
        | None
    ) = None
    """The base's hub id."""
    contact: Line | None = None
    data: tuple[DataCategory, ...] = ()
    intended: Items = ()
    not_intended: Items = ()
    limits: Items = ()

    def faults(self) -> Iterator[str]:
        """Words that a card may not have; those of ``data`` stand there."""
        for name in ("title", "summary", "licence", "base_model", "contact"):
            yield from _faults((name, getattr(self, name)))
        for name in ("intended", "not_intended", "limits"):
            yield from _faults(*((f"{name}[{place}]", text) for place, text in enumerate(getattr(self, name))))


def every_fault(facts: CardFacts) -> Iterator[str]:
    """The same, of ``data`` as well."""
    yield from facts.faults()
    for place, each in enumerate(facts.data):
        yield from (f"data[{place}].{fault}" for fault in each.faults())


def word_fault(text: str) -> str | None:
    """Why a card may not have this line of words; None if it may.

    Guarantee: every character of a line that may stand is one that is seen, in the order in which it stands but for
    right-to-left letters; no character begins Markdown other than emphasis, or HTML; none changes when the text is
    normalised to NFC. It names no ε, under no look-alike that is listed here. What it claims in other words is not
    understood, which is why such words stand apart in a card, under a heading that says whose they are.
    """
    return next(_word_faults(text), None)


def _word_faults(text: str) -> Iterator[str]:
    categories = "".join(unicodedata.category(character)[0] for character in text)
    for place, (character, category) in enumerate(zip(text, categories, strict=True), start=1):
        if (category not in _SEEN and character != " ") or character in _UNSEEN:
            yield f"{_name(character)} at place {place} is not seen; wanted letters, digits, signs and plain spaces"
        if character in _MARKUP:
            yield f"{_name(character)} at place {place} may begin markup; wanted plain words"
    if not unicodedata.is_normalized("NFC", text):
        yield "wanted Unicode's composed form (NFC); type the words anew, or have an editor normalise them"
    if "M" * (_MARKS_IN_A_ROW + 1) in categories:
        yield f"wanted at most {_MARKS_IN_A_ROW} accents on one letter"
    for word in re.findall(r"[^\W\d_]+", unicodedata.normalize("NFKC", text)):
        names = (unicodedata.name(character, "") for character in word if character not in _UNITS)
        if len({alphabet for name in names for alphabet in _ALPHABETS if name.startswith(alphabet)}) > 1:
            yield f"{word!r} mixes alphabets, whose letters look alike; write each word in one"
    folded = _folded(text)
    if "epsilon" in _BETWEEN.sub("", folded) or _EPSILON.search(folded):  # the name in pieces as well
        yield "states an ε; the card's section on privacy does, from the run's own figures: leave it out here"


def _faults(*lines: tuple[str, str | None]) -> Iterator[str]:
    for name, text in lines:
        if text is not None and (fault := word_fault(text)) is not None:
            yield f"{name}: {fault}"


def _name(character: str) -> str:
    return f"U+{ord(character):04X} ({unicodedata.name(character, 'without a name')})"


def _folded(text: str) -> str:
    """Small letters without accents, widths and styles."""
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    return "".join(character for character in plain if unicodedata.category(character)[0] != "M")
