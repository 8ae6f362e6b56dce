from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from common.crypto.randomness import REPEATABLE_WORDS, Randomness, SystemRandomness, repeatable_randomness
from common.errors import MechanismError
from common.privacy.clipping import ClippedSum
from common.privacy.mechanisms import (
    NoisedShare,
    NoisePlan,
    add_noise,
    dequantise,
    plan_noise,
    quantise,
    rounded_gaussian,
    rounding_slack,
    standard_normal,
)

if TYPE_CHECKING:
    import numpy.typing as npt


def stream(name: str) -> Randomness:
    return repeatable_randomness(name, seed=3, acknowledge=REPEATABLE_WORDS)


def plan(**changes: Any) -> NoisePlan:
    return plan_noise(
        **{"coordinates": 1000, "clip": 0.5, "noise_multiplier": 1.5, "institutions": 5, "cap": 100, **changes}
    )


def deviation_p_value(values: npt.NDArray[np.float64], sigma: float) -> float:
    """Two-sided p-value that ``values`` are N(0, σ²), by Kolmogorov and Smirnov on the law, and χ² on the variance."""
    law = float(stats.kstest(values, "norm", args=(0, sigma)).pvalue)
    tail = float(stats.chi2.cdf((values**2).sum() / sigma**2, values.size))
    return min(law, 2 * min(tail, 1 - tail))


@pytest.mark.parametrize("sigma", [4.0, 37.5, 4e5])
def test_noise_has_this_sigma_and_no_other(sigma: float) -> None:
    integers = rounded_gaussian(200_000, variance=sigma**2, randomness=stream(f"sigma {sigma}"))
    dithered = integers + stream("dither").uniforms(200_000) - 0.5  # so that a test for a continuous law applies
    spread = math.sqrt(sigma**2 - 1 / 12 + 1 / 6) if sigma > 10 else None
    if spread is not None:
        assert deviation_p_value(dithered, spread) > 1e-3
    assert abs(integers.var() / sigma**2 - 1) < 4.5 * math.sqrt(2 / 200_000)
    for wrong in (0.9, 1.1):
        assert deviation_p_value(dithered, wrong * sigma) < 1e-12


def test_each_integer_has_the_probability_of_its_cell() -> None:
    variance = 9.0
    integers = rounded_gaussian(400_000, variance=variance, randomness=stream("cells"))
    cells = np.arange(-9, 10)
    edges = np.concatenate([[-np.inf], cells[1:] - 0.5, [np.inf]])
    probabilities = np.diff(stats.norm.cdf(edges / math.sqrt(variance - 1 / 12)))
    counts = np.array([(np.clip(integers, -9, 9) == cell).sum() for cell in cells])
    assert stats.chisquare(counts, 400_000 * probabilities).pvalue > 1e-3
    wrong = np.diff(stats.norm.cdf(edges / 3.3))
    assert stats.chisquare(counts, 400_000 * wrong).pvalue < 1e-12


def test_coordinates_are_independent() -> None:
    values = standard_normal(400_000, randomness=stream("independent"))
    first, second = values[:200_000], values[200_000:]  # cosine and sine of the same pair
    for left, right in ((first, second), (first**2, second**2), (values[:-1], values[1:])):
        correlation = float(np.corrcoef(left, right)[0, 1])
        assert abs(correlation) < 4.5 / math.sqrt(left.size)


@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_any_length(n: int) -> None:
    assert standard_normal(n, randomness=stream("odd")).shape == (n,)


class Scripted(Randomness):
    """Gives given 64-bit words first, then a stream."""

    def __init__(self, *scripts: list[int]) -> None:
        self.scripts, self.rest = list(scripts), stream("rest")

    @property
    def private(self) -> bool:
        return False

    def take(self, n: int) -> bytes:
        if self.scripts:
            words = self.scripts.pop(0)
            assert len(words) * 8 == n
            return np.array(words, dtype="<u8").tobytes()
        return self.rest.take(n)


def test_tail_goes_on_where_64_bits_end() -> None:
    radius = standard_normal(2, randomness=Scripted([0], [0], [2**63], [0]))[0]  # u = 2⁻¹²⁹, angle 0
    assert radius == pytest.approx(math.sqrt(2 * 129 * math.log(2)), rel=1e-15)


