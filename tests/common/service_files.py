"""A service file as systemd reads it: sections with settings that may repeat."""

from __future__ import annotations

import shutil
import subprocess
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SYSTEMD = shutil.which("systemd-analyze")


def parsed(text: str) -> dict[str, dict[str, list[str]]]:
    sections: dict[str, dict[str, list[str]]] = {}
    settings: dict[str, list[str]] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            settings = sections.setdefault(line.strip("[]"), defaultdict(list))
        else:
            name, equals, value = line.partition("=")
            assert equals, line
            settings[name].append(value)
    return sections


def systemd_faults(path: Path) -> str:
    """What systemd itself says to it, but for users that this machine does not have."""
    done = subprocess.run([str(SYSTEMD), "verify", str(path)], capture_output=True, text=True, check=False)
    return done.stderr


def exposure(path: Path) -> float:
    """From 0, nothing left to take away, to 10."""
    command = [str(SYSTEMD), "security", "--offline=true", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    line = next(line for line in done.stdout.splitlines() if "Overall exposure level" in line)
    return float(line.rpartition(": ")[2].split()[0])
