"""Dropouts: who does not take part just now, why, in words, and when it is asked again."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from common.wire.messages import RefusalCode
from server.rounds.transport import FailureKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PROTOCOL: Final = "protocol"
"""Reason of a failure: an answer that does not fit the run."""
_REFUSED: Final = "refused_"
LOST_SESSION: Final = frozenset(
    f"{_REFUSED}{code.value}" for code in (RefusalCode.NO_SESSION, RefusalCode.AWAITING_APPROVAL)
)
"""Reasons of a failure: session keys that died with an institution's process, or with its word to take part."""
UNWELL: Final = frozenset(
    {
        *(kind.value for kind in (FailureKind.TIMEOUT, FailureKind.UNREACHABLE, FailureKind.CLIENT_ERROR)),
        *(f"{_REFUSED}{code.value}" for code in (RefusalCode.INTERNAL, RefusalCode.BUSY)),
    }
)
"""Reasons of a failure after which nobody knows whether the institution is there. To ask it for a vector would risk an
attempt, which everybody pays for; a proposal costs nothing."""
ASK_AGAIN_SECONDS: Final = 60.0
"""After which one that does not take part is asked again although enough others do; twice as long after each time."""
LONGEST_SECONDS: Final = 600.0
"""One that hangs holds a round up for as long as a proposal may take; it must not do so often."""
_MOST_NAMED: Final = 20
_WORDS: Final[Mapping[str, str]] = {
    FailureKind.TIMEOUT: "did not answer in time",
    FailureKind.UNREACHABLE: "cannot be reached; is its darkroom-client join running?",
    FailureKind.CLIENT_ERROR: "its ClientApp failed; the log of its darkroom-client join says why",
    FailureKind.MALFORMED: "answered something else than a message of ours",
    "masks_did_not_cancel": "the masks did not cancel, and nobody knows because of whom",
    PROTOCOL: "its answer does not fit the run; the coordinator's log says why",
}
_REFUSALS: Final[Mapping[RefusalCode, str]] = {
    RefusalCode.MALFORMED: "it could not read the request; are both sides of one version?",
    RefusalCode.WRONG_SPEC: "the adapter is of another specification than it agreed to",
    RefusalCode.WRONG_SIZE: "the adapter is of another size than it agreed to",
    RefusalCode.NOT_FINITE: "the adapter holds values that are not finite",
    RefusalCode.NOT_ALLOWED: "its policy does not allow it, or its steward is not running; its logs say which",
    RefusalCode.NO_DATA: "its pictures or its base model cannot be used; its steward's log says why",
    RefusalCode.BAD_MANIFEST: "the manifest is not signed as it should be, or does not name it",
    RefusalCode.AWAITING_APPROVAL: "nobody there has approved the run yet (darkroom-client approve)",
    RefusalCode.NO_SESSION: "it has lost the session's keys, as after a restart; it is asked for new ones",
    RefusalCode.REPLAYED: "it has answered this round and attempt, or a later one, before",
    RefusalCode.OVER_BUDGET: "its privacy budget is used up",
    RefusalCode.BUSY: "its steward is busy or stopping",
    RefusalCode.INTERNAL: "it has trouble of its own, such as a full disk; its steward's log says which",
}
_log = logging.getLogger(__name__)


def refused(code: RefusalCode) -> str:
    """Reason of a failure: the institution's refusal."""
    return f"{_REFUSED}{code.value}"


def reason_words(reason: str) -> str:
    """A reason of a failure for people; one that is not known stays as it is."""
    if reason.startswith(_REFUSED):
        code = reason.removeprefix(_REFUSED)
        return f"refused ({code}): {_REFUSALS[RefusalCode(code)]}" if code in set(RefusalCode) else reason
    return _WORDS.get(reason, reason)


def failure_words(failures: Mapping[int, str]) -> str:
    """Who failed and why, for people; whoever shows it puts names beside nodes (server/federation/node_names.py)."""
    by_reason: dict[str, list[int]] = {}
    for node, reason in sorted(failures.items()):
        by_reason.setdefault(reason, []).append(node)
    return "; ".join(f"{_nodes(nodes)}{reason_words(reason)}" for reason, nodes in by_reason.items())


def _nodes(nodes: list[int]) -> str:
    named = [f"node={node}" for node in nodes[:_MOST_NAMED] if node >= 0]  # below 0: nobody's in particular
    more = [f"{len(nodes) - _MOST_NAMED} more"] if len(nodes) > _MOST_NAMED else []
    return f"{', '.join(named + more)}: " if named else ""


@dataclass(kw_only=True)
class Dropouts:
    """Nodes by the reason why they do not take part; each is forgotten, and so asked again, after a while."""

    now: Callable[[], float] = time.monotonic
    _reasons: dict[int, str] = field(default_factory=dict)
    _until: dict[int, float] = field(default_factory=dict)
    _times: dict[int, int] = field(default_factory=dict)

    def note(self, node: int, reason: str) -> None:
        """It does not take part."""
        _log.warning("node=%d does not take part: %s", node, reason_words(reason))
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
        """Every one of them with its reason, for people; empty if there are none."""
        return failure_words(self._reasons)
