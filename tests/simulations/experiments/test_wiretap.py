"""The tap sees every byte, and finds in none of them what must not be there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from common.errors import ConfigError
from simulations.experiments.wiretap import Tap, compare, tap_scenario
from simulations.scenario.scenario import load_scenario
from tests.simulations.worlds import MASKED, THREE, write_world

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def tapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("tap")
    scenario = load_scenario(str(write_world(root, rounds=2, privacy=MASKED, more=THREE)))
    tap_scenario(scenario, root / "out", root / "cache")
    return root / "out"


def test_every_message_is_kept_and_the_report_counts_it(tapped: Path) -> None:
    kept = list((tapped / "messages").iterdir())
    assert len(kept) == 3 * (3 + 2) * 2  # proposal, session, keys, two rounds, each with its answer
    text = (tapped / "report.txt").read_text()
    assert f"{sum(path.stat().st_size for path in kept):,} bytes" in text
    assert "captions of the training pictures, public prompts apart: 0 found" in text
    assert "true updates of the first institution: 0 found" in text
    assert (tapped / "comparison.png").stat().st_size > 10_000


def test_what_is_there_would_be_found(tmp_path: Path) -> None:
    tap = Tap(tmp_path)
    tap.keep(0, "Leak", b"...a brain with a secret...", direction="up")
    assert tap.holds(b"a brain with a secret")
    assert not tap.holds(b"a brain with no secret")


def test_an_upload_without_masks_is_recognised() -> None:
    rng = np.random.default_rng(3)
    update = rng.normal(size=5000)
    bare = np.rint(update * 1e6).astype(np.int64).astype(np.uint32)
    found = compare(bare, update, 5000)
    assert found.uniformity < 1e-9
    assert abs(found.correlation) > found.chance
    hidden = bare + rng.integers(0, 2**32, 5000, dtype=np.uint32)
    found = compare(hidden, update, 5000)
    assert found.uniformity > 1e-3
    assert abs(found.correlation) < 3 * found.chance


def test_a_run_that_hides_nothing_is_refused(tmp_path: Path) -> None:
    scenario = load_scenario(str(write_world(tmp_path, rounds=1)))
    with pytest.raises(ConfigError, match="secure aggregation"):
        tap_scenario(scenario, tmp_path / "out", tmp_path / "cache")
