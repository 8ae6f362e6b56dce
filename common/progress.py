"""Progress bars in a terminal, silence elsewhere."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def bar(label: str, total: int) -> Iterator[Callable[[int], object]]:
    """A bar that the yielded function advances; shown only where standard error is a terminal."""
    with tqdm(total=total, desc=label, disable=None, leave=False) as shown:
        yield shown.update
