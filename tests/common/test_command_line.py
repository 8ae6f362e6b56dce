"""What a person reads when something goes wrong."""

from __future__ import annotations

import pytest

from common.command_line import run_command_line
from common.errors import ConfigError


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
