"""The range of every number in a manifest, in one table.

What noise, memory and time rest on must be finite and in range *before* anything is worked out from it: a clip of
1e-306 makes the scale of the integers infinite and the noise vanish, a sampling rate of 1e-300 or a noise multiplier of
1e-3 keeps an accountant busy for minutes. Each type has both ends, so neither infinity nor NaN passes: msgspec refuses
NaN wherever a bound is set.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

from msgspec import Meta

MAX_ROUNDS: Final = 100_000
"""The accountant takes some 20 s for so many; a thousand times as many would take all memory of who checks a run."""
MAX_INSTITUTIONS: Final = 1024
MAX_DRAWS: Final = 16
"""Draws of one unit: at most half of a micro-batch, so that a step in an answer's time is not one unit."""
MAX_SAMPLED: Final = 1e12
"""Units that all rounds of a run together may be expected to sample."""
SMALLEST_CLIP: Final = 1e-12
LARGEST_CLIP: Final = 1e12
SMALLEST_MULTIPLIER: Final = 0.1
"""Below it, one round costs an ε of 50 and more, and to work that out takes minutes and gigabytes."""
LARGEST_MULTIPLIER: Final = 1e4

# privacy: what noise and price are worked out from
Epsilon: TypeAlias = Annotated[float, Meta(ge=1e-3, le=1e3)]
EpsilonLimit: TypeAlias = Annotated[float, Meta(ge=1e-6, le=1e6)]
"""A site's own limit, of a run or of a lifetime."""
Delta: TypeAlias = Annotated[float, Meta(ge=1e-15, le=0.5)]
"""Smaller ones are beyond the accountant's arithmetic."""
Clip: TypeAlias = Annotated[float, Meta(ge=SMALLEST_CLIP, le=LARGEST_CLIP)]
NoiseMultiplier: TypeAlias = Annotated[float, Meta(ge=SMALLEST_MULTIPLIER, le=LARGEST_MULTIPLIER)]
SamplingRate: TypeAlias = Annotated[float, Meta(ge=1e-6, le=1)]
Population: TypeAlias = Annotated[int, Meta(ge=1, le=10**9)]
MaximumUnits: TypeAlias = Annotated[int, Meta(ge=1, le=10**9 * MAX_INSTITUTIONS)]
DrawsOfUnit: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_DRAWS)]
Colluders: TypeAlias = Annotated[int, Meta(ge=0, lt=MAX_INSTITUTIONS)]
LostProbability: TypeAlias = Annotated[float, Meta(ge=0, le=0.5)]

# rounds and institutions
Rounds: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_ROUNDS)]
Repeats: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_ROUNDS)]
Institutions: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_INSTITUTIONS)]
Cohort: TypeAlias = Annotated[int, Meta(ge=2, le=MAX_INSTITUTIONS)]
Attempts: TypeAlias = Annotated[int, Meta(ge=1, le=10_000)]
Seconds: TypeAlias = Annotated[float, Meta(ge=1e-3, le=30 * 86_400)]

# adapter and training
Rank: TypeAlias = Annotated[int, Meta(ge=1, le=256)]
Factor: TypeAlias = Annotated[float, Meta(ge=1e-6, le=1e6)]
"""Alpha of LoRA, gamma of min-SNR."""
Dimension: TypeAlias = Annotated[int, Meta(ge=1, lt=2**31)]
Seed: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]
LearningRate: TypeAlias = Annotated[float, Meta(ge=1e-12, le=1e6)]
BatchSize: TypeAlias = Annotated[int, Meta(ge=1, le=65_536)]
HoldoutDraws: TypeAlias = Annotated[int, Meta(ge=1, le=1024)]
Steps: TypeAlias = Annotated[int, Meta(ge=1, le=10_000)]
Pixels: TypeAlias = Annotated[int, Meta(ge=16, le=2048)]
Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
Decay: TypeAlias = Annotated[float, Meta(ge=0, lt=1)]
NoiseFloor: TypeAlias = Annotated[float, Meta(ge=1e-6, le=1)]
AdamEpsilon: TypeAlias = Annotated[float, Meta(ge=1e-30, le=1)]
Guidance: TypeAlias = Annotated[float, Meta(ge=0, le=1e3)]
