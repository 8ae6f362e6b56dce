from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import ServerConfig
from server.rounds.optimizer import OptimizerState, initial_state, learning_rate, moving_average, step

D, STEPS = 11, 12


def server_config(**values: Any) -> ServerConfig:
    return msgspec.convert(values, ServerConfig)


def gradients(seed: int) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=D) * 10.0 ** rng.integers(-4, 3) for _ in range(STEPS)]


def ours(config: ServerConfig, seed: int) -> Any:
    vector = np.random.default_rng(seed + 1).normal(size=D).astype(np.float32)
    state = initial_state(config, D)
    for number, gradient in enumerate(gradients(seed), start=1):
        rate = learning_rate(config, round_number=number, rounds=STEPS)
        vector, state = step(vector, gradient, state, config=config, rate=rate)
    return vector


def torchs(optimizer: type[torch.optim.Optimizer], seed: int, *, cosine: bool, **options: Any) -> Any:
    start = np.random.default_rng(seed + 1).normal(size=D).astype(np.float32)
    parameter = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    made = optimizer([parameter], **options)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(made, T_max=STEPS if cosine else 10**12)
    for gradient in gradients(seed):
        parameter.grad = torch.tensor(gradient)
        made.step()
        schedule.step()
    return parameter.detach().numpy()


@settings(derandomize=True, max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rate=st.floats(1e-4, 1.0),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    cosine=st.booleans(),
)
def test_sgd_is_torchs_sgd(seed: int, rate: float, momentum: float, *, cosine: bool) -> None:
    config = server_config(
        optimizer="sgd", learning_rate=rate, momentum=momentum, schedule="cosine" if cosine else "constant"
    )
    expected = torchs(torch.optim.SGD, seed, cosine=cosine, lr=rate, momentum=momentum)
    np.testing.assert_allclose(ours(config, seed), expected, rtol=1e-6, atol=1e-6)


@settings(derandomize=True, max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rate=st.floats(1e-4, 0.1),
    betas=st.tuples(st.sampled_from([0.0, 0.9]), st.sampled_from([0.9, 0.99, 0.999])),
    cosine=st.booleans(),
)
def test_adam_is_torchs_adam(seed: int, rate: float, betas: tuple[float, float], *, cosine: bool) -> None:
    config = server_config(
        optimizer="adam",
        learning_rate=rate,
        momentum=betas[0],
        beta2=betas[1],
        schedule="cosine" if cosine else "constant",
    )
    expected = torchs(torch.optim.Adam, seed, cosine=cosine, lr=rate, betas=betas, eps=1e-8)
    np.testing.assert_allclose(ours(config, seed), expected, rtol=1e-6, atol=1e-6)


def test_cosine_starts_at_the_learning_rate_and_never_reaches_zero() -> None:
    config = server_config(learning_rate=0.25, schedule="cosine")
    rates = [learning_rate(config, round_number=number, rounds=100) for number in range(1, 101)]
    assert rates[0] == 0.25
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] > 0.0


def test_sgd_with_rate_one_and_no_momentum_is_plain_fedavg_to_the_bit() -> None:
    config = server_config(optimizer="sgd", learning_rate=1.0, momentum=0.0, schedule="constant")
    rng = np.random.default_rng(3)
    state = initial_state(config, D)
    vector = rng.normal(size=D).astype(np.float32)
    for _ in range(5):
        change = rng.normal(size=D)
        expected = (vector.astype(np.float64) + change).astype(np.float32)
        vector, state = step(vector, -change, state, config=config, rate=1.0)
        assert vector.tobytes() == expected.tobytes()


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_state_survives_as_arrays_and_cannot_be_written(optimizer: str) -> None:
    config = server_config(optimizer=optimizer)
    vector, state = step(
        np.zeros(D, dtype=np.float32), np.arange(D, dtype=np.float64), initial_state(config, D), config=config, rate=0.1
    )
    again = OptimizerState.from_arrays(state.to_arrays(), steps=state.steps)
    for name, array in state.to_arrays().items():
        assert again.to_arrays()[name].tobytes() == array.tobytes()
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1.0
    with pytest.raises(ValueError, match="read-only"):
        vector[0] = 1.0
    assert (again.steps, again.second is None) == (1, optimizer == "sgd")


def test_a_step_leaves_the_earlier_state_as_it_was() -> None:
    config = server_config(optimizer="adam")
    before = initial_state(config, D)
    step(np.zeros(D, dtype=np.float32), np.ones(D), before, config=config, rate=0.1)
    assert before.steps == 0
    assert not before.first.any()


def test_overflow_becomes_infinite_without_a_warning() -> None:
    config = server_config(optimizer="sgd", momentum=0.0)
    vector, _ = step(
        np.zeros(D, dtype=np.float32), np.full(D, 1e38), initial_state(config, D), config=config, rate=1e10
    )
    assert np.isinf(vector).all()


def test_the_known_variance_of_noise_is_taken_off_and_a_share_of_it_stays() -> None:
    config = server_config(momentum=0.0, beta2=0.9, subtract_noise=True, noise_floor=0.25, epsilon=1e-12)
    first, second = np.array([3.0, 0.1, -2.0]), np.array([1.0, -0.2, 2.0])
    vector, state = step(
        np.zeros(3, dtype=np.float32), first, initial_state(config, 3), config=config, rate=1.0, noise_variance=0.5
    )
    denominators = [np.sqrt(9.0 - 0.5), np.sqrt(0.25 * 0.5), np.sqrt(4.0 - 0.5)]
    np.testing.assert_allclose(vector, -first / denominators, rtol=1e-6)
    after, _ = step(vector, second, state, config=config, rate=1.0, noise_variance=0.5)
    squares = (0.09 * first**2 + 0.1 * second**2) / (1 - 0.81)
    expected = vector - second / np.sqrt(np.maximum(squares - 0.5, 0.125))
    np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-6)


def test_with_the_noise_taken_off_steps_are_as_without_noise() -> None:
    config = server_config(beta2=0.999, momentum=0.99, subtract_noise=True, schedule="constant")
    rng = np.random.default_rng(11)
    signal, deviation, count = 1.0, 3.0, 40_000
    state = initial_state(config, count)
    vector = np.zeros(count, dtype=np.float32)
    for _ in range(300):
        gradient = signal + deviation * rng.normal(size=count)
        before = vector
        vector, state = step(vector, gradient, state, config=config, rate=1.0, noise_variance=deviation**2)
    assert np.mean(before - vector) == pytest.approx(1.0, abs=0.3)  # with the noise left in: 1/√10
    assert np.mean(before - vector) > 0.7


def test_without_the_option_noise_changes_nothing() -> None:
    config = server_config()
    start, state = np.zeros(D, dtype=np.float32), initial_state(config, D)
    plain, _ = step(start, np.ones(D), state, config=config, rate=0.1)
    told, _ = step(start, np.ones(D), state, config=config, rate=0.1, noise_variance=0.5)
    assert plain.tobytes() == told.tobytes()


def test_the_moving_average_forgets_its_start() -> None:
    config = server_config(average=0.9)
    average = None
    for number in range(1, 200):
        average = moving_average(average, np.full(D, 2.0, dtype=np.float32), config=config, step_number=number)
    np.testing.assert_allclose(average, 2.0, rtol=1e-6)
    assert moving_average(None, np.zeros(D, dtype=np.float32), config=server_config(), step_number=1) is None
