from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
import torch

from common.privacy.arithmetic import arithmetic_of, computed

if TYPE_CHECKING:
    from collections.abc import Iterator

MANY = 2**18
"""Enough numbers that torch deals them out to its workers."""


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def subnormals_left() -> int:
    """Of subnormal products, counted by their bits: a comparison may itself take subnormals for zero."""
    return int((torch.full((MANY,), 1e-39) * 0.5).view(torch.int32).count_nonzero())


@pytest.mark.usefixtures("two_threads")
def test_every_worker_flushes_subnormals_even_where_others_were_started_before() -> None:
    assert subnormals_left() == MANY  # starts this thread's workers
    assert computed(torch.get_num_threads) == 2
    assert computed(subnormals_left) == 0
    assert subnormals_left() == MANY  # nobody else's arithmetic changes


def test_an_ordinary_product_keeps_its_bits() -> None:
    numbers = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    assert torch.equal(computed(lambda: numbers @ numbers), numbers @ numbers)


def test_an_error_is_the_callers() -> None:
    def work() -> None:
        raise LookupError(threading.current_thread().name)

    with pytest.raises(LookupError, match="arithmetic"):
        computed(work)


def test_the_number_of_threads_is_part_of_the_arithmetic() -> None:
    before = torch.get_num_threads()
    one = arithmetic_of("cpu")
    torch.set_num_threads(before + 1)
    try:
        assert arithmetic_of("cpu") != one
    finally:
        torch.set_num_threads(before)
    assert arithmetic_of("cpu") == one
