"""What the three command lines share: what a person reads when a command ends early, in any terminal.

A user's mistake gets one clear message and exit code 2; an interrupt gets a last line that says what is kept and how to
go on, and exit code 130, or 143 after SIGTERM. None of them shows a stack trace.

``log verify``, which both command lines have: a log is checked alike by whoever holds it.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import logging
import os
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Never, TypeVar

import typer

from common.durable_files import owner_only_files
from common.errors import DarkroomError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType


LogPath = Annotated[Path, typer.Argument(help="The audit log.")]
LogKey = Annotated[
    str, typer.Option(help="Public key of the log's owner, 64 hexadecimal digits: an institution's is in the roster.")
]
Witness = Annotated[Path | None, typer.Option(help="The other side's log, which holds heads of this one.")]
Place = Annotated[
    int | None, typer.Option(min=0, help="An institution's place in the run's roster, with the coordinator's log.")
]
TERMINATED: Final = 143
"""Exit code after SIGTERM, which is how systemd ends a service: no failure."""
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_IN_LETTERS: Final = {"ε": "epsilon", "δ": "delta", "σ": "sigma", "×": "x", "…": "...", "–": "-", "→": "->"}
"""What we print beyond ASCII, for terminals that lack it."""


_Kind = TypeVar("_Kind", bound=BaseException)


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does."""


def run_command_line(app: Callable[[], object], *, interrupted: str = "stopped") -> None:
    """Call a typer app; an error or an interrupt becomes its message and exit code.

    So does a file or directory that the system refuses (read-only, full disk, a file where a directory is wanted). An
    ``OSError`` that names no file, unless of a full disk, is no user's mistake and keeps its stack trace.

    Guarantee: whatever the umask of whoever calls, what the program and the programs that it starts make is its user's
    alone, but for files that say another mode.
    """
    quiet_libraries()
    print_in_any_terminal()
    end_by_sigterm()
    try:
        with owner_only_files():
            app()
    except DarkroomError as error:
        _fail(str(error), code=error.exit_code)
    except OSError as error:
        if error.strerror is None or (error.filename is None and error.errno not in _FULL):
            raise
        _fail("\n".join((_refused(error), *getattr(error, "__notes__", ()))))
    except (SystemExit, KeyboardInterrupt) as end:  # typer makes the one of the other
        interrupt = _behind(end, KeyboardInterrupt)
        if interrupt is None:
            if _behind(end, EOFError) is not None:
                _fail("nobody answered the question; answer it in a terminal, or with the option that --help names")
            raise
        said = getattr(interrupt, "__notes__", None) or [interrupted]
        sys.stderr.write("\n" + "\n".join(map(_shown, said)) + "\n")
        raise SystemExit(TERMINATED if isinstance(interrupt, Terminated) else 130) from None


@contextlib.contextmanager
def last_words(say: Callable[[], str]) -> Iterator[None]:
    """Have an interrupt, or a full disk, that ends what is within end with a line on what is kept and how to go on."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(say())
        raise
    except OSError as error:
        if error.errno in _FULL:
            error.add_note(say())
        raise


def end_by_sigterm() -> None:
    """Have SIGTERM end this process in order, as Ctrl-C does."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)


def _terminate(_number: int, _frame: FrameType | None) -> Never:
    raise Terminated


def _behind(end: BaseException | None, kind: type[_Kind]) -> _Kind | None:
    while end is not None and not isinstance(end, kind):
        end = end.__cause__ or end.__context__
    return end


def _fail(said: str, *, code: int = 2) -> Never:
    sys.stderr.write(f"error: {_shown(said)}\n")
    raise SystemExit(code) from None


def _refused(error: OSError) -> str:
    if error.errno in _FULL:
        where = "" if error.filename is None else f"{error.filename}: "
        return f"{where}the disk is full ({error.strerror}); make room on it, then try again"
    return f"{error.filename}: {error.strerror}; give a path that can be read and written"


def spelt_out(text: str) -> str:
    """Without what moves a terminal's cursor, begins a line or hides words: strangers choose names and requests."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def _shown(text: str) -> str:
    """An error's lines, which may quote files and requests."""
    return "\n".join(map(spelt_out, text.split("\n")))


def print_in_any_terminal() -> None:
    """Have what the terminal's encoding lacks printed in its letters, or as an escape, in place of a stack trace."""
    codecs.register_error("darkroom-letters", _in_letters)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # whoever captures it may have put another one there
            stream.reconfigure(errors="darkroom-letters")


def _in_letters(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_IN_LETTERS.get(each, ascii(each)[1:-1]) for each in lacking), error.end


def quiet_libraries() -> None:
    """Our own log lines on standard error, libraries only from warnings on, and nothing sent anywhere."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    logging.raiseExceptions = False  # a log on a full disk must not print a stack trace for each line
    # in a terminal the progress bar tells the same
    level = logging.WARNING if sys.stderr.isatty() else logging.INFO
    for name in ("client", "common", "server", "simulations"):
        logging.getLogger(name).setLevel(level)
    warnings.filterwarnings("ignore", category=FutureWarning)


def log_commands(*, place: int | None) -> typer.Typer:
    """``log verify``; ``place`` is what holds unless it is given: None where the witness is an institution's log."""
    app = typer.Typer(help="The audit log.", no_args_is_help=True, pretty_exceptions_enable=False)
    default = place

    @app.callback()
    def commands() -> None:
        """The audit log."""

    @app.command("verify")
    def verify_log(path: LogPath, key: LogKey, witness: Witness = None, place: Place = default) -> None:
        """Check every entry, signature and link, and that nothing was rewritten since the other side saw it."""
        from common.audit_log import check_log  # noqa: PLC0415 - only this command needs it

        typer.echo(check_log(path, key, witness=witness, place=place if witness else None))

    return app
