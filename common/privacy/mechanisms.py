"""From a clipped sum to one institution's noised integers, and from the sum of all institutions back to a gradient.

Everything is public but the vectors: all institutions make the same :class:`NoisePlan` from the manifest, so their
integers add up. Sizes are in lattice steps of 1/s; d is the vector's length.

* *Sensitivity.* Rounding a sum to the nearest integers moves each coordinate's difference between neighbours by at most
  one step, so Δ₂ = s·C + √d.
* *Noise.* Each of n institutions adds a rounded Gaussian of integer variance (z²Δ₂² + 1/12)/(n − t). What n − t of them
  add up to is as good as rint(N(0, z²Δ₂²)), and the t others may be subtracted by whoever knows them. An integer plus
  rint(Gaussian) is the rounding of integer plus Gaussian, so the Gaussian accountant holds without a discrete Gaussian.
  (The vetted exact sampler, OpenDP 0.16, takes over 10 s for a million values, these take 0.03 s; and sums of discrete
  Gaussians would need a looser accountant: Kairouz et al. 2021, arXiv:2102.06387.)
* *What that leaves out*: a sum of roundings is not quite the rounding of a sum, see :func:`rounding_slack`. Float64
  logarithms, roots and cosines are taken as exact; they move a value by some 2⁻⁵⁰ of itself before it is rounded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np

from common import bounds
from common.errors import MechanismError

if TYPE_CHECKING:
    import numpy.typing as npt

    from common.crypto.randomness import Randomness
    from common.privacy.clipping import ClippedSum

Bits: TypeAlias = Literal[32, 64]

ROUNDING: Final = 2.0**-23
"""Share of C set aside for float64 rounding in the clipped sum and in its scaling, at least."""
TAIL: Final = 8.0
"""Standard deviations of noise that must fit into the ring: one coordinate is beyond it with probability 1.3e-15."""
INFLATION: Final = 0.01
"""Most that √d may add to s·C in a ring of 32 bits."""
WIDE_STEPS: Final = 1e4
"""In a ring of 64 bits, s·C is this many times √d: more would make small noise coarser than a step."""
LARGEST_STEP: Final = 2.0**62
"""Beyond it, a cast of float64 to int64 may give anything."""
SMALLEST_SIGMA: Final = 4.0
"""Below this many steps the series behind :func:`rounding_slack` does not hold."""


@dataclass(frozen=True, kw_only=True)
class NoisePlan:
    """How vectors become integers, and how much noise each institution adds; made by :func:`plan_noise`.

    Attributes:
        coordinates: d.
        clip: C.
        noise_multiplier: z of what n − t institutions add up to.
        institutions: n, whose shares are in the sum.
        colluders: t < n, whose shares may be known.
        cap: Most units in the whole sum.
        bits: Size of the ring.
        scale: s, steps per unit of the gradient.

    Raises:
        MechanismError: A quantity that noise rests on is not finite or out of range. With a clip of 1e-306 the scale
            would be infinite, the variance NaN, and NaN fails no comparison of the other kind: there was no noise.

    """

    coordinates: int
    clip: float
    noise_multiplier: float
    institutions: int
    colluders: int
    cap: int
    bits: Bits
    scale: float

    def __post_init__(self) -> None:
        counts = 1 <= self.coordinates < 2**31 and 1 <= self.cap < 2**52 and 0 <= self.colluders < self.institutions
        if not (counts and self.institutions <= bounds.MAX_INSTITUTIONS):
            raise MechanismError(
                "wanted 1 ≤ coordinates < 2³¹, 1 ≤ cap < 2⁵² and 0 ≤ colluders < institutions ≤ "
                f"{bounds.MAX_INSTITUTIONS}; got {self.coordinates}, {self.cap}, {self.colluders}, {self.institutions}",
            )
        # written so that NaN refuses
        if not bounds.SMALLEST_CLIP <= self.clip <= bounds.LARGEST_CLIP:
            raise MechanismError(f"wanted a clip of 1e-12 to 1e12, got {self.clip}")
        if not bounds.SMALLEST_MULTIPLIER <= self.noise_multiplier <= bounds.LARGEST_MULTIPLIER:
            raise MechanismError(f"wanted a noise multiplier of 0.1 to 10000, got {self.noise_multiplier}")
        if not (0 < self.scale < math.inf and 1 <= self.sensitivity < math.inf and 0 < self.share_variance < math.inf):
            raise MechanismError(
                f"no scale carries this noise: lower the cap ({self.cap}) or raise the noise multiplier"
            )

    @property
    def rounding(self) -> float:
        """Share of C set aside for float64 rounding: k terms of norm C are added to within k²/2 · 2⁻⁵³ · C, twice."""
        return max(ROUNDING, self.cap**2 * 2.0**-53)

    @property
    def sensitivity(self) -> float:
        """Δ₂ in steps."""
        return self.scale * self.clip * (1 + self.rounding) + math.sqrt(self.coordinates)

    @property
    def share_variance(self) -> float:
        """Variance of one institution's integers."""
        return ((self.noise_multiplier * self.sensitivity) ** 2 + 1 / 12) / (self.institutions - self.colluders)

    @property
    def total_multiplier(self) -> float:
        """Noise multiplier z of all n shares together."""
        return self.noise_multiplier * math.sqrt(self.institutions / (self.institutions - self.colluders))

    @property
    def total_deviation(self) -> float:
        """Standard deviation of the noise in the decoded sum of all n, in units of the gradient, per coordinate."""
        return math.sqrt(self.institutions * self.share_variance) / self.scale

    @property
    def inflation(self) -> float:
        """How much larger Δ₂ is than the real-valued sensitivity, as a share of it."""
        return self.sensitivity / (self.scale * self.clip) - 1


