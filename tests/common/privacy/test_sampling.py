from __future__ import annotations

import math

import numpy as np
import pytest

from common.crypto.randomness import REPEATABLE_WORDS, Randomness, repeatable_randomness
from common.errors import AccountingError
from common.privacy.sampling import draw_images, overflow_probability, sample_units, smallest_cap


def stream(name: str) -> Randomness:
    return repeatable_randomness(name, seed=4, acknowledge=REPEATABLE_WORDS)


@pytest.mark.parametrize("rate", [0.01, 0.1024, 0.5])
def test_samples_are_poisson_at_this_rate_and_at_no_other(rate: float) -> None:
    source = stream(f"poisson {rate}")
    rounds, population = 2000, 300
    members = np.zeros((rounds, population), dtype=bool)
    for one in members:
        one[sample_units(population, rate=rate, cap=population, randomness=source)] = True
    spread = math.sqrt(rate * (1 - rate) / members.size)
    assert abs(members.mean() - rate) < 4.5 * spread
    assert all(abs(members.mean() - wrong) > 4.5 * spread for wrong in (rate / 2, 0.9 * rate, 1.1 * rate))
    sizes = members.sum(1)  # binomial, unlike those of shuffled epochs
    assert sizes.var() == pytest.approx(population * rate * (1 - rate), rel=4.5 * math.sqrt(2 / rounds))
    together = (members[:, 0] & members[:, 1]).mean()
    assert abs(together - rate**2) < 4.5 * math.sqrt(rate**2 / rounds)


def test_full_rate_takes_everyone_and_an_empty_population_no_one() -> None:
    assert sample_units(7, rate=1.0, cap=7, randomness=stream("all")).tolist() == list(range(7))
    assert sample_units(0, rate=0.5, cap=7, randomness=stream("none")).size == 0


def test_cap_holds_and_thins_uniformly() -> None:
    source = stream("cap")
    samples = [sample_units(10, rate=1.0, cap=4, randomness=source) for _ in range(5000)]
    assert all(one.size == 4 and (np.diff(one) > 0).all() for one in samples)
    counts = np.bincount(np.concatenate(samples), minlength=10)
    assert (np.abs(counts - 2000) < 4.5 * math.sqrt(5000 * 0.4 * 0.6)).all()


def binomial_tail(population: int, rate: float, cap: int) -> float:
    return math.fsum(
        math.comb(population, k) * rate**k * (1 - rate) ** (population - k) for k in range(cap, population + 1)
    )


@pytest.mark.parametrize(
    ("population", "rate", "cap"), [(50, 0.1, 12), (300, 0.032, 30), (900, 0.1, 140), (10, 1.0, 10)]
)
def test_overflow_is_the_chance_of_reaching_the_cap(population: int, rate: float, cap: int) -> None:
    exact = binomial_tail(population, rate, cap)
    bound = overflow_probability(population, rate=rate, cap=cap)
    assert exact * (1 - 1e-12) <= bound <= exact * (1 + 1e-5)


def test_overflow_grows_with_the_population() -> None:
    chances = [overflow_probability(n, rate=0.1, cap=30) for n in (100, 150, 200, 300)]
    assert chances == sorted(chances)


def test_smallest_cap_is_smallest() -> None:
    cap = smallest_cap(20_000, rate=0.1024, probability=1e-12)
    assert 2048 < cap < 2600
    assert overflow_probability(20_000, rate=0.1024, cap=cap) <= 1e-12
    assert overflow_probability(20_000, rate=0.1024, cap=cap - 1) > 1e-12


def test_a_subject_gives_each_image_once_before_any_twice() -> None:
    source = stream("images")
    for draws in (1, 2, 3, 7):
        drawn = draw_images([11, 5, 8], draws=draws, randomness=source)
        counts = np.bincount(drawn, minlength=12)[[5, 8, 11]]
        assert counts.sum() == draws
        assert counts.max() - counts.min() <= 1
    firsts = [int(draw_images([11, 5, 8], draws=2, randomness=source)[0]) for _ in range(3000)]
    assert all(abs(firsts.count(image) - 1000) < 4.5 * math.sqrt(3000 * 2 / 9) for image in (5, 8, 11))


@pytest.mark.parametrize(
    ("population", "rate", "cap"), [(-1, 0.1, 1), (5, 0.0, 1), (5, 1.1, 1), (5, 0.1, 0), (5, math.nan, 1)]
)
def test_nonsense_is_refused(population: int, rate: float, cap: int) -> None:
    with pytest.raises(AccountingError):
        sample_units(population, rate=rate, cap=cap, randomness=stream("x"))
    with pytest.raises(AccountingError):
        overflow_probability(population, rate=rate, cap=cap)


def test_units_without_images_are_refused() -> None:
    with pytest.raises(AccountingError, match="images"):
        draw_images([], draws=1, randomness=stream("x"))
    with pytest.raises(AccountingError, match="draw"):
        draw_images([1], draws=0, randomness=stream("x"))
    with pytest.raises(AccountingError, match="probability"):
        smallest_cap(10, rate=0.1, probability=0.0)
