from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from dp_accounting import NeighboringRelation
from dp_accounting.pld import privacy_loss_distribution as pld
from scipy import stats

from common.config import PrivacyConfig, RunConfig
from common.crypto.randomness import REPEATABLE_WORDS
from common.errors import AccountingError
from common.privacy.run_plan import LOST_SHARE, PrivatePlan, private_plan


def plan_of(rounds: int = 20, institutions: int = 3, aggregation: str = "clear", **changes: Any) -> PrivatePlan:
    privacy = {
        "epsilon": 4.0,
        "delta": 1e-5,
        "clip": 0.1,
        "population": 900,
        "largest_site": 400,
        "sampling_rate": 0.2,
        **changes,
    }
    table = {"name": "a", "rounds": rounds, "privacy": privacy, "base": {"path": "x"}, "aggregation": aggregation}
    table["server"] = {"minimum_institutions": institutions}
    plan = private_plan(msgspec.convert(table, RunConfig))
    assert plan is not None
    return plan


def test_a_plain_run_has_no_plan() -> None:
    table = {"name": "a", "rounds": 3, "privacy": "none", "base": {"path": "x"}}
    assert private_plan(msgspec.convert(table, RunConfig)) is None


def test_the_noise_meets_epsilon_for_every_attempt_that_may_be_sent() -> None:
    plan = plan_of(rounds=20, repeats=5)
    assert plan.attempts == 25
    one = pld.from_gaussian_mechanism(
        plan.noise_multiplier, sampling_prob=0.2, neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE
    )
    left = 1e-5 * (1 - LOST_SHARE)
    assert one.self_compose(25).get_epsilon_for_delta(left) <= 4.0
    smaller = pld.from_gaussian_mechanism(
        plan.noise_multiplier - 0.002, sampling_prob=0.2, neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE
    )
    assert smaller.self_compose(25).get_epsilon_for_delta(left) > 4.0


def test_the_cap_is_reached_by_no_institution_but_for_its_part_of_delta() -> None:
    plan = plan_of()
    reached = stats.binom.sf(plan.cap - 1, 400, 0.2)
    assert plan.attempts * 3 * reached <= LOST_SHARE * 1e-5
    assert plan.lost <= LOST_SHARE * 1e-5


def test_shares_add_up_to_the_noise_without_the_colluders() -> None:
    plan = plan_of(colluders=1)
    noise = plan.noise(1000)
    honest = math.sqrt(2 * noise.share_variance) / noise.scale
    assert honest == pytest.approx(plan.noise_multiplier * 0.1, rel=0.01)
    assert noise.cap == 3 * plan.cap


def test_equal_settings_give_equal_plans_and_the_target_is_the_coordinators() -> None:
    plan = plan_of()
    assert plan == plan_of()
    statements = plan.report(plan.attempts).statements
    assert statements is not None
    assert 3.98 < (statements.server.epsilon or 0) <= 4.0
    assert statements.public.epsilon is not None
    assert statements.public.epsilon < 4.0
    assert statements.fallback.epsilon is not None
    assert statements.fallback.epsilon > 4.0


def test_without_secure_aggregation_the_fallback_is_what_holds_against_the_coordinator() -> None:
    report = plan_of().report(10)
    assert "sees each institution's noised share alone" in report.as_text()
    values = report.as_values()
    assert (values["private"], values["secure_aggregation"], values["attempts"]) == (True, False, 10)
    assert values["statements"]["settings"]["rounds"] == 10


def test_with_secure_aggregation_the_first_of_the_four_holds() -> None:
    report = plan_of(aggregation="secure").report(10)
    assert "sees each institution's noised share alone" not in report.as_text()
    assert report.as_values()["secure_aggregation"] is True
    assert report.statements == plan_of().report(10).statements


def test_repeatable_noise_promises_nothing() -> None:
    report = plan_of(repeatable=REPEATABLE_WORDS).report(10)
    assert report.as_values()["private"] is False
    assert report.statements is None
    assert "Not private" in report.as_text()
    assert "epsilon =" not in report.as_text()


def test_a_delta_of_one_in_n_is_refused() -> None:
    with pytest.raises(AccountingError):
        plan_of(delta=0.01, population=100, largest_site=100)


def test_the_public_settings_say_what_is_divided_by() -> None:
    assert msgspec.convert(
        {"epsilon": 1, "delta": 1e-6, "clip": 1, "population": 1000, "sampling_rate": 0.1}, PrivacyConfig
    ).expected_batch == pytest.approx(100)