@dataclass(frozen=True, kw_only=True)
class QuantisedSum:
    """A clipped sum in lattice steps, [d] int64; still secret."""

    values: npt.NDArray[np.int64] = field(repr=False)
    plan: NoisePlan


@dataclass(frozen=True, kw_only=True)
class NoisedShare:
    """A quantised sum with one institution's noise, [d] int64; alone it is protected by a fraction of the noise only.

    Attributes:
        values: Read modulo 2^bits.
        plan: What it was made with.
        private: False if the noise was repeatable; then no (ε, δ) may be stated.

    """

    values: npt.NDArray[np.int64] = field(repr=False)
    plan: NoisePlan
    private: bool

    def ring(self) -> npt.NDArray[np.uint32] | npt.NDArray[np.uint64]:
        """The values modulo 2^bits."""
        return self.values.astype(np.uint32) if self.plan.bits == 32 else self.values.astype(np.uint64)


def plan_noise(
    *,
    coordinates: int,
    clip: float,
    noise_multiplier: float,
    institutions: int,
    cap: int,
    colluders: int = 0,
) -> NoisePlan:
    """Choose ring and scale: the largest s for which cap·C + 8σ cannot wrap.

    Arguments are those of :class:`NoisePlan`.

    Raises:
        MechanismError: Nonsense, no honest noise (t ≥ n), or noise of too few steps to be accounted for.

    Example:
        >>> plan = plan_noise(coordinates=3, clip=1.0, noise_multiplier=1.0, institutions=2, cap=10)
        >>> plan.bits, f"{plan.scale:.3g} steps per unit", f"deviation {plan.total_deviation:.3g}"
        (32, '1.19e+08 steps per unit', 'deviation 1')

    """

    def plan(bits: Bits, scale: float) -> NoisePlan:
        return NoisePlan(
            coordinates=coordinates,
            clip=clip,
            noise_multiplier=noise_multiplier,
            institutions=institutions,
            colluders=colluders,
            cap=cap,
            bits=bits,
            scale=scale,
        )

    chosen = plan(32, 1.0)  # checks what does not depend on the scale
    narrow = _largest_scale(chosen)
    if narrow > 0:
        chosen = plan(32, narrow)
    if not (narrow > 0 and chosen.inflation <= INFLATION):
        wide = WIDE_STEPS * math.sqrt(coordinates) / clip
        chosen = plan(64, min(wide, _largest_scale(plan(64, 1.0))))
    if not (chosen.inflation <= INFLATION and math.sqrt(chosen.share_variance) >= SMALLEST_SIGMA):
        raise MechanismError(f"no scale carries this noise: lower the cap ({cap}) or raise the noise multiplier")
    return chosen


def _largest_scale(plan: NoisePlan) -> float:
    """Solve s·cap·C + n/2 + 8·σ(s) = 2^(b−1) − 1 for s, with σ = √(n/(n−t))·z·Δ₂(s); 2⁵² is float64's own limit."""
    limit = 2.0 ** min(plan.bits - 1, 52) - 1
    spread = TAIL * plan.total_multiplier
    fixed = plan.institutions / 2 + spread * math.sqrt(plan.coordinates) + TAIL
    return (limit - fixed) / (plan.clip * (plan.cap + spread * (1 + plan.rounding)))


def quantise(total: ClippedSum, plan: NoisePlan) -> QuantisedSum:
    """Round the scaled sum to the nearest integers.

    Raises:
        MechanismError: The sum is not what the plan was made for, or holds more than the cap of units allows.

    Example:
        >>> from common.privacy.clipping import ClippedSum
        >>> plan = plan_noise(coordinates=3, clip=1.0, noise_multiplier=1.0, institutions=2, cap=10)
        >>> total = quantise(ClippedSum(vector=np.array([0.5, -0.25, 0.0]), sensitivity=1.0), plan)
        >>> dequantise(total.values.astype(np.uint32), plan).round(6).tolist()  # without any noise
        [0.5, -0.25, 0.0]

    """
    if (total.coordinates, total.sensitivity) != (plan.coordinates, plan.clip):
        raise MechanismError(f"wanted {plan.coordinates} coordinates clipped to {plan.clip}, got {total}")
    if not np.linalg.norm(total.vector) <= plan.cap * plan.clip * (1 + plan.rounding):
        raise MechanismError("the sum is longer than the cap on units allows, or not finite: it was not clipped")
    steps = np.rint(total.vector * plan.scale)
    if not np.abs(steps).max() < LARGEST_STEP:
        raise MechanismError("the scaled sum is beyond 2⁶² steps: it is not what this plan was made for")
    return QuantisedSum(values=steps.astype(np.int64), plan=plan)


