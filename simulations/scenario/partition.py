"""Any captioned image folder, dealt to as many virtual institutions as a simulation wants.

What is dealt is subjects, never single pictures: a person's pictures in two institutions would be one person in two
vaults, each of which accounts for its own, and a person in training and hold-out would make the hold-out worthless.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from common.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from simulations.scenario.imagefolder import Picture


class Iid(msgspec.Struct, frozen=True, tag_field="kind", tag="iid", forbid_unknown_fields=True):
    """Subjects dealt at random, as many to each institution (± 1)."""


class Dirichlet(msgspec.Struct, frozen=True, tag_field="kind", tag="dirichlet", forbid_unknown_fields=True):
    """As many subjects to each (± 1), drawn by a mixture of labels of the institution's own.

    The mixture is drawn from Dir(α·p), p the share of each label among all subjects (Hsu et al. 2019,
    arXiv:1909.06335). A large α gives every institution the whole's mixture, α near 0 one label each. Nothing is drawn
    twice, so a label counts in later mixtures by the part of it that is left, and the last institution takes the rest;
    at α = ∞ this is dealing at random.
    """

    alpha: float


class ByLabel(msgspec.Struct, frozen=True, tag_field="kind", tag="label", forbid_unknown_fields=True):
    """All subjects of a label to one institution; several labels to one if need be, evenly by subjects."""


class ByFolder(msgspec.Struct, frozen=True, tag_field="kind", tag="folder", forbid_unknown_fields=True):
    """As :class:`ByLabel`, by the first part of the file name's path."""


Scheme = Iid | Dirichlet | ByLabel | ByFolder

_Subjects = list[list[int]]
"""Indices of the pictures of each subject."""


def partition(pictures: Sequence[Picture], scheme: Scheme, count: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Indices into ``pictures`` for each of ``count`` institutions, in ascending order.

    Guarantee: every picture is in exactly one institution, all pictures of a subject are in the same one, and none is
    empty. A subject with several labels (or folders) counts under the one that most of its pictures have.

    Raises:
        ConfigError: Fewer subjects, labels or folders than institutions, or an α that is not positive.

    """
    subjects = _by_subject(pictures)
    if not 1 <= count <= len(subjects):
        raise ConfigError(f"institutions: wanted 1 to {len(subjects)}, the number of subjects; got {count}")
    rng = np.random.default_rng([seed, count])
    match scheme:
        case Iid():
            owners = _deal(len(subjects), count, rng)
        case Dirichlet(alpha=alpha):
            owners = _dirichlet(_majority(subjects, pictures, _label), alpha, count, rng)
        case ByLabel():
            owners = _whole_groups(_majority(subjects, pictures, _label), count, "labels")
        case ByFolder():
            owners = _whole_groups(_majority(subjects, pictures, _folder), count, "folders")
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


def _label(picture: Picture) -> str:
    return picture.label


def _folder(picture: Picture) -> str:
    top, slash, _ = picture.file_name.partition("/")
    return top if slash else ""


def _majority(subjects: _Subjects, pictures: Sequence[Picture], key: Callable[[Picture], str]) -> list[str]:
    """Each subject's most frequent key; of equally frequent ones the first."""
    return [Counter(key(pictures[index]) for index in indices).most_common(1)[0][0] for indices in subjects]


def _deal(subjects: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    owners = np.empty(subjects, np.int64)
    owners[rng.permutation(subjects)] = np.arange(subjects) % count
    return owners


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


def _whole_groups(keys: list[str], count: int, what: str) -> NDArray[np.int64]:
    """Largest group first, each to the institution that has least so far."""
    sizes = Counter(keys)
    if len(sizes) < count:
        raise ConfigError(f"institutions: wanted at most {len(sizes)}, the number of {what}; got {count}")
    loads = [0] * count
    owner_of: dict[str, int] = {}
    for key, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        owner_of[key] = loads.index(min(loads))
        loads[owner_of[key]] += size
    return np.array([owner_of[key] for key in keys], np.int64)
