"""Honest sums stay below the limit, at every dimension; a summand that no honest steward sends passes it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from common.crypto.randomness import REPEATABLE_WORDS, repeatable_randomness
from common.privacy.clipping import ClippedSum
from common.privacy.mechanisms import NoisePlan, add_noise, dequantise, plan_noise, quantise
from server.rounds.sum_norm import MeanNorm, longest_honest_sum, mean_norm

TINY = tuple(range(1, 11))


def plan_of(d: int, *, z: float = 1.5) -> NoisePlan:
    return plan_noise(coordinates=d, clip=0.5, noise_multiplier=z, institutions=3, cap=30, colluders=1)


def honest_ring(plan: NoisePlan, signals: list[np.ndarray], seed: int) -> np.ndarray:
    """What institutions with these clipped sums add up to in the ring."""
    total = np.zeros(plan.coordinates, dtype=np.uint32 if plan.bits == 32 else np.uint64)
    for place, signal in enumerate(signals):
        clipped = ClippedSum(vector=signal, sensitivity=plan.clip)
        share = add_noise(
            quantise(clipped, plan), repeatable_randomness(f"site {place}", seed=seed, acknowledge=REPEATABLE_WORDS)
        )
        total += share.ring()
    return total


def worst_signals(plan: NoisePlan, rng: np.random.Generator) -> list[np.ndarray]:
    """Every unit of every institution at its clip, all in one direction: no honest sum is longer."""
    direction = rng.normal(size=plan.coordinates)
    direction *= plan.cap * plan.clip / np.linalg.norm(direction)
    return [direction / plan.institutions] * plan.institutions


@pytest.mark.parametrize("d", [*TINY, 100, 1000, 10**5, 10**7, 2**31 - 1])
def test_the_probability_of_a_false_alarm_is_what_the_docstring_says(d: int) -> None:
    """From the χ² distribution, whatever the signal: it is at most cap·C long."""
    plan = plan_of(min(d, 10**6))
    noise = longest_honest_sum(plan) - plan.cap * plan.clip
    if d == plan.coordinates:
        assert noise >= plan.total_deviation * math.sqrt(d) * (1 + 5 / math.sqrt(2 * d))
        assert noise <= plan.total_deviation * math.sqrt(d) * (1 + 5 / math.sqrt(2 * d)) + 0.02 * plan.cap * plan.clip
    chance = stats.chi2.sf((math.sqrt(d) + 5 / math.sqrt(2)) ** 2, d)
    assert chance <= 6e-6
    if d >= 100:
        assert 1e-7 < chance <= 8e-7


@pytest.mark.parametrize("d", [*TINY, 100, 3000])
@pytest.mark.parametrize("z", [0.3, 1.5, 20.0])
def test_honest_sums_never_pass_even_with_every_unit_in_one_direction(d: int, z: float) -> None:
    plan, rng = plan_of(d, z=z), np.random.default_rng(d)
    longest = 0.0
    for seed in range(60 if d <= 100 else 10):
        decoded = dequantise(honest_ring(plan, worst_signals(plan, rng), seed), plan)
        norm = mean_norm(decoded, plan)
        assert norm.is_honest
        longest = max(longest, norm.decoded)
    assert longest > 0.3 * longest_honest_sum(plan)  # the limit is not so far off that it finds nothing


@pytest.mark.parametrize("d", TINY)
def test_the_limit_is_honest_at_tiny_dimensions(d: int) -> None:
    """A million sums of noise alone, against the limit less all that is allowed for signals."""
    plan = plan_of(d)
    noise = longest_honest_sum(plan) - plan.cap * plan.clip * (1 + 2**-23)
    lengths = np.linalg.norm(np.random.default_rng(d).normal(scale=plan.total_deviation, size=(10**6, d)), axis=1)
    assert np.count_nonzero(lengths > noise) <= 20  # 5.7 are due at d = 1, and fewer above
    assert np.count_nonzero(lengths > 0.8 * noise) > 50


@pytest.mark.parametrize("d", [5, 7, 100, 3000])
@pytest.mark.parametrize("z", [0.3, 1.5, 20.0])
def test_a_summand_twice_as_long_is_always_found(d: int, z: float) -> None:
    """Below five coordinates the ring has no element that is so long."""
    plan, rng = plan_of(d, z=z), np.random.default_rng(d)
    limit, half = longest_honest_sum(plan), 2.0 ** (plan.bits - 1)
    tried = 0
    for seed in range(60 if d <= 100 else 10):
        spread = rng.uniform(0.7, 1.0, size=d) if seed % 2 else np.abs(rng.normal(size=d))
        direction = rng.choice([-1.0, 1.0], size=d) * spread
        steps = np.rint(direction * (2.0001 * limit * plan.scale / np.linalg.norm(direction)))
        if np.abs(steps).max() >= half - 1:
            continue
        tried += 1
        total = honest_ring(plan, worst_signals(plan, rng), seed)
        total += steps.astype(np.int64).astype(total.dtype)
        assert not mean_norm(dequantise(total, plan), plan).is_honest
    assert tried >= 5


def test_what_is_no_number_is_not_honest_and_without_privacy_nothing_is_asked() -> None:
    assert not MeanNorm(decoded=math.nan, noise_expected=1.0, limit=2.0).is_honest
    assert not MeanNorm(decoded=math.inf, noise_expected=1.0, limit=2.0).is_honest
    assert MeanNorm(decoded=2.0, noise_expected=1.0, limit=2.0).is_honest
    assert mean_norm(np.full(3, 1e30), None).is_honest


def test_a_mean_is_measured_in_its_own_units() -> None:
    plan = plan_of(7)
    norm = mean_norm(np.full(7, 2.0), plan, expected_batch=4.0)
    assert norm.decoded == pytest.approx(2.0 * math.sqrt(7))
    assert norm.noise_expected == pytest.approx(math.sqrt(7) * plan.total_deviation / 4)
    assert norm.limit == pytest.approx(longest_honest_sum(plan) / 4)
