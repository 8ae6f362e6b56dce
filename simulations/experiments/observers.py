"""What a person watches during a run: a progress bar, sample sheets, curves, and what a private run promises."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import TYPE_CHECKING, Final, Never

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from common.adapter.generate import SamplePlan, generate
from common.adapter.vector import write_vector
from common.durable_files import write_atomically
from server.rounds.reports import InstitutionLoss, Observers, RunObserver
from server.run.directory import read_metrics
from simulations.scenario.plain_steward import holdout_loss

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from client.training.trainer import Trainer
    from common.config import RunConfig
    from server.rounds.optimizer import Vector
    from server.rounds.reports import EvaluationReport, RoundReport, RunFinish, RunStart, VoidReport
    from simulations.scenario.store import InstitutionStore


SAMPLES: Final = "samples"
CURVES: Final = "curves.png"
_EDGE: Final = 144
_MARGIN: Final = 8
_LABEL: Final = 96
_HEADER: Final = 52


class Progress(RunObserver):
    """A progress bar in a terminal; elsewhere the coordinator's log has a line a round."""

    def __init__(self) -> None:
        self._bar: tqdm[Never] | None = None

    def on_start(self, start: RunStart) -> None:
        """Show the bar, from where the run goes on."""
        self._bar = tqdm(total=start.config.rounds, initial=start.round, desc=start.config.name, disable=None)

    def on_round(self, report: RoundReport) -> None:
        """Advance."""
        if self._bar is not None:
            if report.train_loss is not None:  # with privacy nobody tells it
                self._bar.set_postfix(train=f"{report.train_loss:.4f}", refresh=False)
            self._bar.update()

    def on_void(self, report: VoidReport) -> None:
        """Leave the bar where it is: the error that follows says what it means."""
        del report
        if self._bar is not None:
            self._bar.close()

    def on_evaluation(self, report: EvaluationReport) -> None:
        """Say the hold-out losses above the bar."""
        losses = "  ".join(f"{row.institution} {row.loss:.4f}" for row in report.losses[:8])
        if self._bar is not None and not self._bar.disable and report.loss is not None:
            self._bar.write(f"round {report.round}: hold-out loss {report.loss:.4f}  ({losses})")

    def on_finish(self, finish: RunFinish) -> None:
        """Close the bar."""
        del finish
        if self._bar is not None:
            self._bar.close()


@dataclass
class Gallery(RunObserver):
    """Draws the scenario's prompts at each evaluation, above them what the base alone draws from the same noise."""

    trainer: Trainer
    config: RunConfig
    directory: Path
    _base_row: tuple[Image.Image, ...] = field(default=(), init=False)

    def on_evaluation(self, report: EvaluationReport) -> None:
        """Write ``samples/round_NNNN.png``."""
        prompts = self.config.evaluation.prompts
        if not prompts:
            return
        if not self._base_row:
            self._base_row = draw_samples(self.config, self.trainer, report.adapter * 0)
        rows = [SheetRow("base", self._base_row)]
        if report.round > 0:
            rows.append(SheetRow(f"round {report.round}", draw_samples(self.config, self.trainer, report.adapter)))
        folder = self.directory / SAMPLES
        sheet = BytesIO()
        contact_sheet(prompts, rows).save(sheet, "PNG")
        write_atomically(folder / f"round_{report.round:04d}.png", sheet.getvalue())


def draw_samples(config: RunConfig, trainer: Trainer, adapter: Vector) -> tuple[Image.Image, ...]:
    """The run's sample prompts, drawn with this adapter."""
    write_vector(trainer.unet, trainer.spec, adapter)
    return generate(trainer.base.pipeline(trainer.unet), sample_plan(config, trainer))


def sample_plan(config: RunConfig, trainer: Trainer) -> SamplePlan:
    """How a run's sample sheets are drawn."""
    evaluation = config.evaluation
    return SamplePlan(
        prompts=evaluation.prompts,
        seed=evaluation.sample_seed,
        steps=evaluation.sample_steps,
        guidance_scale=evaluation.guidance_scale,
        resolution=config.training.resolution or trainer.base.resolution,
    )


@dataclass(frozen=True)
class Curves(RunObserver):
    """Draws ``curves.png`` from ``metrics.jsonl`` at each evaluation and at the end."""

    directory: Path

    def on_void(self, report: VoidReport) -> None:
        """Draw what there is: the run stops."""
        del report
        draw_curves(self.directory)

    def on_evaluation(self, report: EvaluationReport) -> None:
        """Draw what there is so far."""
        del report
        draw_curves(self.directory)

    def on_finish(self, finish: RunFinish) -> None:
        """Draw the whole run."""
        del finish
        draw_curves(self.directory)


