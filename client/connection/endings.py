"""How a site's services end where starting them again mends nothing, so that systemd leaves them ended.

A service that restarts whatever ends would have a revoked site ask the coordinator for ever, and hide behind restarts
what a person has to mend. What may pass by itself (a coordinator that is away, a clock before NTP, a full disk, a
folder that is not mounted yet) ends with another code, and is started again.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from client.connection.supernode_process import REFUSED
from common.errors import DarkroomError, ProvisioningError

if TYPE_CHECKING:
    from collections.abc import Iterator

UNFIT: Final = 78
"""Exit code: settings or files that somebody has to mend first; EX_CONFIG of ``sysexits.h``."""
NOT_RESTARTED: Final = (REFUSED, UNFIT)
"""For ``RestartPreventExitStatus=`` of both services."""


class SiteRefused(ProvisioningError):
    """The coordinator does not take this site's key."""

    exit_code = REFUSED


@contextmanager
def until_mended(*kinds: type[DarkroomError]) -> Iterator[None]:
    """Errors of these kinds, which somebody has to mend first, end the command with :data:`UNFIT`."""
    try:
        yield
    except kinds as error:
        error.exit_code = UNFIT
        raise
