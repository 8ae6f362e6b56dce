from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from common.config import PLAIN_WORDS
from common.errors import ConfigError, ConfigErrors
from simulations.scenario.scenario import load_scenario

if TYPE_CHECKING:
    from pathlib import Path

TEXT = f"""
name = "mine"
rounds = 2
privacy = "none"
acknowledge = "{PLAIN_WORDS}"
[base]
path = "bundled"
[institutions]
"""


def write(directory: Path, institutions: str) -> str:
    path = directory / "mine.toml"
    path.write_text(TEXT + institutions)
    return str(path)


def test_the_shipped_scenario_loads_and_rounds_can_be_shortened() -> None:
    assert load_scenario("three-institutions").rounds > 10
    assert load_scenario("three-institutions", rounds=2).rounds == 2


def test_an_unknown_name_lists_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match=r"nowhere.*three-institutions"):
        load_scenario("nowhere")


def test_folders_are_found_beside_the_scenario(tmp_path: Path) -> None:
    scenario = load_scenario(write(tmp_path, 'source = "folder"\nfolder = "pictures"'))
    assert scenario.institutions.folder == str(tmp_path / "pictures")


def test_what_institutions_agree_on_says_nothing_about_folders(tmp_path: Path) -> None:
    scenario = load_scenario(write(tmp_path, 'source = "folder"\nfolder = "secret-name"'))
    assert "secret-name" not in repr(scenario.run_config())


@pytest.mark.parametrize(
    ("institutions", "key"),
    [
        ('source = "folder"', "institutions.folder"),
        ('source = "medical"\nfolder = "x"', "institutions.folder"),
        ('source = "medical"\nscheme = "iid"', "institutions.count"),
        ('source = "medical"\ncount = 3', "institutions.count"),
        ('source = "medical"\nscheme = "iid"\ncount = 0', "institutions.count"),
        ('source = "elsewhere"', "institutions.source"),
        ('source = "medical"\nseed = 3', "institutions.seed"),
    ],
)
def test_faults_are_named(tmp_path: Path, institutions: str, key: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load_scenario(write(tmp_path, institutions))
    assert [fault for fault in caught.value.faults if fault.startswith(key)]
