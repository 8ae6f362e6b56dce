"""What the coordinator and the network see of a private run, kept for somebody who would rather look than believe.

The tap sits between Flower and the stewards: every byte that a real network would carry passes it. Only because this is
a simulation can the report also hold what nobody sees, one institution's true update, to compare the two.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from client.app import make_client_app
from client.training.private_update import PrivateUpdate, TrainingSide
from client.training.trainer import build_trainer
from common.errors import ConfigError
from common.secagg.messages import MaskedContribution, decode
from common.wire.messages import MaskedAnswer, decode_request
from common.wire.replies import decode_reply
from server.run.directory import RunDirectory
from simulations.engines.inprocess import run_inprocess
from simulations.experiments.run import Federation, open_scenario_base
from simulations.scenario.prepare import prepare_store, sites_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from flwr.app import Context
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from common.privacy.clipping import ClippedSum
    from common.privacy.run_plan import PrivatePlan
    from common.wire.messages import StewardPort
    from simulations.scenario.scenario import Scenario


_LIMIT: Final = 1 << 30
_SHORTEST: Final = 8
"""Captions shorter than this may stand in random bytes by chance."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """One institution's masked upload beside its true update and beside uniform words.

    ``uniformity`` is the p-value of a chi-square test of the words' top eight bits; ``correlation`` is Pearson's with
    the true update, and ``chance`` the size that nineteen in twenty independent vectors of this length stay below.
    """

    coordinates: int
    uniformity: float
    correlation: float
    chance: float
    uniform_uniformity: float
    unmasked_uniformity: float
    """The same test on the true update's integers: what the masks hide."""


@dataclass
class Tap:
    """Everything that passed, in order; and the true updates, which did not."""

    directory: Path
    updates: list[NDArray[np.float64]] = field(default_factory=list)
    """Institution 0's clipped sums before rounding, noise and masks, [d] each."""
    uploads: list[bytes] = field(default_factory=list)
    """Institution 0's masked vectors."""
    sizes: Counter[tuple[str, str]] = field(default_factory=Counter)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    passed: list[bytes] = field(default_factory=list)

    def keep(self, index: int, kind: str, data: bytes, *, direction: str) -> None:
        """Write a message down as it is."""
        number = len(self.passed)
        self.passed.append(data)
        self.counts[direction, kind] += 1
        self.sizes[direction, kind] += len(data)
        folder = self.directory / "messages"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:05d}-institution-{index + 1:04d}-{direction}-{kind}.bin").write_bytes(data)

    def holds(self, needle: bytes) -> bool:
        """Whether these bytes are in any message."""
        return any(needle in data for data in self.passed)


@dataclass(frozen=True)
class _Wire:
    """The steward, with the tap on its line."""

    tap: Tap
    index: int
    steward: StewardPort

    def answer(self, request: bytes) -> bytes:
        self.tap.keep(self.index, type(decode_request(request)).__name__, request, direction="down")
        reply = self.steward.answer(request)
        decoded = decode_reply(reply)
        self.tap.keep(self.index, type(decoded).__name__, reply, direction="up")
        if self.index == 0 and isinstance(decoded, MaskedAnswer):
            self.tap.uploads.append(decode(decoded.message, MaskedContribution, limit=_LIMIT).vector)
        return reply


@dataclass(frozen=True, kw_only=True)
class _WatchedUpdate(PrivateUpdate):
    kept: list[NDArray[np.float64]] = field(repr=False)

    def clipped(self, rows: NDArray[np.int64], rng: np.random.Generator) -> ClippedSum:
        total = super().clipped(rows, rng)
        self.kept.append(total.vector.copy())
        return total


@dataclass(frozen=True, kw_only=True)
class _WatchedSide(TrainingSide):
    kept: list[NDArray[np.float64]] = field(repr=False)

    def private_update(self, plan: PrivatePlan) -> PrivateUpdate:
        return _WatchedUpdate(side=self, plan=plan, kept=self.kept)


