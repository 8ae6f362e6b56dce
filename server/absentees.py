"""Who does not take part just now, why, and when it is asked again."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from common.messages import RefusalCode
from server.transport import FailureKind

if TYPE_CHECKING:
    from collections.abc import Callable

LOST_SESSION: Final = frozenset(
    f"refused_{code.value}" for code in (RefusalCode.NO_SESSION, RefusalCode.AWAITING_APPROVAL)
)
"""Reasons of a failure: session keys that died with an institution's process, or with its word to take part."""
UNWELL: Final = frozenset(
    {
        *(kind.value for kind in (FailureKind.TIMEOUT, FailureKind.UNREACHABLE, FailureKind.CLIENT_ERROR)),
        *(f"refused_{code.value}" for code in (RefusalCode.INTERNAL, RefusalCode.BUSY)),
    }
)
"""Reasons of a failure after which nobody knows whether the institution is there. To ask it for a vector would risk an
attempt, which everybody pays for; a proposal costs nothing."""
ASK_AGAIN_SECONDS: Final = 60.0
"""After which one that does not take part is asked again although enough others do; twice as long after each time."""
LONGEST_SECONDS: Final = 600.0
"""One that hangs holds a round up for as long as a proposal may take; it must not do so often."""
_log = logging.getLogger("server.coordinator")


@dataclass(kw_only=True)
class Absentees:
    """Nodes by the reason why they do not take part; each is forgotten, and so asked again, after a while."""

    now: Callable[[], float] = time.monotonic
    _reasons: dict[int, str] = field(default_factory=dict)
    _until: dict[int, float] = field(default_factory=dict)
    _times: dict[int, int] = field(default_factory=dict)

    def note(self, node: int, reason: str) -> None:
        """It does not take part."""
        _log.warning("node=%d does not take part: %s", node, reason)
        self._reasons[node] = reason
        self._times[node] = self._times.get(node, 0) + 1
        self._until[node] = self.now() + min(LONGEST_SECONDS, ASK_AGAIN_SECONDS * 2 ** (self._times[node] - 1))

    def __contains__(self, node: int) -> bool:
        """Whether it is not to be asked yet."""
        return self._until.get(node, 0.0) > self.now()

    def let_all_be_asked(self) -> None:
        """Every one is needed."""
        self._until.clear()

    def back(self, node: int) -> None:
        """It takes part again."""
        self._reasons.pop(node, None)
        self._until.pop(node, None)
        self._times.pop(node, None)

    def reasons(self) -> str:
        """Every reason once, for people."""
        return ", ".join(sorted(set(self._reasons.values()))) or "no answer"
