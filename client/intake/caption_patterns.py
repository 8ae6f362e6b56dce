"""The forms by which identifying numbers, addresses and dates are found in captions, in the order they are looked for.

They err on the side of removal, and are written so that none takes more than about linear time: no repeated group may
begin with what it may end with. Dates follow HIPAA's Safe Harbor (45 CFR 164.514(b)(2)): a year alone may stay, and
ages from 90 on may not.
"""

from __future__ import annotations

import re
from typing import Final

VERSION: Final = 3
"""Goes into receipts; count it up with every change of a pattern."""

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
