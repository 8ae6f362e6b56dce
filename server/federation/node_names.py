"""Sites' names for people, beside the numbers by which the coordinator's loop knows nodes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_NODE: Final = re.compile(r"\bnode=(\d+)\b(?! \()")


def with_names(text: str, names: Mapping[int, str]) -> str:
    """The text with a site's name after each ``node=NUMBER``; those that nobody knows are said to be unknown."""
    return _NODE.sub(lambda found: f"{found[0]} ({names.get(int(found[1]), 'unknown')})", text)
