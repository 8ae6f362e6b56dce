from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.adapter.lora import kaiming_rows, orthonormal_rows, principal_factors

SHAPES = [(1, 1), (4, 4), (4, 32), (16, 320), (3, 8, 3, 3), (8, 32, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_orthonormal(shape: tuple[int, ...]) -> None:
    rows = orthonormal_rows(shape, 7, "a.to_q")
    assert rows.shape == shape
    assert rows.dtype == torch.float32
    flat = rows.flatten(1).double()
    torch.testing.assert_close(flat @ flat.T, torch.eye(shape[0], dtype=torch.float64), rtol=0, atol=1e-6)


def test_the_row_space_is_uniformly_random() -> None:
    # for a Haar-distributed r-dimensional subspace of R^n, the squared projection of a fixed unit vector is
    # Beta(r/2, (n-r)/2): mean r/n, variance 2r(n-r)/(n²(n+2))
    r, n, count = 3, 12, 4000
    share = np.array([orthonormal_rows((r, n), seed, "m")[:, 0].square().sum().item() for seed in range(count)])
    deviation = math.sqrt(2 * r * (n - r) / (n**2 * (n + 2)))
    assert abs(share.mean() - r / n) < 4 * deviation / math.sqrt(count)
    assert share.std() == pytest.approx(deviation, rel=0.05)
    sign = np.array([orthonormal_rows((r, n), seed, "m")[0, 0].item() for seed in range(count)])
    assert abs(sign.mean()) < 4 / math.sqrt(n * count)


@pytest.mark.parametrize("shape", [(16, 320), (8, 32, 3, 3)])
def test_kaiming_rows_are_distributed_as_peft_draws_them(shape: tuple[int, ...]) -> None:
    ours = kaiming_rows(shape, 7, "a.to_q")
    peft = torch.empty(shape)
    torch.nn.init.kaiming_uniform_(peft, a=math.sqrt(5), generator=torch.Generator().manual_seed(0))
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    assert ours.abs().max() <= bound
    assert peft.abs().max() <= bound
    grid = torch.linspace(-bound, bound, 40)
    distance = max(abs((ours <= x).double().mean() - (peft <= x).double().mean()).item() for x in grid)
    assert distance < 1.95 * math.sqrt(2 / ours.numel())  # Kolmogorov-Smirnov at 0.1 %


@pytest.mark.parametrize("draw", [kaiming_rows, orthonormal_rows])
def test_seed_and_module_name_choose_the_values(draw: object) -> None:
    assert callable(draw)
    one = draw((4, 32), 7, "a.to_q")
    assert torch.equal(one, draw((4, 32), 7, "a.to_q"))
    assert not torch.allclose(one, draw((4, 32), 8, "a.to_q"))
    assert not torch.allclose(one, draw((4, 32), 7, "a.to_k"))


PINNED_KAIMING = [-0.2742885, -0.05551395, 0.09390595, -0.4978337]
PINNED_ORTHONORMAL = [0.4839222, 0.8015032, -0.3477525, -0.04980162]


def test_the_stream_is_pinned() -> None:
    # a change of these numbers breaks every adapter that is being trained
    torch.testing.assert_close(kaiming_rows((1, 4), 0, "m")[0], torch.tensor(PINNED_KAIMING), rtol=1e-6, atol=0)
    torch.testing.assert_close(orthonormal_rows((1, 4), 0, "m")[0], torch.tensor(PINNED_ORTHONORMAL), rtol=1e-6, atol=0)


@settings(derandomize=True, max_examples=30, deadline=None)
@given(outputs=st.integers(1, 12), inputs=st.integers(1, 12), data=st.data())
def test_principal_factors_are_the_best_approximation(outputs: int, inputs: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, min(outputs, inputs)))
    weight = torch.from_numpy(np.random.default_rng(data.draw(st.integers(0, 99))).normal(size=(outputs, inputs)))
    left, right = (factor.double() for factor in principal_factors(weight, rank))
    assert left.shape == (outputs, rank)
    torch.testing.assert_close(right @ right.T, torch.eye(rank, dtype=torch.float64), rtol=0, atol=1e-6)
    # Eckart and Young: the error of the best approximation of rank r is the norm of the values left out
    left_out = np.linalg.svd(weight.numpy(), compute_uv=False)[rank:]
    error = torch.linalg.norm(weight - left @ right).item()
    assert error == pytest.approx(np.linalg.norm(left_out), abs=1e-5)
    largest = right[torch.arange(rank), right.abs().argmax(dim=1)]
    assert (largest > 0).all()


def test_principal_factors_of_a_convolution_are_those_of_its_flattened_weight() -> None:
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    for got, wanted in zip(principal_factors(weight, 2), principal_factors(weight.flatten(1), 2), strict=True):
        assert torch.equal(got, wanted)
