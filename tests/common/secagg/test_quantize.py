"""Rounding is exact to half a step, and a sum has room."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.errors import ConfigError, WrongShape
from common.secagg.ring import (
    VectorSum,
    centre,
    choose_scale,
    dequantize,
    from_integers,
    from_reals,
    word_type,
)

FLOATS = {32: st.floats(-1e6, 1e6, width=32), 64: st.floats(-1e9, 1e9)}


def as_sum(words: np.ndarray, bits: int, cohort: int = 2) -> VectorSum:
    return VectorSum(words=words, bits=bits, cohort=cohort)  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("width", [32, 64])
def test_rounding_is_to_nearest_for_every_input(bits: int, width: int) -> None:
    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(hnp.arrays(np.dtype(f"f{width // 8}"), st.integers(0, 20), elements=FLOATS[width]), st.integers(-20, 30))
    def check(values: np.ndarray, exponent: int) -> None:
        got = centre(as_sum(from_reals(values, scale=2.0**exponent, bits=bits, cohort=2).words, bits))  # type: ignore[arg-type]
        edge = 2 ** (bits - 1)
        for value, integer in zip(values, got, strict=True):
            exact = Fraction(float(value)) * Fraction(2) ** exponent
            if abs(exact) < edge - 2048:
                assert abs(exact - int(integer)) <= Fraction(1, 2)
            else:
                assert abs(int(integer)) >= edge - 4096
                assert (integer > 0) == (exact > 0)

    check()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.floats(-1e5, 1e5), st.floats(-1e5, 1e5))
def test_two_values_differ_by_at_most_scaled_distance_plus_one(one: float, other: float) -> None:
    scale = 1024.0
    words = from_reals(np.array([one, other]), scale=scale, bits=64, cohort=2).words
    first, second = (int(value) for value in centre(as_sum(words, 64)))
    assert abs(first - second) <= abs(Fraction(one) - Fraction(other)) * Fraction(scale) + 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(WrongShape, match="not finite"):
        from_reals(np.array([0.0, bad]), scale=1.0, bits=32, cohort=2)


@pytest.mark.parametrize("bad", [0.0, -1.0, 3.0, math.nan, math.inf, 0.3])
def test_scale_is_a_power_of_two(bad: float) -> None:
    with pytest.raises(ConfigError, match="power of two"):
        from_reals(np.zeros(2), scale=bad, bits=32, cohort=2)
    with pytest.raises(ConfigError, match="power of two"):
        dequantize(as_sum(np.zeros(2, np.uint32), 32), scale=bad)


def test_matrices_are_refused() -> None:
    with pytest.raises(WrongShape, match="wanted a vector"):
        from_reals(np.zeros((2, 2)), scale=1.0, bits=32, cohort=2)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(hnp.arrays(np.int64, st.integers(0, 20)), st.sampled_from([32, 64]))
def test_integers_are_taken_modulo(values: np.ndarray, bits: int) -> None:
    summand = from_integers(values, bits=bits, cohort=5)  # type: ignore[arg-type]
    assert [int(word) for word in summand.words] == [int(value) % 2**bits for value in values]
    assert (summand.cohort, summand.bits, summand.words.dtype) == (5, bits, word_type(bits))  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [np.zeros(3, np.int32), np.zeros(3), np.zeros((3, 1), np.int64), np.int64(3)])
def test_integers_of_another_shape_or_type_are_refused(values: np.ndarray) -> None:
    with pytest.raises(WrongShape, match="wanted a vector of int64"):
        from_integers(np.asarray(values), bits=32, cohort=2)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(-100, 100, width=32)))
def test_round_trip_is_within_half_a_step(values: np.ndarray) -> None:
    back = dequantize(as_sum(from_reals(values, scale=2.0**16, bits=32, cohort=2).words, 32), scale=2.0**16)
    assert np.abs(back - values).max() <= 2.0**-17


@settings(max_examples=200, deadline=None, derandomize=True)
@given(bits=st.sampled_from([32, 64]), bound=st.floats(1e-3, 1e6), n=st.integers(1, 1000))
def test_no_sum_wraps_and_a_larger_scale_could(bits: int, bound: float, n: int) -> None:
    s = Fraction(choose_scale(bits=bits, bound=bound, institutions=n))  # type: ignore[arg-type]
    limit = 2 ** (bits - 1) - 1

    def reach(scale: Fraction) -> Fraction:
        return n * (scale * Fraction(bound) + Fraction(1, 2))

    assert math.frexp(float(s))[0] == 0.5
    assert reach(s) <= limit * (1 + Fraction(1, 10**12))
    assert reach(2 * s) > limit * (1 - Fraction(1, 10**9)) or 2 * s * Fraction(bound) * n > 2**52


@pytest.mark.parametrize(
    ("bits", "bound", "n"), [(32, 1.0, 2**31), (32, 0.0, 2), (32, math.nan, 2), (32, math.inf, 2), (64, 1.0, 0)]
)
def test_settings_without_a_scale_are_refused(bits: int, bound: float, n: int) -> None:
    with pytest.raises(ConfigError, match=r"use 64|wanted a bound"):
        choose_scale(bits=bits, bound=bound, institutions=n)  # type: ignore[arg-type]
