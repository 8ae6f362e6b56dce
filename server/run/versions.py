"""Versions of what a run's result depends on, read without importing it."""

from __future__ import annotations

import functools
from importlib.metadata import PackageNotFoundError, version
from typing import Final

PACKAGES: Final = ("darkroom", "torch", "diffusers", "transformers", "peft", "flwr", "numpy")


def package_versions() -> dict[str, str]:
    """Version by package; ``not installed`` where it is missing, as torch may be at a coordinator."""
    return {name: _version(name) for name in PACKAGES}


@functools.cache
def _version(name: str) -> str:
    """Read once a process: it takes a millisecond, and every checkpoint asks."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
