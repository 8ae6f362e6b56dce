"""Pausing a run: a file in its directory that the loop looks for between rounds, so that no round is torn."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from common.durable_files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PAUSE: Final = "pause"
"""Name of the file; it is there while the run is to wait."""
_LOOK_SECONDS: Final = 1.0
_log = logging.getLogger(__name__)


def pause(directory: Path) -> None:
    """Have the run in this directory wait before its next round."""
    write_atomically(directory / PAUSE, b"")


def resume(directory: Path) -> None:
    """Let it go on."""
    (directory / PAUSE).unlink(missing_ok=True)


def is_paused(directory: Path) -> bool:
    """Whether it is to wait."""
    return (directory / PAUSE).exists()


def wait_while_paused(directory: Path, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """Return once nobody wants the run to wait."""
    if not is_paused(directory):
        return
    _log.info("paused before the next round; go on with: darkroom-server run resume")
    while is_paused(directory):
        sleep(_LOOK_SECONDS)
    _log.info("goes on")
