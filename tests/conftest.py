"""The order in which tests run, for whoever runs several processes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that wait for minutes first, so that the others run beside them rather than before."""
    waiting = {item.path for item in items if item.get_closest_marker("slow") and item.path.parent.name == "federation"}
    items.sort(key=lambda item: item.path not in waiting)