def draw_curves(directory: Path) -> None:
    """A panel each for what there is: training loss by round, hold-out loss by institution; no picture without either.

    With privacy nobody sends a training loss, and the hold-out loss is there only where the simulation measured it.
    """
    rows = read_metrics(directory)
    trained = [(row["round"], row["train_loss"]) for row in rows if row.get("train_loss") is not None]
    by_name: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for row in rows:
        for one in row.get("institutions", []):
            by_name[one["institution"]].append((row["round"], one["loss"]))
    lines: dict[str, dict[str, list[tuple[int, float]]]] = {"training loss": {"": trained} if trained else {}}
    lines["hold-out loss"] = dict(sorted(by_name.items())[:10])
    panels = [title for title, found in lines.items() if found]
    if not panels:
        return
    figure = Figure(figsize=(5.5 * len(panels), 4), layout="constrained")
    for title, axes in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
        axes.set(title=title, xlabel="round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))  # there is no round 0.02
        for name, points in lines[title].items():
            # a line needs two points; fewer are drawn as points
            dotted = "o" if name or len(points) < 2 else None
            axes.plot(*zip(*points, strict=True), linewidth=1, marker=dotted, markersize=3, label=name)
        if any(lines[title]):  # beside the panel, so that it hides no point
            axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    write_atomically(directory / CURVES, picture.getvalue())


class PrivacyNotice(RunObserver):
    """Says at the start what a private run promises, and at the end what holds for the attempts that were sent."""

    def on_start(self, start: RunStart) -> None:
        """Say what is promised."""
        if start.privacy is not None:
            tqdm.write(
                f"What this run promises, all {start.privacy.attempts} attempts used:\n{start.privacy.as_text()}\n"
            )

    def on_finish(self, finish: RunFinish) -> None:
        """Say what holds."""
        if finish.privacy is not None:
            tqdm.write(f"\nWhat holds after {finish.privacy.attempts} attempts:\n{finish.privacy.as_text()}")


@dataclass(frozen=True)
class MeasuredHoldout(Observers):
    """Tells its members everything, and adds to each evaluation the hold-out losses that nobody was asked for.

    A real coordinator of a private run learns no loss. Here all pictures are in one process, so it is measured past the
    protocol, for the curves: it is no release, no part of the training, and no institution is asked.
    """

    trainer: Trainer
    store: InstitutionStore
    config: RunConfig

    def on_evaluation(self, report: EvaluationReport) -> None:
        """Measure, and pass on; what institutions answered themselves stays."""
        super().on_evaluation(report if report.asked else replace(report, losses=self._measure(report)))

    def _measure(self, report: EvaluationReport) -> tuple[InstitutionLoss, ...]:
        self.trainer.set_adapter(report.adapter)
        rows = []
        for node, institution in enumerate(self.store.institutions):
            shard = self.store.holdout_of(node)
            if shard is not None:
                loss = holdout_loss(self.trainer, shard, self.config.evaluation.draws)
                rows.append(InstitutionLoss(node=node, institution=institution.name, loss=loss, pictures=len(shard)))
        return tuple(rows)


@dataclass(frozen=True)
class SheetRow:
    """A label and one picture per prompt."""

    label: str
    pictures: tuple[Image.Image, ...]


def contact_sheet(prompts: Sequence[str], rows: Sequence[SheetRow]) -> Image.Image:
    """The rows under one another, each picture enlarged to 144 pixels a side."""
    cell = _EDGE + _MARGIN
    sheet = Image.new("RGB", (_LABEL + cell * len(prompts) + _MARGIN, _HEADER + cell * len(rows) + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    for column, prompt in enumerate(prompts):
        text = "\n".join(textwrap.wrap(prompt, 24)[:3])
        draw.multiline_text((_LABEL + column * cell, _MARGIN), text, fill="black", font=font)
    for index, row in enumerate(rows):
        top = _HEADER + index * cell
        draw.multiline_text((_MARGIN, top + _EDGE // 2 - 8), row.label, fill="black", font=font)
        for column, picture in enumerate(row.pictures):
            shown = picture.resize((_EDGE, _EDGE), Image.Resampling.LANCZOS)
            sheet.paste(shown, (_LABEL + column * cell, top))
    return sheet
