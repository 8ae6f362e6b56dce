"""Verdicts as a table for people."""

from __future__ import annotations

import msgspec
import numpy as np

from simulations.experiments.judge import Verdict


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """All verdicts of one scenario, and what they are measured against."""

    verdicts: tuple[Verdict, ...]
    floors: dict[str, float]
    """KID-local of real pictures against other real ones, by domain."""
    features: str
    """SHA-256 of the feature network's weights."""


def render_table(comparison: Comparison) -> str:
    """Markdown: a row per adapter; hold-out loss and KID-local by domain, classifier accuracy over all pictures."""
    domains = [domain.domain for domain in comparison.verdicts[0].domains]
    head = ["adapter", *(f"loss {d}" for d in domains), "mean loss", *(f"KID {d}" for d in domains), "recognised"]
    lines = [_row(head), _row(["---", *["---:"] * (len(head) - 1)])]
    lines += [_row(_cells(verdict)) for verdict in comparison.verdicts]
    floors = ", ".join(f"{name} {floor:.3f}" for name, floor in comparison.floors.items())
    return (
        "\n".join(lines)
        + f"\n\nKID is KID-local: features of EfficientNet-Lite0 (sha256:{comparison.features[:16]}…), not Inception; "
        + f"real pictures against real pictures score {floors}.\n"
        + "Recognised: share of drawn pictures that a linear classifier of real pictures puts in the prompted domain.\n"
    )


def _cells(verdict: Verdict) -> list[str]:
    losses = [_figure(loss) for loss in (*(domain.holdout_loss for domain in verdict.domains), verdict.mean_loss)]
    kids = [f"{domain.kid:.2f} ± {domain.kid_spread:.2f}" for domain in verdict.domains]
    recognised = float(np.mean([domain.recognised for domain in verdict.domains]))
    return [verdict.label, *losses, *kids, f"{100 * recognised:.0f} %"]


def _figure(loss: float | None) -> str:
    return "none held out" if loss is None else f"{loss:.4f}"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
