"""The requests that reach the SuperLink from outside: one table for the embedded listener and for nginx.

Flower's Control API has no authentication and shares the SuperLink's port: who reaches it can list runs, register nodes
and start a run, which is code on every site.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Passed:
    """One kind of request; the pattern is of the path's bytes as sent, in the syntax that Python and PCRE share."""

    method: str
    path: str


PASSED: Final = (Passed("POST", "/v1/fleet/[a-z]+(?:-[a-z]+)*"), Passed("GET", "/health"))
"""Compared before any decoding, so that no escape or dot segment is read differently behind."""
