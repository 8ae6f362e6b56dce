"""Whether a site's SuperNode is really connected, and what to say and do when it is not."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from client.connection.endings import SiteRefused
from client.connection.supernode_process import CONNECTED, REFUSED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from common.provisioning import JoinFile

REFUSED_SECONDS: Final = 150.0
"""How long a refusal may last before it counts: Flower holds a SuperNode that was killed for connected for a minute,
and refuses its next one that long."""


@dataclass(kw_only=True)
class Connection:
    """One SuperNode, looked at about once a second.

    Args:
        joined: Whom it connects to.
        log: Of the SuperNode; what stood in it before is passed over.
        look_again: Called once each time the SuperNode has ended for another reason than a refusal; may raise.

    """

    joined: JoinFile
    log: Path
    look_again: Callable[[], None]
    clock: Callable[[], float] = time.monotonic
    _read: int = field(init=False)
    _up: bool = field(init=False, default=True)
    _refused_since: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """To be made before the SuperNode is started."""
        self._read = self.log.stat().st_size if self.log.exists() else 0

    def look(self, code: int | None) -> Iterator[str]:
        """What there is to say since the last look.

        Args:
            code: Exit code of the SuperNode if it has ended and was not started again yet.

        Raises:
            SiteRefused: The coordinator refused this site's key for :data:`REFUSED_SECONDS`.

        """
        if CONNECTED in self._new_words():
            self._refused_since = None
            yield f"{self.joined.site} takes part in {self.joined.federation} at {self.joined.address}; Ctrl-C ends it"
        ended, self._up = self._up and code is not None, code is None
        if not ended:
            return
        if code != REFUSED:
            self.look_again()
            return
        now = self.clock()
        if self._refused_since is None:
            self._refused_since = now
            yield (
                f"the coordinator does not take this site's key. That may pass within {REFUSED_SECONDS:g} s, after a "
                "connection that was cut; trying again"
            )
        elif now - self._refused_since >= REFUSED_SECONDS:
            raise SiteRefused(self._refusal(now - self._refused_since))

    def _refusal(self, seconds: float) -> str:
        joined = self.joined
        return (
            f"the coordinator of {joined.federation} at {joined.address} has not taken this site's key for "
            f"{seconds:.0f} s: {joined.site} was revoked, or is not on its roster, or another SuperNode is connected "
            "with this site's key. Ask the coordinator. A site that was revoked stays out: to take part again it makes "
            "a new folder and asks under a new name. This is not tried again by itself"
        )

    def _new_words(self) -> str:
        if not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        # a line that is being written is read at the next look
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        return whole.decode(errors="replace")
