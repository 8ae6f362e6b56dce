"""What the three command lines share: a user's mistake gets one clear message and exit code 2, no stack trace."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import TYPE_CHECKING

from common.durable_file import owner_only_files
from common.errors import DarkroomError

if TYPE_CHECKING:
    from collections.abc import Callable


def run_command_line(app: Callable[[], object], *, interrupted: str = "stopped") -> None:
    """Call a typer app; a :class:`DarkroomError` becomes its message, an interrupt the word on how to go on.

    So does a file or directory that the system refuses (read-only, full disk, a file where a directory is wanted). An
    ``OSError`` that names no file is no user's mistake and keeps its stack trace.

    Guarantee: whatever the umask of whoever calls, what the program and the programs that it starts make is its user's
    alone, but for files that say another mode.
    """
    quiet_libraries()
    try:
        with owner_only_files():
            app()
    except DarkroomError as error:
        sys.stderr.write(f"error: {_shown(str(error))}\n")
        raise SystemExit(2) from None
    except OSError as error:
        if error.filename is None or error.strerror is None:
            raise
        sys.stderr.write(f"error: {error.filename}: {error.strerror}; give a path that can be read and written\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        sys.stderr.write(f"\n{interrupted}\n")
        raise SystemExit(130) from None


def _shown(text: str) -> str:
    """Without what moves a terminal's cursor or hides words: errors quote files and requests that strangers wrote."""
    return "".join(each if each.isprintable() or each == "\n" else ascii(each)[1:-1] for each in text)


def quiet_libraries() -> None:
    """Our own log lines on standard error, libraries only from warnings on, and nothing sent anywhere."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    # in a terminal the progress bar tells the same
    level = logging.WARNING if sys.stderr.isatty() else logging.INFO
    for name in ("client", "common", "server", "simulations"):
        logging.getLogger(name).setLevel(level)
    warnings.filterwarnings("ignore", category=FutureWarning)
