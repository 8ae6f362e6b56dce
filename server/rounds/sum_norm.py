"""How long a round's decoded mean is, beside what honest institutions can give: the trace that poisoning leaves.

Masks hide whose summand it was, but not that the sum is longer than clipped gradients and the planned noise can make
it. The length is computed from the noised sum alone, so it is post-processing and costs no ε.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from common.privacy.mechanisms import NoisePlan
    from server.rounds.optimizer import Precise

DEVIATIONS: Final = 5.0
"""Of the noise's length, which is all but normal with deviation σ/√2, above its root mean square √d·σ."""


@dataclass(frozen=True, kw_only=True)
class MeanNorm:
    """Euclidean lengths, in units of the mean update; without privacy only the first is known."""

    decoded: float
    """Of the mean that was decoded, noise included."""
    noise_expected: float | None = None
    """Root mean square of the noise's length alone."""
    limit: float | None = None
    """Longest that honest institutions give, see :func:`longest_honest_sum`."""

    @property
    def is_honest(self) -> bool:
        """Whether noise and cap can explain it; what is no number they cannot."""
        return self.limit is None or self.decoded <= self.limit


def longest_honest_sum(plan: NoisePlan) -> float:
    """√d·σ·(1 + 5/√(2d)) + cap·C and rounding, in units of the gradient; σ is the noise's deviation per coordinate.

    Guarantee: the sum of institutions that clip to C, keep to the cap and add the plan's noise is longer with a
    probability of at most 6e-6 at any d, of at most 8e-7 from d = 100 on, and of 3e-7 for large d. Assumed is that
    rounded noise is Gaussian, which :func:`common.privacy.mechanisms.rounding_slack` bounds. A summand that is twice as
    long (each coordinate read in the middle of the ring) makes the sum longer than this whenever the others' own sum is
    not: lengths modulo the ring obey the triangle inequality.

    Why: the signal is at most cap·C·(1 + ρ) long, ρ the plan's share for rounding in float64; its rounding by n
    institutions moves it by at most n·√d/(2s), and the noise is σ·χ_d. What is left is P(χ_d > √d + 5/√2). Of one
    coordinate that is P(|N(0, 1)| > 4.54) = 5.7e-6, the largest of all d; for large d, χ_d is N(√d, 1/2), which gives
    P(N(0, 1) > 5) = 2.9e-7. (Concentration of 1-Lipschitz functions, exp(−25/4), would prove no more than 2e-3, so the
    tests take the χ² distribution's own tail.) A χ² quantile would make the probability equal at all d and the limit no
    line that a person can check; real signals stay far below cap·C, so the chance of a false alarm is smaller still.
    """
    signal = plan.cap * plan.clip * (1 + plan.rounding)
    rounding = plan.institutions * math.sqrt(plan.coordinates) / (2 * plan.scale)
    noise = plan.total_deviation * (math.sqrt(plan.coordinates) + DEVIATIONS / math.sqrt(2))
    return noise + signal + rounding


def mean_norm(mean: Precise, plan: NoisePlan | None, *, expected_batch: float = 1.0) -> MeanNorm:
    """Of a decoded mean, float64[d], which is the sum over ``expected_batch``; without privacy there is no plan."""
    decoded = float(np.linalg.norm(mean))
    if plan is None:
        return MeanNorm(decoded=decoded)
    return MeanNorm(
        decoded=decoded,
        noise_expected=math.sqrt(plan.coordinates) * plan.total_deviation / expected_batch,
        limit=longest_honest_sum(plan) / expected_batch,
    )
