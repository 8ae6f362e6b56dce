"""Is it worth federating? Base, each institution alone, federated and centralised, side by side.

All train for the same number of optimiser steps from the same initial adapter. Alone, an institution uses its own
batch; centralised, one site holds everything and uses the sum of the batches. Each adapter is judged on every
institution's hold-out set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from client.training.trainer import build_trainer
from common.adapter.vector import initial_vector
from common.errors import ConfigError
from server.run.checkpoint import checkpoint_files
from server.run.coordinator import CHECKPOINTS
from server.run.directory import RunDirectory
from simulations.experiments.judge import Judge, Verdict
from simulations.experiments.metrics import WEIGHTS_SHA256
from simulations.experiments.observers import Progress, SheetRow, contact_sheet
from simulations.experiments.run import Federation, federate, open_scenario_base
from simulations.scenario.prepare import prepare_store, sites_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from client.training.trainer import Trainer
    from common.config import RunConfig
    from server.rounds.optimizer import Vector
    from simulations.scenario.scenario import Scenario
    from simulations.scenario.store import InstitutionStore


BASE: Final = "base"
FEDERATED: Final = "federated"
CENTRALISED: Final = "centralised"
_MOST_INSTITUTIONS: Final = 12


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """All verdicts of one scenario, and what they are measured against."""

    verdicts: tuple[Verdict, ...]
    floors: dict[str, float]
    """KID-local of real pictures against other real ones, by domain."""
    features: str
    """SHA-256 of the feature network's weights."""


@dataclass(frozen=True)
class Contender:
    """One way to train: whose pictures, and with which configuration."""

    label: str
    store: InstitutionStore
    config: RunConfig


def compare_scenario(scenario: Scenario, directory: Path, cache: Path, warn: Callable[[str], None]) -> str:
    """Train what is missing, judge everything, write ``table.md``, ``table.json`` and ``pictures.png``; the table.

    Raises:
        ConfigError: Institutions that are not sites of their own, or too many of them.
        DarkroomError: Anything wrong with base, pictures or checkpoints.

    """
    _check_comparable(scenario)
    base, config = open_scenario_base(scenario)
    store = prepare_store(scenario, base, cache, warn)
    if len(store.institutions) > _MOST_INSTITUTIONS:
        raise ConfigError(f"compare trains every institution alone: at most {_MOST_INSTITUTIONS}, got more")
    trainer = build_trainer(base, config)
    judge = Judge.prepare(trainer, config, store, sites_of(scenario, base, cache))
    adapters = {BASE: initial_vector(trainer.spec)}
    for contender in contenders(store, config):
        adapters[contender.label] = _train(contender, trainer, directory / contender.label)
    verdicts = tuple(judge.verdict(label, adapter) for label, adapter in adapters.items())
    return _write(directory, judge, verdicts, adapters)


def _check_comparable(scenario: Scenario) -> None:
    if scenario.privacy != "none":
        raise ConfigError('compare trains institutions alone and together without noise: wanted privacy = "none"')
    if scenario.institutions.scheme != "site":
        raise ConfigError('compare judges each institution as a domain: wanted institutions.scheme = "site"')


def contenders(store: InstitutionStore, config: RunConfig) -> Iterator[Contender]:
    """Each institution alone, all federated, all in one place."""
    alone = _with_one_institution(config, config.training.batch_size)
    for institution in store.institutions:
        yield Contender(f"{institution.name} alone", store.only(institution.name), alone)
    yield Contender(FEDERATED, store, config)
    everything = config.training.batch_size * len(store.institutions)
    yield Contender(CENTRALISED, store.union(), _with_one_institution(config, everything))


def _with_one_institution(config: RunConfig, batch_size: int) -> RunConfig:
    return msgspec.structs.replace(
        config,
        training=msgspec.structs.replace(config.training, batch_size=batch_size),
        server=msgspec.structs.replace(config.server, minimum_institutions=1, institutions_per_round=None),
    )


def _train(contender: Contender, trainer: Trainer, directory: Path) -> Vector:
    """The contender's adapter; a finished run is read, a stopped one goes on."""
    resume = bool(checkpoint_files(directory / CHECKPOINTS))
    federation = Federation(contender.config, trainer, contender.store, directory)
    return federate(federation, (RunDirectory(directory), Progress()), resume=resume)


def _write(directory: Path, judge: Judge, verdicts: tuple[Verdict, ...], adapters: dict[str, Vector]) -> str:
    comparison = Comparison(verdicts=verdicts, floors=judge.floors(), features=WEIGHTS_SHA256)
    table = render_table(comparison)
    (directory / "table.md").write_text(table, encoding="utf-8")
    (directory / "table.json").write_bytes(msgspec.json.format(msgspec.json.encode(comparison)))
    rows = [SheetRow(label.replace(" ", "\n"), judge.samples(adapter)) for label, adapter in adapters.items()]
    contact_sheet(judge.prompts, rows).save(directory / "pictures.png")
    return f"{table}\n{directory / 'table.md'}\n{directory / 'pictures.png'}"


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