def test_small_uniforms_leave_no_gaps() -> None:
    one, other = (standard_normal(2, randomness=Scripted([5], [word], [0]))[0] for word in (2**63, 2**63 + 2**25))
    assert 0 < abs(one - other) < 1e-12


def test_largest_word_is_the_origin() -> None:
    assert standard_normal(2, randomness=Scripted([2**64 - 1], [0]))[0] == 0


def test_system_noise_has_its_sigma_too() -> None:
    integers = rounded_gaussian(100_000, variance=1e6, randomness=SystemRandomness())
    assert abs(integers.var() / 1e6 - 1) < 6 * math.sqrt(2 / 100_000)


@pytest.mark.parametrize(("institutions", "colluders"), [(1, 0), (3, 0), (3, 1), (10, 4)])
def test_shares_add_up_to_the_central_mechanism(institutions: int, colluders: int) -> None:
    """The variance that n − t shares must have is z²Δ₂², from its own formula; within 1 %."""
    made = plan(coordinates=100_000, institutions=institutions, colluders=colluders)
    nothing = ClippedSum(vector=np.zeros(100_000), sensitivity=0.5)
    honest = institutions - colluders
    shares = [
        add_noise(quantise(nothing, made), stream(f"share {institutions} {colluders} {i}")).values
        for i in range(honest)
    ]
    wanted = (1.5 * (0.5 * made.scale + math.sqrt(100_000))) ** 2
    assert np.sum(shares, axis=0).var() == pytest.approx(wanted, rel=0.01 + 4.5 * math.sqrt(2 / 100_000))
    assert honest * made.share_variance == pytest.approx(wanted, rel=1e-6)
    assert honest * made.share_variance > wanted
    assert made.total_multiplier == pytest.approx(1.5 * math.sqrt(institutions / honest))


def test_deviation_of_the_decoded_sum_is_the_plans() -> None:
    made = plan(coordinates=50_000)
    nothing = ClippedSum(vector=np.zeros(50_000), sensitivity=0.5)
    ring = sum(
        (add_noise(quantise(nothing, made), stream(f"decoded {i}")).ring() for i in range(5)),
        np.zeros(50_000, np.uint32),
    )
    decoded = dequantise(np.asarray(ring, dtype=np.uint32), made)
    assert decoded.std() == pytest.approx(made.total_deviation, rel=0.015)
    assert abs(decoded.mean()) < 4.5 * made.total_deviation / math.sqrt(50_000)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([1, 2, 100, 5000]),
    length=st.sampled_from([0.0, 1e-9, 0.3, 0.5]),
)
def test_quantised_neighbours_differ_by_at_most_the_sensitivity(seed: int, size: int, length: float) -> None:
    made = plan(coordinates=size)
    rng = np.random.default_rng(seed)
    base, unit = rng.normal(size=size), rng.normal(size=size)
    base *= 40 * 0.5 / np.linalg.norm(base)
    # just across the rounding threshold in every coordinate: the worst case
    base = (np.rint(base * made.scale) + 0.5 - rng.choice([0, 1e-6], size)) / made.scale
    unit *= length / np.linalg.norm(unit)
    one, other = (quantise(ClippedSum(vector=v, sensitivity=0.5), made).values for v in (base, base + np.abs(unit)))
    assert np.linalg.norm((one - other).astype(float)) <= made.sensitivity


@pytest.mark.parametrize("bits", [32, 64])
def test_ring_round_trip_with_both_signs_at_the_cap(bits: int) -> None:
    made = plan(coordinates=4, cap=100 if bits == 32 else 2**23)
    assert made.bits == bits
    vector = np.array([-made.cap * 0.5, 0.0, 0.0, 0.0])
    share = NoisedShare(
        values=quantise(ClippedSum(vector=vector, sensitivity=0.5), made).values, plan=made, private=True
    )
    assert dequantise(share.ring(), made) == pytest.approx(vector, abs=1 / made.scale)


@pytest.mark.parametrize("cap", [1, 100, 2400, 30_000])
@pytest.mark.parametrize("colluders", [0, 3])
def test_scale_is_the_largest_that_cannot_wrap(cap: int, colluders: int) -> None:
    made = plan(coordinates=10_000, cap=cap, colluders=colluders)
    top = made.cap * made.clip * made.scale + 2.5 + 8 * made.total_deviation * made.scale
    assert made.bits == 32
    assert top < 2**31
    assert top > 0.9999 * 2**31


