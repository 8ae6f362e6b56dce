"""The examples in the docstrings of ``common.privacy`` and ``common.secagg`` give what they show."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import common

FOLDERS = [Path(common.__file__).parent / name for name in ("privacy", "secagg")]
ROOMS = sorted(f"common.{path.parent.name}.{path.stem}" for folder in FOLDERS for path in folder.glob("[!_]*.py"))
SHOWN = {
    "common.privacy.accounting": {"epsilon", "calibrate"},
    "common.privacy.clipping": {"clipping"},
    "common.privacy.mechanisms": {"plan_noise", "quantise"},
    "common.privacy.sampling": {"sample_units", "draw_images", "overflow_probability", "smallest_cap"},
    "common.privacy.statements": {"figure", "state"},
    "common.secagg.masking": {"open_sum"},
    "common.secagg.messages": {"Step", "check_coordinates"},
    "common.secagg.ring": {"from_integers"},
}


@pytest.mark.parametrize("room", ROOMS)
def test_examples_give_what_they_show(room: str) -> None:
    module = importlib.import_module(room)
    found = {test.name.rpartition(".")[2]: test for test in doctest.DocTestFinder().find(module) if test.examples}
    assert set(found) == SHOWN.get(room, set())
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in found.values():
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0
