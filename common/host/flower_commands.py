"""Flower's programs, and the environment in which both sides run them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

FLOWER: Final = "1.42"
"""The minor version that everything here is made for."""
POLL_INTERVAL: Final = "FLWR_SUPEREXEC_TASK_POLL_INTERVAL"
"""Seconds between two questions of an executor for work. At 0.1 s an idle site takes 3 % of a core."""
ENVIRONMENT: Final = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    # else the SuperLink installs whatever an app lists
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    POLL_INTERVAL: "0.25",
    "PYTHONUTF8": "1",  # Flower prints pictograms, and ends where the terminal's encoding lacks them
    # a SuperNode starts flower-superexec by its bare name, and hangs without a word to its parent if that is not found
    "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
}
"""No telemetry, no update check, no installation while running, and a short poll of the local task queue."""


def program(name: str) -> str:
    """Path of a program that was installed beside this Python."""
    return str(Path(sys.executable).with_name(name))
