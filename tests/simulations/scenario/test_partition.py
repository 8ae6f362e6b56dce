from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigError
from simulations.scenario.imagefolder import Picture
from simulations.scenario.partition import partition, split_holdout


def pictures_of(subjects: list[int], labels: list[str]) -> list[Picture]:
    return [
        Picture(file_name=f"{label}/{index}.png", caption="", subject_id=f"s{subject}", label=label)
        for index, (subject, label) in enumerate(zip(subjects, labels, strict=True))
    ]


def singles(count: int, labels: str = "abcd") -> list[Picture]:
    """One picture a subject, labels in equal numbers."""
    return pictures_of(list(range(count)), [labels[i % len(labels)] for i in range(count)])


@st.composite
def folders(draw: st.DrawFn) -> list[Picture]:
    rows = draw(st.lists(st.tuples(st.integers(0, 12), st.sampled_from("abc")), min_size=1, max_size=60))
    return pictures_of([subject for subject, _ in rows], [label for _, label in rows])


ALPHAS = st.sampled_from([None, 1e-6, 0.1, 1.0, 1e6])


@settings(derandomize=True, max_examples=200, deadline=None)
@given(pictures=folders(), alpha=ALPHAS, count=st.integers(1, 8), seed=st.integers(0, 2**63 - 1))
def test_every_picture_once_no_subject_split_nobody_empty(
    pictures: list[Picture], alpha: float | None, count: int, seed: int
) -> None:
    try:
        shares = partition(pictures, count, seed, alpha=alpha)
    except ConfigError:
        assert count > len({p.subject_id for p in pictures})
        return
    assert len(shares) == count
    assert sorted(index for share in shares for index in share) == list(range(len(pictures)))
    held = [{pictures[index].subject_id for index in share} for share in shares]
    assert sum(len(subjects) for subjects in held) == len(set().union(*held))
    assert all(shares)
    assert all(list(share) == sorted(share) for share in shares)
    assert partition(pictures, count, seed, alpha=alpha) == shares


@settings(derandomize=True, max_examples=150, deadline=None)
@given(pictures=folders(), share=st.floats(0.01, 0.99), seed=st.integers(0, 2**32))
def test_holdout_never_shares_a_subject_with_training(pictures: list[Picture], share: float, seed: int) -> None:
    subjects = {p.subject_id for p in pictures}
    if len(subjects) < 2:
        with pytest.raises(ConfigError, match="two subjects"):
            split_holdout(pictures, share, seed)
        return
    train, holdout = split_holdout(pictures, share, seed)
    assert sorted(train + holdout) == list(range(len(pictures)))
    held = {pictures[i].subject_id for i in holdout}
    assert not held & {pictures[i].subject_id for i in train}
    assert 1 <= len(held) < len(subjects)
    assert abs(len(held) - share * len(subjects)) <= 1


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_holdout_share_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="hold-out share"):
        split_holdout(singles(10), share, 0)


def test_other_seeds_give_other_parts() -> None:
    for alpha in (None, 1.0):
        assert partition(singles(40), 4, 1, alpha=alpha) != partition(singles(40), 4, 2, alpha=alpha)
    assert split_holdout(singles(40), 0.2, 1) != split_holdout(singles(40), 0.2, 2)


@pytest.mark.parametrize("alpha", [None, 0.1, 100.0])
def test_sizes_are_equal_to_one(alpha: float | None) -> None:
    sizes = {len(share) for share in partition(singles(103), 10, 3, alpha=alpha)}
    assert sizes == {10, 11}


def label_shares(alpha: float, *, count: int, seed: int) -> np.ndarray:
    pictures = singles(4 * 25 * count)
    shares = partition(pictures, count, seed, alpha=alpha)
    counts = [[sum(pictures[i].label == label for i in share) for label in "abcd"] for share in shares]
    return np.array(counts) / 100


def test_dirichlet_mixtures_vary_as_the_distribution_says() -> None:
    """Var of a label's share is that of Dir(αp), p(1-p)/(α+1), and of drawing 100 subjects from it."""
    for alpha in (1.0, 10.0):
        spread = np.concatenate([label_shares(alpha, count=60, seed=seed) for seed in range(6)]).var(axis=0).mean()
        p, quota = 0.25, 100
        expected = p * (1 - p) / (alpha + 1) * (1 - 1 / quota) + p * (1 - p) / quota
        assert 0.87 * expected < spread < 1.15 * expected


def test_alpha_moves_from_one_label_each_to_the_whole_mixture() -> None:
    assert np.median(label_shares(1e-4, count=40, seed=7).max(axis=1)) == 1.0
    assert label_shares(1e6, count=40, seed=7).max() < 0.45


def test_more_institutions_than_subjects_is_refused() -> None:
    pictures = pictures_of([0, 0, 1], ["a", "b", "a"])
    for count in (0, 3):
        with pytest.raises(ConfigError, match="wanted 1 to 2, the number of subjects"):
            partition(pictures, count, 0)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_alpha_that_is_not_positive_is_refused(alpha: float) -> None:
    with pytest.raises(ConfigError, match="alpha: wanted a positive number"):
        partition(singles(8), 2, 0, alpha=alpha)


@pytest.mark.parametrize("alpha", [None, 0.3])
def test_a_thousand_institutions_are_dealt_fast(alpha: float | None) -> None:
    pictures = singles(50_000, "abcdefghij")
    begin = time.process_time()
    assert len(partition(pictures, 1000, 0, alpha=alpha)) == 1000
    assert time.process_time() - begin < 5
