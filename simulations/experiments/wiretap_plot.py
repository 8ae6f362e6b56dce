"""One institution's masked upload, its true update and uniform words, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from simulations.experiments.wiretap import Comparison


def draw_comparison(
    words: NDArray[np.unsignedinteger], update: NDArray[np.float64], comparison: Comparison, path: Path
) -> None:
    """Histograms of the three, and the upload over the update: a cloud, if masks do what they should."""
    span = 2.0 ** (8 * words.dtype.itemsize)
    uniform = np.random.default_rng(1).random(len(words))
    figure = Figure(figsize=(13, 3.4), layout="constrained")
    true, masked, even, cloud = figure.subplots(1, 4)
    _histogram(true, update, "its true update (nobody sees it)")
    _histogram(masked, words / span, f"what left, of 2^{8 * words.dtype.itemsize}: p = {comparison.uniformity:.2f}")
    _histogram(even, uniform, f"uniform words: p = {comparison.uniform_uniformity:.2f}")
    cloud.plot(update[:5000], (words / span)[:5000], ",", alpha=0.6)
    cloud.set_title(f"what left, over the true update: r = {comparison.correlation:+.4f}", fontsize=9)
    figure.savefig(path, dpi=110)


def _histogram(panel: Axes, values: NDArray[np.float64], title: str) -> None:
    panel.hist(values, bins=64)
    panel.set_title(title, fontsize=9)
