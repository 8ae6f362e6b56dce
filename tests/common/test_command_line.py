"""What a person reads when something goes wrong."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from common.command_line import last_words, run_command_line
from common.errors import ConfigError

ROOT = Path(__file__).parents[2]


def test_an_error_that_quotes_a_stranger_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise ConfigError("unknown key '\x1b[2Jähnlich\u202e\r'\nsecond line")

    with pytest.raises(SystemExit) as ended:
        run_command_line(fail)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: unknown key '\\x1b[2Jähnlich\\u202e\\r'\nsecond line\n"


@pytest.mark.parametrize("said", ["stopped", "stopped; a run goes on with --resume"])
def test_an_interrupt_is_no_trace(capsys: pytest.CaptureFixture[str], said: str) -> None:
    def wait() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run_command_line(wait, interrupted=said)
    assert (ended.value.code, capsys.readouterr().err) == (130, f"\n{said}\n")


def test_an_interrupt_has_its_last_words_through_typer(capsys: pytest.CaptureFixture[str]) -> None:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def wait(*, silent: bool = False) -> None:
        with contextlib.nullcontext() if silent else last_words(lambda: "kept: round 3; go on with --resume"):
            raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run_command_line(lambda: app([]))
    assert (ended.value.code, capsys.readouterr().err) == (130, "\nkept: round 3; go on with --resume\n")
    with pytest.raises(SystemExit) as ended:
        run_command_line(lambda: app(["--silent"]), interrupted="ended")
    assert (ended.value.code, capsys.readouterr().err) == (130, "\nended\n")


def test_a_question_that_nobody_answers_says_how_to(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def ask() -> None:
        typer.confirm("Really?")

    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(SystemExit) as ended:
        run_command_line(lambda: app([]))
    assert ended.value.code == 2
    assert "error: nobody answered the question; answer it in a terminal, or" in capsys.readouterr().err


def test_sigterm_ends_in_order_with_its_own_code(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def wait() -> None:
        with last_words(lambda: "kept"):
            signal.raise_signal(signal.SIGTERM)

    try:
        with pytest.raises(SystemExit) as ended:
            run_command_line(wait)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (ended.value.code, capsys.readouterr().err) == (143, "\nkept\n")


def test_an_ordinary_exit_keeps_its_code() -> None:
    with pytest.raises(SystemExit) as ended:
        run_command_line(lambda: sys.exit(1))
    assert ended.value.code == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full is Linux's")
def test_a_full_disk_is_told_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    def write() -> None:
        with last_words(lambda: "kept: round 3"), Path("/dev/full").open("wb", buffering=0) as file:
            file.write(b"x")

    with pytest.raises(SystemExit) as ended:
        run_command_line(write)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert "the disk is full" in said
    assert "make room" in said
    assert said.endswith("\nkept: round 3\n")


PRINTS = """
import sys
from common.command_line import run_command_line
from rich.console import Console
from rich.table import Table
import typer
def show():
    table = Table("ε spent"); table.add_row("δ = 1e-5 … \\udcff")
    Console().print(table)
    print("ε × 2"); sys.stderr.write("σ\\udcff\\n")
    typer.echo("ε")
run_command_line(show)
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "utf-8"])
def test_any_terminal_gets_every_character_in_some_form(encoding: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRINTS],
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert (b"epsilon" if encoding in {"ascii", "latin-1"} else "ε".encode(encoding)) in done.stdout
    assert b"\\udcff" in done.stdout
    assert b"\\udcff" in done.stderr
