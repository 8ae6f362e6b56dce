"""Any captioned image folder, dealt to as many virtual institutions as a simulation wants.

What is dealt is subjects, never single pictures: a person's pictures in two institutions would be one person in two
vaults, each of which accounts for its own, and a person in training and hold-out would make the hold-out worthless.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from common.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from simulations.scenario.imagefolder import Picture


_Subjects = list[list[int]]
"""Indices of the pictures of each subject."""


def partition(
    pictures: Sequence[Picture], count: int, seed: int, *, alpha: float | None = None
) -> tuple[tuple[int, ...], ...]:
    """Indices into ``pictures`` for each of ``count`` institutions, in ascending order; as many subjects to each (± 1).

    Without ``alpha`` subjects are dealt at random. With it they are drawn by a mixture of labels of the institution's
    own, from Dir(α·p), p the share of each label among all subjects (Hsu et al. 2019, arXiv:1909.06335). A large α
    gives every institution the whole's mixture, α near 0 one label each. Nothing is drawn twice, so a label counts in
    later mixtures by the part of it that is left, and the last institution takes the rest.

    Guarantee: every picture is in exactly one institution, all pictures of a subject are in the same one, and none is
    empty. A subject with several labels counts under the one that most of its pictures have.

    Raises:
        ConfigError: Fewer subjects than institutions, or an α that is not positive.

    """
    subjects = _by_subject(pictures)
    if not 1 <= count <= len(subjects):
        raise ConfigError(f"institutions: wanted 1 to {len(subjects)}, the number of subjects; got {count}")
    rng = np.random.default_rng([seed, count])
    if alpha is None:
        owners = np.empty(len(subjects), np.int64)
        owners[rng.permutation(len(subjects))] = np.arange(len(subjects)) % count
    else:
        owners = _dirichlet(_majority(subjects, pictures), alpha, count, rng)
    return _collect(subjects, owners, count)


def split_holdout(pictures: Sequence[Picture], share: float, seed: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Indices to train on and to hold out, in ascending order; the share is of subjects, at least one on each side.

    Guarantee: every picture is on exactly one side, and all pictures of a subject are on the same one.

    Raises:
        ConfigError: A share outside (0, 1), or fewer than two subjects.

    """
    subjects = _by_subject(pictures)
    if not 0 < share < 1:
        raise ConfigError(f"hold-out share: wanted more than 0 and less than 1, got {share}")
    if len(subjects) < 2:
        raise ConfigError(f"hold-out: wanted two subjects or more to split, got {len(subjects)}")
    held = min(max(round(share * len(subjects)), 1), len(subjects) - 1)
    owners = np.zeros(len(subjects), np.int64)
    owners[np.random.default_rng([seed, 0]).permutation(len(subjects))[:held]] = 1
    train, holdout = _collect(subjects, owners, 2)
    return train, holdout


def _by_subject(pictures: Sequence[Picture]) -> _Subjects:
    found: dict[str, list[int]] = {}
    for index, picture in enumerate(pictures):
        found.setdefault(picture.subject_id, []).append(index)
    return list(found.values())


def _collect(subjects: _Subjects, owners: NDArray[np.int64], count: int) -> tuple[tuple[int, ...], ...]:
    shares: list[list[int]] = [[] for _ in range(count)]
    for indices, owner in zip(subjects, owners, strict=True):
        shares[owner] += indices
    return tuple(tuple(sorted(indices)) for indices in shares)


def _majority(subjects: _Subjects, pictures: Sequence[Picture]) -> list[str]:
    """Each subject's most frequent label; of equally frequent ones the first."""
    return [Counter(pictures[index].label for index in indices).most_common(1)[0][0] for indices in subjects]


def _dirichlet(labels: list[str], alpha: float, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    if not (math.isfinite(alpha) and alpha > 0):
        raise ConfigError(f"alpha: wanted a positive number, got {alpha}")
    _, kinds, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    waiting = [list(rng.permutation(np.flatnonzero(kinds == kind))) for kind in range(len(sizes))]
    quotas = np.bincount(np.arange(len(labels)) % count, minlength=count)
    owners = np.empty(len(labels), np.int64)
    left = sizes.copy()
    for owner in rng.permutation(count):
        mixture = rng.dirichlet(alpha * sizes / sizes.sum())
        for kind, taken in enumerate(_draw(mixture / sizes, int(quotas[owner]), left, rng)):
            for _ in range(taken):
                owners[waiting[kind].pop()] = owner
            left[kind] -= taken
    return owners


def _draw(
    weight: NDArray[np.float64], wanted: int, left: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """How many of each label, when each subject that is left has its label's weight."""
    taken = np.zeros_like(left)
    while wanted > 0:
        rest = left - taken
        odds = weight * rest
        if odds.sum() <= 0:  # every label of this mixture has run out
            odds = rest.astype(np.float64)
        drawn = np.minimum(rng.multinomial(wanted, odds / odds.sum()), rest)
        taken += drawn
        wanted -= int(drawn.sum())
    return taken
