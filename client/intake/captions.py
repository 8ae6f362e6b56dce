"""Take out of a caption what tells who somebody is: by rules that anybody can read, and a site's own list of names.

Rules find what has a form: mail and web addresses, numbers, dates. They do not find a name that is not in the list, a
place, or a diagnosis so rare that it names its patient; names in scripts that put no spaces between words are not
found either. Microsoft Presidio finds some of these, if a site wants and installs it. A person must look at the contact
sheet. Too much is removed rather than too little: any seven digits in a row of digits and separators go, but for a
range of two numbers before a unit of measure.

:data:`PATTERNS` are looked for in their order, and written so that none takes more than about linear time: no repeated
group may begin with what it may end with. Dates follow HIPAA's Safe Harbor (45 CFR 164.514(b)(2)): a year alone may
stay, and ages from 90 on may not.

Guarantee:
    With the built-in rules: the result is valid Unicode in NFKC, of at most ``max_characters``, without control, format
    (zero-width, bidirectional), surrogate, private or unassigned characters; scrubbing it again changes nothing; and no
    rule matches it outside a placeholder.
"""

from __future__ import annotations

import importlib.util
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from common.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

VERSION: Final = 3
"""Goes into receipts; count it up with every change of a pattern."""
MAX_RAW_CHARACTERS: Final = 20_000
"""A longer text is no caption; it is refused and not searched, so that no text takes long to search."""
PLACEHOLDER: Final = re.compile(r"(\[[a-z][a-z ]{0,39}\])")
_MONTHS: Final = (
    "jan(?:uary|uar|vier|eiro)?|feb(?:ruary|ruar)?|f[eé]v(?:rier|ereiro)?|m[aä]r(?:ch|z|s|zo|ço)?|apr(?:il|ile)?|avr(?:il)?"
    "|abr(?:il)?|ma[iy]|maggio|mayo|maio|jun[ei]?|juin|giugno|junio|junho|jul[iy]?|juil(?:let)?|luglio|julio|julho"
    "|aug(?:ust)?|ao[uû]t|agosto|sep(?:t|tember|tembre|tiembre)?|setembro|settembre|o[ck]t(?:ober|obre|ubre)?|out(?:ubro)?"
    "|ottobre|nov(?:ember|embre|iembre|embro)?|de[czs](?:ember|embre|iembre|embro)?|d[eé]c(?:embre)?|dicembre|diciembre"
    "|enero|gennaio|febrero|febbraio|marzo|aprile"
)
_SPACE: Final = r"[ .,/_-]{1,3}"
_WORDS_BEFORE_NUMBERS: Final = (
    "mrn|medical record|record|patient|pat|pid|accession|acc|case|study|series|specimen|order|encounter|visit|account"
    "|acct|policy|insurance|licen[sc]e|passport|nhs|ssn|social security|serial|device|chart|file|ref|reference"
    "|id|dob|born"
)
_MEASURED: Final = (
    r"(?!\d{1,4}(?:\.\d{1,2})?-\d{1,4}(?:\.\d{1,2})? ?"
    r"(?:[\u03bcunmck]m|px|[\u03bcunm]s|[km]?hz|kvp?|ke?v|mev|[\u03bcum]g|kg|m?mol|[\u03bcm]l|hu|dpi|ppm|mmhg|bpm)(?!\w))"
)
"""Not where a range of measures begins, such as ``500-1000 µm``: a unit of two letters tells it from a number."""
PATTERNS: Final[tuple[tuple[str, re.Pattern[str]], ...]] = (
    ("address", re.compile(r"(?:https?|ftp|file|s3|sftp)://[^\s\[]+|\bwww\.[^\s\[]+", re.IGNORECASE)),
    ("email", re.compile(r"[^\s@\[\]<>()]{1,64} ?@ ?[^\s@\[\]<>()]{1,255}")),
    ("address", re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.]*\.\d)")),
    (
        "address",
        re.compile(r"(?<![\w:])(?=[0-9a-f:]{0,40}[0-9a-f])(?:[0-9a-f]{0,4}:){3,7}[0-9a-f]{0,4}", re.IGNORECASE),
    ),
    ("identifier", re.compile(r"(?<!\d)\d+(?:\.\d+){3,}")),  # DICOM unique identifiers
    ("identifier", re.compile(r"(?<!\w)[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}(?!\w)", re.IGNORECASE)),
    ("identifier", re.compile(r"(?<!\d)\d{3}-\d{2}-\d{4}(?!\d)")),
    ("date", re.compile(r"(?<!\d)(?:1[89]|20)\d{2}(?:[-/._ ]\d{1,2}){2}(?!\d)(?:[T ]\d{1,2}(?::\d{2}){1,2})?")),
    ("date", re.compile(r"(?<!\d)\d{1,2}([-/._])\d{1,2}\1(?:\d{4}|\d{2})(?!\d)")),
    (
        "date",
        re.compile(
            rf"(?<!\w)\d{{1,2}}(?:st|nd|rd|th)?{_SPACE}(?:of |de )?(?:{_MONTHS})(?!\w)"
            rf"(?:{_SPACE}(?:de )?\d{{2,4}}(?!\d))?",
            re.IGNORECASE,
        ),
    ),
    (
        "date",
        re.compile(
            rf"(?<!\w)(?:{_MONTHS}){_SPACE}\d{{1,2}}(?:st|nd|rd|th)?(?!\w)(?:{_SPACE}\d{{2,4}}(?!\d))?", re.IGNORECASE
        ),
    ),
    ("date", re.compile(rf"(?<!\w)(?:{_MONTHS}){_SPACE}(?:1[89]|20)\d{{2}}(?!\d)", re.IGNORECASE)),
    (
        "age",
        re.compile(
            r"(?<!\d)(?:9\d|1[0-3]\d)[ -]?(?:years?|yrs?|yo|y/o|y\.o\.?|ans|jahre|jährige?r?)(?!\w)(?:[ -]old)?",
            re.IGNORECASE,
        ),
    ),
    ("age", re.compile(r"(?<!\w)aged? (?:of )?(?:9\d|1[0-3]\d)(?!\d)", re.IGNORECASE)),
    ("phone", re.compile(r"(?<!\w)(?:\+|tel\.?:? ?|phone:? ?|fax:? ?)\(?\d(?:[ ()./-]{0,3}\d){4,}", re.IGNORECASE)),
    (
        "identifier",
        re.compile(
            rf"(?<!\w)(?:{_WORDS_BEFORE_NUMBERS})s?(?: ?(?:no|nr|number|num|id))?[ .:#=-]{{0,3}}"
            r"(?=[\w/-]{0,40}\d)[\w/-]{3,40}",
            re.IGNORECASE,
        ),
    ),
    (
        "identifier",
        re.compile(
            rf"(?<![\w-]){_MEASURED}(?!\d+x\d+(?:x\d+)?(?![\w-]))(?=(?:(?:[^\W\d]|-){{0,60}}\d){{5}})[\w-]{{5,300}}",
            re.IGNORECASE,
        ),
    ),
    ("number", re.compile(rf"{_MEASURED}\d(?:[\s()./_,:+-]{{0,3}}\d){{6,}}", re.IGNORECASE)),
)
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
KINDS: Final = ("PERSON", "LOCATION", "NRP", "MEDICAL_LICENSE")
"""What the built-in rules have no form for; ``DATE_TIME`` and the rest they find themselves."""
_THRESHOLD: Final = 0.4


