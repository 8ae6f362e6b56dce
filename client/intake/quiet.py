"""Keep decoders from talking: what they log, warn or print quotes the files that they read.

Python's own streams are not enough: libtiff, OpenJPEG and GDCM write to the process's file descriptors.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_TALKERS: Final = ("PIL", "pydicom", "dicomanonymizer")


@contextlib.contextmanager
def quiet_decoders() -> Iterator[None]:
    """Whatever level a site logs at, nothing of a file is logged, warned of or printed in here.

    For a process that does nothing else meanwhile: other threads are silenced, too.
    """
    loggers = [logging.getLogger(name) for name in _TALKERS]
    levels = [logger.level for logger in loggers]
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        _nowhere(1),
        _nowhere(2),
    ):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def _nowhere(descriptor: int) -> Iterator[None]:
    """What is written to the descriptor in here is lost, and only that: it is what it was afterwards."""
    try:
        kept = os.dup(descriptor)
    except OSError:  # it was closed: there is nothing to keep from talking
        yield
        return
    try:
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null, descriptor)
        os.close(null)
        yield
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)
