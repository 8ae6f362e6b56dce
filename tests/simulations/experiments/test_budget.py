from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from common.errors import AccountingError
from simulations.experiments.budget import budget_of, checked_settings
from simulations.scenario.scenario import load_scenario

ROOT = Path(__file__).parents[3]
CENTRAL = ("--population", "1000", "--sampling-rate", "0.032", "--rounds", "1000", "--delta", "1e-5")


def budget(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    command = [sys.executable, "-m", "simulations.cli", "budget", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def said(*arguments: str) -> str:
    done = budget(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_epsilon_of_given_noise() -> None:
    text = said(*CENTRAL, "--noise-multiplier", "1")
    assert re.search(r"whoever sees every noised sum +1 +6\.589$", text, re.MULTILINE)
    assert "32 of 1000 units expected" in text


def test_the_noise_of_a_wanted_epsilon_and_the_four_adversaries() -> None:
    options = ("--population", "20000", "--sampling-rate", "0.1024", "--rounds", "500", "--delta", "1e-5")
    text = said(*options, "--epsilon", "8", "--institutions", "10")
    assert re.search(r"noise multiplier +1\.576$", text, re.MULTILINE)
    assert re.search(r"other institutions +1\.495 +8\.650$", text, re.MULTILINE)
    assert re.search(r"fails for one institution +0\.4984 +81\.6\d$", text, re.MULTILINE)


def test_the_shipped_private_scenario_keeps_its_promise() -> None:
    text = said("three-institutions")
    assert re.search(r"^the coordinator with colluding institutions +\S+ +(8\.000|7\.99\d)$", text, re.MULTILINE)
    assert "60 rounds and 2 repeated attempts" in text
    scenario = load_scenario("three-institutions")
    assert scenario.privacy != "none"
    assert (scenario.privacy.epsilon, scenario.privacy.population, scenario.privacy.unit) == (8.0, 923, "image")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("three-institutions-plain",), 'privacy = "none"'),
        (("three-institutions", "--delta", "1e-6"), "only --epsilon and --rounds"),
        (("nowhere",), "no scenario"),
        ((), "--sampling-rate, --rounds and --delta are needed"),
        (CENTRAL, "one of them"),
        ((*CENTRAL, "--epsilon", "1e-9"), "epsilon: "),
        ((*CENTRAL, "--noise-multiplier", "nan"), "noise-multiplier: "),
        ((*CENTRAL[:3], "1e-12", *CENTRAL[4:5], "100000000", *CENTRAL[6:], "--noise-multiplier", "1e-3"), "3 problems"),
        ((*CENTRAL, "--epsilon", "8", "--noise-multiplier", "1"), "one of them"),
        ((*CENTRAL[:-1], "0.01", "--noise-multiplier", "1"), "not below 1/N"),
        ((*CENTRAL, "--noise-multiplier", "1", "--institutions", "2", "--colluders", "2"), "colluders: wanted fewer"),
        ((*CENTRAL, "--epsilon", "-1"), "epsilon"),
    ],
)
def test_mistakes_get_one_clear_message(arguments: tuple[str, ...], expected: str) -> None:
    done = budget(*arguments)
    assert done.returncode == 2, done.stdout
    assert "Traceback" not in done.stderr
    assert expected in done.stderr


def test_torch_is_not_loaded() -> None:
    code = "import sys, simulations.cli, simulations.experiments.budget; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_wait_is_told_and_too_much_memory_is_an_error_in_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = threading.Event()
    write = sys.stderr.write
    monkeypatch.setattr(sys.stderr, "write", lambda text: (write(text), told.set())[0])

    def endless(*_: object, **__: object) -> float:
        assert told.wait(60)
        raise MemoryError

    monkeypatch.setattr("simulations.experiments.budget.calibrate", endless)
    settings = checked_settings({"epsilon": 8.0, "delta": 1e-5, "sampling-rate": 0.1, "rounds": 500})
    with pytest.raises(AccountingError, match="more memory than there is"):
        budget_of(settings)
    assert "the accountant works on it: 1 s so far" in capsys.readouterr().err
