"""Keep decoders from talking: what Pillow and pydicom log, warn or print quotes the files that they read."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_TALKERS: Final = ("PIL", "pydicom", "dicomanonymizer")


@contextlib.contextmanager
def quiet_decoders() -> Iterator[None]:
    """Whatever level a site logs at, nothing of a file is logged, warned of or printed in here."""
    loggers = [logging.getLogger(name) for name in _TALKERS]
    levels = [logger.level for logger in loggers]
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