def tap_scenario(scenario: Scenario, directory: Path, cache: Path) -> str:
    """Run the scenario with a tap on every line; the report, which is in ``report.txt``, too.

    Raises:
        ConfigError: A scenario without secure aggregation.
        DarkroomError: Anything wrong with base or pictures.

    """
    if not scenario.is_secure:
        raise ConfigError(
            f"{scenario.name}: wanted a scenario with privacy and secure aggregation, to see what it hides"
        )
    base, config = open_scenario_base(scenario)
    store = prepare_store(scenario, base, cache, lambda _: None)
    trainer = build_trainer(base, config)
    tap = Tap(directory)
    first = store.institutions[0].name
    federation = Federation(config, trainer, store, directory / "run", watch=lambda side: _watched(side, tap, first))

    def connect(context: Context) -> StewardPort:
        return _Wire(tap, int(context.node_config["partition-id"]), federation.connect(context))

    observers = (RunDirectory(directory / "run"),)
    run_inprocess(
        lambda transport: federation.coordinator(transport, observers).run(resume=False),
        make_client_app(connect),
        len(store.institutions),
    )
    dimension, upload = trainer.spec.dimension, tap.uploads[-1]
    words = np.frombuffer(upload, dtype="<u4" if len(upload) < 6 * dimension else "<u8")[:dimension]
    comparison = compare(words, tap.updates[-1], dimension)
    np.save(directory / "masked_upload.npy", words)
    draw_comparison(words, tap.updates[-1], comparison, directory / "comparison.png")
    captions = {p.caption for site in sites_of(scenario, base, cache) for p in site.train.pictures}
    captions -= set(config.evaluation.prompts)  # public, in the manifest: whoever wrote the scenario chose them
    text = report(tap, comparison, captions)
    (directory / "report.txt").write_text(text, encoding="utf-8")
    return text


def _watched(side: TrainingSide, tap: Tap, name: str) -> TrainingSide:
    if side.name != name:
        return side
    return _WatchedSide(name=side.name, trainer=side.trainer, shard=side.shard, units=side.units, kept=tap.updates)


def compare(words: NDArray[np.unsignedinteger], update: NDArray[np.float64], dimension: int) -> Comparison:
    """Test a masked vector, [d], against its own input and against uniform words of a fixed stream."""
    uniform = np.random.default_rng(1).integers(0, 2**32, dimension, dtype=np.uint32)
    scaled = np.rint(update / (np.abs(update).max() or 1.0) * 2**16).astype(np.int64).astype(np.uint32)
    return Comparison(
        coordinates=dimension,
        uniformity=_uniformity(words),
        correlation=float(np.corrcoef(words.astype(np.float64), update)[0, 1]) if update.any() else 0.0,
        chance=float(stats.norm.ppf(0.975) / np.sqrt(dimension)),
        uniform_uniformity=_uniformity(uniform),
        unmasked_uniformity=_uniformity(scaled),
    )


def _uniformity(words: NDArray[np.unsignedinteger]) -> float:
    top = (words >> (8 * words.dtype.itemsize - 8)).astype(np.int64)
    return float(stats.chisquare(np.bincount(top, minlength=256)).pvalue)


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


def report(tap: Tap, comparison: Comparison, captions: Iterable[str]) -> str:
    """What passed and what did not, in plain words."""
    lines = ["What the network and the coordinator saw:", ""]
    for (direction, kind), count in sorted(tap.counts.items()):
        arrow = "coordinator → institution" if direction == "down" else "institution → coordinator"
        lines.append(f"  {arrow}  {kind:20} {count:5} messages, {tap.sizes[direction, kind]:>12,} bytes")
    long = [text for text in captions if len(text) >= _SHORTEST]
    found = sum(tap.holds(text.encode()) for text in long)
    plain = sum(tap.holds(_telling_part(update)) for update in tap.updates if update.any())
    digest = hashlib.sha256(b"".join(tap.passed)).hexdigest()
    sizes = f"{sum(map(len, tap.passed)):,}"
    return "\n".join(
        [
            *lines,
            "",
            f"Searched for in all {sizes} bytes (sha256 {digest[:16]}…):",
            f"  {len(long)} captions of the training pictures, public prompts apart: {found} found",
            f"  {len(tap.updates)} true updates of the first institution: {plain} found",
            "",
            *_told(comparison),
            "",
            "The true update is here because this is a simulation; nobody but the institution has it otherwise.",
            "",
        ]
    )


def _telling_part(update: NDArray[np.float64]) -> bytes:
    """The eight values around the largest: other places may be zeros, which are everywhere."""
    start = max(0, int(np.abs(update).argmax()) - 4)
    return update[start : start + 8].astype("<f4").tobytes()


def _told(c: Comparison) -> Iterator[str]:
    yield f"The first institution's last masked upload, {c.coordinates} words:"
    yield (
        f"  chi-square test of uniformity: p = {c.uniformity:.3f} (uniform words: p = {c.uniform_uniformity:.3f}; "
        f"its true update: p = {c.unmasked_uniformity:.1g})"
    )
    yield (
        f"  correlation with its true update: {c.correlation:+.4f} (nineteen of twenty independent vectors stay within "
        f"±{c.chance:.4f})"
    )
