from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ProtocolError
from common.privacy.mechanisms import plan_noise
from common.wire.replies import NoisedContribution, PlainContribution
from server.rounds.sums import PartialSum, RingSum

D = 5
PLAN = plan_noise(coordinates=D, clip=2.0, noise_multiplier=1.0, institutions=3, cap=30, colluders=1)
EXPECTED = 10.0


def noised(values: Any) -> NoisedContribution:
    body = np.asarray(values, dtype=np.int64).astype("<u4" if PLAN.bits == 32 else "<u8").tobytes()
    return NoisedContribution(round=1, attempt=0, values=body)


@settings(derandomize=True, max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(-(2**29), 2**29), min_size=D, max_size=D), min_size=3, max_size=3))
def test_the_mean_is_the_signed_sum_over_the_public_expected_batch(shares: list[list[int]]) -> None:
    total = RingSum.empty(PLAN, EXPECTED)
    for share in shares:
        total = total.plus(noised(share))
    exact = [sum(column) for column in zip(*shares, strict=True)]
    wrapped = [(one + 2 ** (PLAN.bits - 1)) % 2**PLAN.bits - 2 ** (PLAN.bits - 1) for one in exact]
    np.testing.assert_allclose(total.mean(), np.array(wrapped) / PLAN.scale / EXPECTED, rtol=1e-12)


@pytest.mark.parametrize("answers", [0, 1, 2, 3])
def test_who_answered_does_not_change_the_divisor(answers: int) -> None:
    total = RingSum.empty(PLAN, EXPECTED)
    for index in range(3):
        total = total.plus(noised([7] * D) if index < answers else None)
    assert total.settled == 3
    np.testing.assert_allclose(total.mean(), 7 * answers / PLAN.scale / EXPECTED, rtol=1e-12)


def test_answers_of_the_other_kind_or_length_are_refused() -> None:
    plain = PlainContribution(round=1, attempt=0, vector=b"\0" * 4 * D, weight=1.0, train_loss=0.0)
    private = RingSum.empty(PLAN, EXPECTED)
    private.check(noised([0] * D))
    for wrong in (plain, noised([0] * (D - 1)), noised([])):
        with pytest.raises(ProtocolError):
            private.check(wrong)
    PartialSum.empty(D).check(plain)
    with pytest.raises(ProtocolError, match="plain"):
        PartialSum.empty(D).check(noised([0] * D))
