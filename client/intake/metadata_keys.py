"""Which keys of a metadata row count, and which only look as if they did.

A key that nobody reads is how a "no" gets lost: ``Consent``, ``consent `` or ``opt-out`` with ``false`` beside them
would leave the picture as if nothing had been said. So a key near one that counts is refused, and others are told of.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

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
