from __future__ import annotations

import math
from typing import Any

import pytest

from common.errors import AccountingError, NotPrivate
from common.privacy.accounting import Rounds, epsilon
from common.privacy.statements import RunSettings, Statements, figure, state


def settings(**changes: Any) -> RunSettings:
    usual = {
        "unit": "image",
        "delta": 1e-5,
        "institutions": 10,
        "noise_multiplier": 1.576,
        "sampling_rate": 2048 / 20_000,
        "rounds": 500,
        "population": 20_000,
    }
    return RunSettings(**{**usual, **changes})


@pytest.fixture(scope="module")
def published() -> Statements:
    return state(settings())


def test_published_figures(published: Statements) -> None:
    server, institutions, public, fallback = (one.epsilon for one in published.all)
    assert server == institutions == pytest.approx(8.65, abs=0.005)
    assert public == pytest.approx(7.99, abs=0.005)
    assert fallback == pytest.approx(81.6, abs=0.05)


def test_each_statement_rests_on_the_noise_that_its_adversary_does_not_know(published: Statements) -> None:
    for one in published.all:
        left = 1.576 * math.sqrt((10 - one.known_shares) / 10)
        event = Rounds(noise_multiplier=left, sampling_rate=0.1024, rounds=500)
        assert one.epsilon == epsilon([event], delta=1e-5)
    assert [one.known_shares for one in published.all] == [1, 1, 0, 9]


def test_institutions_always_know_their_own_share_and_all_colluders() -> None:
    trusting = state(settings(colluders=0, rounds=5))
    assert [one.known_shares for one in trusting.all] == [0, 1, 0, 9]
    wary = state(settings(colluders=4, rounds=5))
    assert [one.known_shares for one in wary.all] == [4, 4, 0, 9]
    assert wary.server.epsilon is not None
    assert trusting.server.epsilon is not None
    assert wary.server.epsilon > trusting.server.epsilon


def test_slack_counts_wherever_shares_are_summed_and_loss_everywhere() -> None:
    plain, slack, lost = (
        state(settings(institutions=3, rounds=20, **more)) for more in ({}, {"slack": 1e-8}, {"lost": 5e-6})
    )
    assert slack.public.epsilon is not None
    assert plain.public.epsilon is not None
    assert slack.public.epsilon > plain.public.epsilon
    assert slack.fallback.epsilon == plain.fallback.epsilon
    for one, other in zip(lost.all, plain.all, strict=True):
        assert one.epsilon is not None
        assert other.epsilon is not None
        assert one.epsilon > other.epsilon


def test_noise_sized_for_colluders_leaves_the_coordinator_with_all_of_z() -> None:
    sized = state(settings(colluders=3, spare=3, rounds=5))
    assert sized.server.noise_multiplier == pytest.approx(1.576)
    assert sized.public.noise_multiplier == pytest.approx(1.576 * math.sqrt(10 / 7))
    assert sized.fallback.noise_multiplier == pytest.approx(1.576 / math.sqrt(7))


@pytest.mark.parametrize(("colluders", "spare"), [(0, 0), (1, 0), (3, 1), (1, 3)])
def test_rounds_of_any_size_between_the_fewest_and_the_most_are_covered(colluders: int, spare: int) -> None:
    mixed = settings(institutions=5, roster=9, colluders=colluders, spare=spare)
    for known in (lambda _: 0, lambda _: max(colluders, 1), lambda m: m - 1):
        left = mixed.noise_left(known)
        each = [1.576 * math.sqrt((m - known(m)) / (m - spare)) for m in range(5, 10)]
        assert left == pytest.approx(min(each))


def test_text_names_everything_that_an_epsilon_depends_on(published: Statements) -> None:
    text = published.as_text()
    for part in (
        "one image",
        "adding or removing",
        "delta = 1e-05",
        "8.65",
        "81.7",
        "z = 1.576",
        "q = 0.1024",
        "T = 500",
        "n ≥ 10",
        "t = 1",
        "PLD",
        "Not included",
        "coordinator",
        "adapter",
        "institutions",
    ):
        assert part in text


def test_figures_are_rounded_up(published: Statements) -> None:
    assert published.public.epsilon is not None
    assert published.public.epsilon < 8.0
    assert [figure(one.epsilon) for one in published.all] == ["8.65", "8.65", "8.00", "81.7"]


def test_a_lone_institution_has_no_statement_against_itself() -> None:
    lone = state(settings(institutions=1, colluders=0, rounds=50))
    assert lone.institutions.epsilon is None
    assert "nothing is promised" in lone.as_text()
    assert lone.server.epsilon == lone.public.epsilon == lone.fallback.epsilon


def test_nothing_is_stated_for_repeatable_noise() -> None:
    with pytest.raises(NotPrivate, match="repeatable"):
        state(settings(private=False))


@pytest.mark.parametrize(
    "changes", [{"colluders": 10}, {"colluders": -1}, {"spare": 10}, {"roster": 9}, {"delta": 1e-4}, {"rounds": 0}]
)
def test_nonsense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(AccountingError):
        state(settings(**changes))
