from __future__ import annotations

import json
import warnings

import pytest
import torch

from common.errors import ConfigError
from simulations.bench.dp import as_table, measure, peak_bytes
from simulations.bench.dp_models import Setting, build
from simulations.bench.dp_steps import STEPS

TINY = Setting(model="tiny", batch=2, side=8)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.filterwarnings("ignore:.*non-full backward hook.*")
def test_every_step_gives_the_same_clipped_sum() -> None:
    """Opacus's own implementations agree with ours, so the comparison is between equals."""
    subject = build(TINY)
    found = {}
    for name in STEPS:
        if name != "plain":
            with STEPS[name](subject, 1) as step:
                found[name] = step().double()
    ours = found.pop("ours")
    assert set(found) == {"opacus_hooks", "opacus_expanded", "opacus_fast_gradient", "opacus_ghost"}
    for name, theirs in found.items():
        # Opacus clips to C·norm/(norm + 1e-6): its factor is a little smaller
        assert torch.linalg.vector_norm(theirs - ours) < 2e-4 * torch.linalg.vector_norm(ours), name


def test_report_is_json_and_a_table() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = measure(TINY, rounds=1, steps=("ours", "opacus_hooks"))
    assert json.loads(json.dumps(report))["results"]["plain"]["wall_ratio"]["median"] == 1
    assert report["results"]["ours"]["peak_bytes"] > 0
    table = as_table(report)
    assert all(name in table for name in ("plain", "ours", "opacus_hooks"))


def test_steps_that_cannot_run_are_reported_with_their_reason() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = measure(Setting(model="tiny", batch=1, side=8, draws=2), rounds=1, steps=("ours", "opacus_ghost"))
    assert "NotImplementedError" in report["results"]["opacus_ghost"]["failure"]
    assert "fails" in as_table(report)


def test_peak_memory_sees_what_is_freed_again() -> None:
    def step() -> None:
        held = torch.zeros(2**20)
        del held
        torch.zeros(2**18)

    assert 4 * 2**20 <= peak_bytes(step, torch.device("cpu")) < 5 * 2**20


def test_unknown_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="wanted one of"):
        build(Setting(model="huge"))