class CaptionTooLong(ValueError):
    """A text that is too long to be a caption."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScrubbedCaption:
    """What may be kept, and how often each rule matched."""

    text: str = field(repr=False)
    counts: tuple[tuple[str, int], ...]
    is_cut: bool = False


@dataclass(frozen=True, kw_only=True)
class CaptionScrubber:
    """The rules of one intake."""

    names: Names = field(default_factory=lambda: Names(()))
    max_characters: int = 1000
    finder: PresidioFinder | None = None

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


@dataclass(frozen=True, slots=True)
class PresidioFinder:
    """Presidio's analyser with one language's model."""

    analyzer: Any
    language: str

    def find(self, text: str) -> Sequence[tuple[int, int, str]]:
        """Start, end and kind of each finding, one word; they do not overlap, and the surer ones come first."""
        found = self.analyzer.analyze(
            text=text, language=self.language, entities=list(KINDS), score_threshold=_THRESHOLD
        )
        kept: list[tuple[int, int, str]] = []
        for each in sorted(found, key=lambda result: (-result.score, result.start)):
            if all(each.end <= start or each.start >= end for start, end, _ in kept):
                kept.append((each.start, each.end, "name" if each.entity_type == "PERSON" else each.entity_type))
        return tuple(kept)


def load_presidio(language: str) -> PresidioFinder:
    """The analyser with spaCy's large model for the language.

    Raises:
        ConfigError: Presidio or the model is not installed. Presidio would fetch a missing model by itself; this does
            not.

    """
    model = "en_core_web_lg" if language == "en" else f"{language}_core_news_lg"
    try:
        from presidio_analyzer import AnalyzerEngine  # noqa: PLC0415 - an extra
        from presidio_analyzer.nlp_engine import NlpEngineProvider  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(
            'captions.presidio needs Presidio: pip install "darkroom[captions]", or set it to "off"'
        ) from error
    if importlib.util.find_spec(model) is None:
        raise ConfigError(f'captions.presidio = "{language}" needs the spaCy model {model}; install it, or set "off"')
    models = [{"lang_code": language, "model_name": model}]
    provider = NlpEngineProvider(nlp_configuration={"nlp_engine_name": "spacy", "models": models})
    analyzer = AnalyzerEngine(nlp_engine=provider.create_engine(), supported_languages=[language])
    return PresidioFinder(analyzer, language)
