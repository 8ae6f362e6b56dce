"""The coordinator's optimiser: one step of SGD with momentum, or of Adam, on the mean update.

Moments are float64 and a step is computed in float64, then rounded to float32 once: the state of a long run loses
nothing to rounding, and SGD with learning rate 1 and no momentum gives exactly ``float32(adapter + mean change)``,
which is plain FedAvg. At a few million coordinates the extra bytes do not matter. Every operation is element by
element, so the same inputs give the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Mapping

    from common.config import ServerConfig

Vector: TypeAlias = npt.NDArray[np.float32]
"""float32[d]: an adapter as the coordinator holds it."""
Precise: TypeAlias = npt.NDArray[np.float64]
"""float64[d]"""


FIRST: Final = "first_moment"
SECOND: Final = "second_moment"


@dataclass(frozen=True, kw_only=True)
class OptimizerState:
    """What an optimiser remembers between steps; arrays are read-only."""

    steps: int
    """Steps taken so far."""
    first: Precise
    """float64[d]: the momentum buffer of SGD, or Adam's mean of gradients."""
    second: Precise | None
    """float64[d]: Adam's mean of squared gradients; None for SGD."""

    def to_arrays(self) -> dict[str, Precise]:
        """The moments by name, for a checkpoint."""
        return {FIRST: self.first} | ({} if self.second is None else {SECOND: self.second})

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Precise], *, steps: int) -> OptimizerState:
        """The state that :meth:`to_arrays` took apart; raises KeyError without a first moment."""
        second = arrays.get(SECOND)
        return cls(
            steps=steps,
            first=frozen_copy(arrays[FIRST], np.float64),
            second=None if second is None else frozen_copy(second, np.float64),
        )


def initial_state(config: ServerConfig, dimension: int) -> OptimizerState:
    """Moments of zero for a vector of ``dimension`` coordinates."""
    zero = frozen_copy(np.zeros(dimension), np.float64)
    return OptimizerState(steps=0, first=zero, second=zero if config.optimizer == "adam" else None)


def learning_rate(config: ServerConfig, *, round_number: int, rounds: int) -> float:
    """Learning rate of a round in 1 … ``rounds``.

    ``cosine``: lr·½·(1 + cos(π·(round − 1)/rounds)), from lr in the first round to just above zero in the last.
    """
    if config.schedule == "constant":
        return config.learning_rate
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * (round_number - 1) / rounds))


def step(
    vector: Vector,
    gradient: Precise,
    state: OptimizerState,
    *,
    config: ServerConfig,
    rate: float,
    noise_variance: float = 0.0,
) -> tuple[Vector, OptimizerState]:
    """The vector after one step against ``gradient`` (float64[d]) at learning rate ``rate``, and the new state.

    SGD: m ← momentum·m + g, x ← x − rate·m. Adam (Kingma & Ba 2015, arXiv:1412.6980, algorithm 1) with β1 =
    ``momentum``. With ``config.subtract_noise`` the known variance of the noise in each coordinate of ``gradient`` is
    taken off the mean of squares, of which a share of that variance stays (Tang et al. 2023, arXiv:2312.14334): noise
    would otherwise make all coordinates' squares alike and Adam a slow SGD. A result beyond float32 becomes infinite;
    the caller checks.
    """
    if state.second is None:
        first = config.momentum * state.first + gradient
        return _moved(vector, rate * first), _next(state, first, None)
    count = state.steps + 1
    first = config.momentum * state.first + (1.0 - config.momentum) * gradient
    second = config.beta2 * state.second + (1.0 - config.beta2) * np.square(gradient)
    unbiased_first = first / (1.0 - config.momentum**count)
    unbiased_second = second / (1.0 - config.beta2**count)
    if config.subtract_noise and noise_variance > 0:
        unbiased_second = np.maximum(unbiased_second - noise_variance, config.noise_floor * noise_variance)
    change = rate * unbiased_first / (np.sqrt(unbiased_second) + config.epsilon)
    return _moved(vector, change), _next(state, first, second)


def moving_average(average: Vector | None, adapter: Vector, *, config: ServerConfig, step_number: int) -> Vector | None:
    """The exponential moving average of adapters with this one in it, float32[d]; None where the run keeps none.

    The decay grows from 2/11 at step 1 to ``config.average``, so that the start is soon forgotten.
    """
    if config.average == 0:
        return None
    before = adapter if average is None else average
    decay = min(config.average, (1 + step_number) / (10 + step_number))
    mixed: Vector = frozen_copy(decay * before.astype(np.float64) + (1 - decay) * adapter, np.float32)
    return mixed


def _moved(vector: Vector, change: Precise) -> Vector:
    with np.errstate(over="ignore"):
        moved = (vector.astype(np.float64) - change).astype(np.float32)
    moved.setflags(write=False)
    return moved


def _next(state: OptimizerState, first: Precise, second: Precise | None) -> OptimizerState:
    for moment in (first, second):
        if moment is not None:
            moment.setflags(write=False)
    return OptimizerState(steps=state.steps + 1, first=first, second=second)


def to_bytes(vector: Vector) -> bytes:
    """The vector's wire form: float32, little-endian, 4·d bytes."""
    return vector.astype("<f4", copy=False).tobytes()


def frozen_copy(values: npt.ArrayLike, kind: type[np.floating[Any]]) -> npt.NDArray[Any]:
    """A copy in the given float type that cannot be written to, so that a state stays what it was."""
    made = np.array(values, dtype=kind)
    made.setflags(write=False)
    return made
