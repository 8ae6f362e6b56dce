"""Integers of any sign are what they are modulo 2ᵇ, and nothing else is taken."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.errors import WrongShape
from common.secagg.ring import from_integers, word_type


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