def add_noise(total: QuantisedSum, randomness: Randomness) -> NoisedShare:
    """Add this institution's share of the noise; drawn even if nobody was sampled.

    Guarantee: with secret ``randomness``, the values of n − t institutions add up to the output of a Gaussian mechanism
    of noise multiplier z, but for :func:`rounding_slack` and modulo 2^bits.
    """
    plan = total.plan
    noise = rounded_gaussian(plan.coordinates, variance=plan.share_variance, randomness=randomness)
    noise += total.values
    return NoisedShare(values=noise, plan=plan, private=randomness.private)


def rounded_gaussian(n: int, *, variance: float, randomness: Randomness) -> npt.NDArray[np.int64]:
    """``n`` independent values of rint(N(0, variance − 1/12)), whose own variance is ``variance``.

    Rounding adds 1/12, to within e^(−2π²·variance).

    Raises:
        MechanismError: A variance that is not finite, below 1/12, or whose tail at 37 σ would leave 2⁶².

    """
    if not (variance > 1 / 12 and 37 * math.sqrt(variance) < LARGEST_STEP):
        raise MechanismError(f"wanted a variance above 1/12 with 37 deviations below 2⁶², got {variance}")
    values = standard_normal(n, randomness=randomness)
    values *= math.sqrt(variance - 1 / 12)
    return np.rint(values, out=values).astype(np.int64)


def standard_normal(n: int, *, randomness: Randomness) -> npt.NDArray[np.float64]:
    """``n`` independent standard normal values (Box and Muller 1958).

    The radius comes from a uniform with 53 significant bits however small it is, so the tail has neither an end (short
    of 37 σ) nor gaps; one of 64 bits in all would stop at 9.4 σ and reach only some of the integers before that. The
    angle has 53 bits.
    """
    pairs = -(-n // 2)
    radius = _fine_uniforms(pairs, randomness)
    np.log(radius, out=radius)
    radius *= -2.0
    np.sqrt(radius, out=radius)
    angle = randomness.uniforms(pairs)
    angle *= 2 * math.pi
    values = np.empty(2 * pairs)
    np.cos(angle, out=values[:pairs])
    np.sin(angle, out=values[pairs:])
    values[:pairs] *= radius
    values[pairs:] *= radius
    return values[:n]


def _fine_uniforms(n: int, randomness: Randomness) -> npt.NDArray[np.float64]:
    """``n`` uniform values in (0, 1], right to 2⁻⁵³ of themselves: where the leading bits are 0, more are drawn."""
    values = randomness.words(n).astype(np.float64)
    short = np.flatnonzero(values < 2.0**53)
    if short.size:
        values[short] += _fine_uniforms(short.size, randomness)
    values *= 2.0**-64
    return values


def dequantise(total: npt.NDArray[np.unsignedinteger], plan: NoisePlan) -> npt.NDArray[np.float64]:
    """The sum over all institutions in units of the gradient, [d], from its value modulo 2^bits.

    Raises:
        MechanismError: Another length or another ring than the plan's.

    """
    kind = np.uint32 if plan.bits == 32 else np.uint64
    if total.shape != (plan.coordinates,) or total.dtype != kind:
        raise MechanismError(f"wanted {plan.coordinates} values of {plan.bits} bits, got {total.size} of {total.dtype}")
    centred = total.view(np.int32 if plan.bits == 32 else np.int64)
    return centred.astype(np.float64) / plan.scale


def rounding_slack(plan: NoisePlan, *, rounds: int) -> float:
    """Total variation, over all rounds, between m = n − t rounded shares added up and one rounding of their sum.

    The two agree in mean and variance; the fourth cumulants differ by (m − 1)/120 steps⁴, which is a relative excess
    kurtosis of κ = (m − 1)/(120·m²·σ⁴) for shares of deviation σ, a divergence of κ²/48 per coordinate, and by Pinsker
    ½·√(d·T/24)·κ. Odd cumulants vanish and the sixth is smaller by another σ².
    """
    shares = plan.institutions - plan.colluders
    kurtosis = (shares - 1) / (120 * shares**2 * plan.share_variance**2)
    return 0.5 * math.sqrt(plan.coordinates * rounds / 24) * kurtosis
