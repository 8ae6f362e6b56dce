"""Which privacy units take part in a round, and with which of their images.

Each unit is in the sample with probability q, independently of all others and of earlier rounds (Poisson sampling);
that is what the accountant assumes, and shuffled epochs are not it. The sample is secret: against who knows it, there
is no amplification by q.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from common.errors import AccountingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from common.crypto.randomness import Randomness


def sample_units(population: int, *, rate: float, cap: int, randomness: Randomness) -> npt.NDArray[np.int64]:
    """Indices of the units of one round's sample, ascending; possibly none.

    Guarantee: with secret ``randomness``, the sample is one independent Bernoulli draw per unit but for
    :func:`overflow_probability`, and never has more than ``cap`` units.

    Args:
        population: Number of units N ≥ 0.
        rate: q in (0, 1].
        cap: A sample of more units is thinned to this number, uniformly.
        randomness: Secret, except in tests.

    Raises:
        AccountingError: Nonsense.

    Example:
        >>> from common.crypto.randomness import REPEATABLE_WORDS, repeatable_randomness
        >>> for_show = repeatable_randomness("sample", seed=1, acknowledge=REPEATABLE_WORDS)
        >>> sample_units(20, rate=0.25, cap=10, randomness=for_show).tolist()
        [3, 4, 9, 11, 16, 19]

    """
    _check(population, rate, cap)
    chosen: npt.NDArray[np.int64] = np.flatnonzero(randomness.coins(population, rate))
    if chosen.size > cap:
        chosen = np.sort(chosen[randomness.permutation(chosen.size)[:cap]])
    return chosen


def draw_images(
    images: Sequence[int],
    *,
    draws: int,
    randomness: Randomness,
) -> npt.NDArray[np.int64]:
    """A unit's images for its K draws: each of its images once in random order, and again as often as K needs.

    Args:
        images: The unit's image indices, at least one.
        draws: K ≥ 1.
        randomness: Secret, except in tests.

    Raises:
        AccountingError: A unit without images, or K < 1.

    Example:
        >>> from common.crypto.randomness import REPEATABLE_WORDS, repeatable_randomness
        >>> for_show = repeatable_randomness("draws", seed=1, acknowledge=REPEATABLE_WORDS)
        >>> draw_images([7, 8, 9], draws=5, randomness=for_show).tolist()
        [7, 8, 9, 7, 9]

    """
    if not images or draws < 1:
        raise AccountingError(f"wanted a unit with images and at least one draw, got {draws} draws")
    rounds = -(-draws // len(images))
    order: npt.NDArray[np.int64] = np.concatenate([randomness.permutation(len(images)) for _ in range(rounds)])[:draws]
    chosen: npt.NDArray[np.int64] = np.asarray(images, dtype=np.int64)[order]
    return chosen


def overflow_probability(population: int, *, rate: float, cap: int) -> float:
    """What the cap adds to δ in one round: the chance that a Poisson sample reaches it, as an exact binomial tail.

    Where fewer than ``cap`` of the units that two neighbours share are sampled, neither neighbour is thinned and the
    accountant's bound holds; the rest is lost outright, so this adds to δ as it is, without a factor of e^ε. It grows
    with the population, so a public upper bound on N may stand in for N.

    Example:
        >>> f"{overflow_probability(1000, rate=0.05, cap=100):.1e}"
        '8.4e-11'

    """
    _check(population, rate, cap)
    return min(1.0, float(stats.binom.sf(cap - 1, population, rate)) * (1 + 1e-6))


def smallest_cap(population: int, *, rate: float, probability: float) -> int:
    """The least cap that a Poisson sample reaches with at most this probability.

    Args:
        population: Number of units N, or an upper bound.
        rate: q in (0, 1].
        probability: For one round; a run of T rounds loses T·probability.

    Raises:
        AccountingError: Nonsense.

    Example:
        >>> smallest_cap(1000, rate=0.05, probability=1e-9)
        97

    """
    if not 0 < probability < 1:
        raise AccountingError(f"wanted a probability in (0, 1), got {probability}")
    _check(population, rate, cap=1)
    cap = max(1, int(stats.binom.isf(probability, population, rate)) - 2)
    while overflow_probability(population, rate=rate, cap=cap) > probability:
        cap += 1
    return cap


def _check(population: int, rate: float, cap: int) -> None:
    if population < 0 or not 0 < rate <= 1 or cap < 1:
        raise AccountingError(f"wanted population ≥ 0, rate in (0, 1] and cap ≥ 1, got rate {rate} and cap {cap}")