def test_wide_ring_where_rounding_would_cost_more_than_a_hundredth() -> None:
    narrow, wide = plan(coordinates=800_000, cap=20_000), plan(coordinates=800_000, cap=30_000)
    assert (narrow.bits, wide.bits) == (32, 64)
    assert narrow.inflation <= 0.01
    assert wide.inflation < 2e-4
    assert wide.cap * wide.clip * wide.scale + 8 * wide.total_deviation * wide.scale < 2**52


def test_rounding_slack_bounds_the_exact_distance_of_small_sums() -> None:
    """κ is a series; compare it with the law of two rounded Gaussians added up, coordinate by coordinate."""
    made = replace(plan(institutions=2), scale=1.0, coordinates=1, clip=1e-9, noise_multiplier=6.0)
    sigma = math.sqrt(made.share_variance - 1 / 12)
    grid = np.arange(-400, 401)
    one = np.diff(stats.norm.cdf(np.append(grid - 0.5, 400.5) / sigma))
    two = np.convolve(one, one)[400:1201]
    central = np.diff(stats.norm.cdf(np.append(grid - 0.5, 400.5) / math.sqrt(2 * made.share_variance - 1 / 12)))
    distance = 0.5 * float(np.abs(two - central).sum())
    assert distance < rounding_slack(made, rounds=1) < 3 * distance


def test_rounding_slack_is_nothing_at_ordinary_scales_and_for_one_share() -> None:
    ordinary = plan_noise(coordinates=800_000, clip=1.0, noise_multiplier=1.576, institutions=10, cap=2400)
    assert 0 < rounding_slack(ordinary, rounds=500) < 1e-20
    assert rounding_slack(plan(institutions=3, colluders=2), rounds=500) == 0


def test_noise_is_drawn_for_an_empty_sample() -> None:
    nothing = ClippedSum(vector=np.zeros(1000), sensitivity=0.5)
    share = add_noise(quantise(nothing, plan()), stream("empty"))
    assert share.values.std() == pytest.approx(math.sqrt(plan().share_variance), rel=0.1)


def test_secrets_are_not_shown_and_repeatable_noise_is_marked() -> None:
    total = ClippedSum(vector=np.full(1000, 0.0123), sensitivity=0.5)
    quantised = quantise(total, plan())
    share = add_noise(quantised, stream("shown"))
    for shown in (repr(total), repr(quantised), repr(share)):
        assert "array" not in shown
        assert "0123" not in shown
    assert not share.private
    assert add_noise(quantised, SystemRandomness()).private


@pytest.mark.parametrize(
    "changes",
    [
        {"colluders": 5},
        {"colluders": -1},
        {"coordinates": 0},
        {"cap": 0},
        {"clip": 0.0},
        {"clip": math.inf},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": math.nan},
        {"cap": 2**60},
    ],
)
def test_plans_without_a_guarantee_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(MechanismError):
        plan(**changes)


@pytest.mark.parametrize(
    "total",
    [
        ClippedSum(vector=np.zeros(999), sensitivity=0.5),
        ClippedSum(vector=np.zeros(1000), sensitivity=0.6),
        ClippedSum(vector=np.full(1000, 1e9), sensitivity=0.5),
        ClippedSum(vector=np.full(1000, np.nan), sensitivity=0.5),
    ],
)
def test_sums_that_the_plan_was_not_made_for_are_refused(total: ClippedSum) -> None:
    with pytest.raises(MechanismError):
        quantise(total, plan())


def test_another_ring_is_refused() -> None:
    for values in (np.zeros(1000, np.uint64), np.zeros(999, np.uint32)):
        with pytest.raises(MechanismError, match="32 bits"):
            dequantise(values, plan())


def test_a_million_values_take_at_most_150_ms() -> None:
    rounded_gaussian(10**6, variance=1e12, randomness=SystemRandomness())
    taken = []
    for _ in range(5):
        start = time.thread_time()
        rounded_gaussian(10**6, variance=1e12, randomness=SystemRandomness())
        taken.append(time.thread_time() - start)
    assert min(taken) <= 0.15
