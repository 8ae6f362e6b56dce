"""Judge an adapter on every institution's hold-out set: loss, KID-local, and whether a classifier knows the domain."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from common.adapter.generate import generate
from common.adapter.vector import write_vector
from simulations.experiments.metrics import DomainProbe, features, kid, real_vs_real_floor
from simulations.experiments.observers import draw_samples, sample_plan
from simulations.scenario.folder_latents import load_pixels
from simulations.scenario.plain_steward import holdout_loss

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from PIL import Image

    from client.training.trainer import Trainer
    from common.config import RunConfig
    from server.rounds.optimizer import Vector
    from simulations.scenario.prepare import Pictures, Site
    from simulations.scenario.store import InstitutionStore

PICTURES: Final = 32
"""Pictures drawn per domain."""
_DRAWN_AT_ONCE: Final = 16
_SUBSETS: Final = 100
_SEED: Final = 1


class DomainVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """One adapter on one institution's domain."""

    domain: str
    holdout_loss: float | None
    """None where no picture is held out."""
    kid: float
    kid_spread: float
    recognised: float
    """Share of the drawn pictures that the classifier puts in this domain."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One adapter on all domains."""

    label: str
    domains: tuple[DomainVerdict, ...]

    @property
    def mean_loss(self) -> float | None:
        """Mean hold-out loss over the domains that have one, each weighing the same."""
        losses = [domain.holdout_loss for domain in self.domains if domain.holdout_loss is not None]
        return float(np.mean(losses)) if losses else None


@dataclass(frozen=True)
class _Domain:
    index: int
    name: str
    real: NDArray[np.float32]
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Judge:
    """Everything the verdicts on one scenario's adapters share."""

    trainer: Trainer
    config: RunConfig
    store: InstitutionStore
    domains: tuple[_Domain, ...]
    probe: DomainProbe

    @classmethod
    def prepare(cls, trainer: Trainer, config: RunConfig, store: InstitutionStore, sites: Sequence[Site]) -> Judge:
        """Compute the real pictures' features and fit the classifier on the training ones."""
        resolution = config.training.resolution or trainer.base.resolution
        train = [_features_of(site.train, resolution) for site in sites]
        held = [_features_of(site.holdout, resolution) for site in sites]
        names = [site.name for site, found in zip(sites, train, strict=True) for _ in found]
        domains = tuple(
            _Domain(i, site.name, np.concatenate([train[i], held[i]]), _prompts(site)) for i, site in enumerate(sites)
        )
        return cls(trainer, config, store, domains, DomainProbe.fit(np.concatenate(train), names))

    @property
    def prompts(self) -> tuple[str, ...]:
        """The scenario's sample prompts."""
        return self.config.evaluation.prompts

    def verdict(self, label: str, adapter: Vector) -> Verdict:
        """Judge one adapter, float32 [d]."""
        write_vector(self.trainer.unet, self.trainer.spec, adapter)
        return Verdict(label=label, domains=tuple(self._on(domain) for domain in self.domains))

    def _on(self, domain: _Domain) -> DomainVerdict:
        shard = self.store.holdout_of(domain.index)
        loss = None if shard is None else holdout_loss(self.trainer, shard, self.config.evaluation.draws)
        found = features(np.stack([np.asarray(picture) for picture in self._draw(domain.captions)]))
        score = kid(
            found, domain.real, subsets=_SUBSETS, subset_size=min(len(found), len(domain.real) // 2), seed=_SEED
        )
        recognised = self.probe.accuracy(found, [domain.name] * len(found))
        return DomainVerdict(
            domain=domain.name, holdout_loss=loss, kid=score.mean, kid_spread=score.std, recognised=recognised
        )

    def _draw(self, prompts: Sequence[str]) -> list[Image.Image]:
        pipeline = self.trainer.base.pipeline(self.trainer.unet)
        drawn: list[Image.Image] = []
        for start in range(0, len(prompts), _DRAWN_AT_ONCE):
            plan = sample_plan(self.config, self.trainer)
            part = tuple(prompts[start : start + _DRAWN_AT_ONCE])
            drawn += generate(pipeline, replace(plan, prompts=part, seed=plan.seed + start))
        return drawn

    def samples(self, adapter: Vector) -> tuple[Image.Image, ...]:
        """The scenario's sample prompts, drawn with this adapter."""
        return draw_samples(self.config, self.trainer, adapter)

    def floors(self) -> dict[str, float]:
        """KID-local that real pictures get against other real pictures of their domain."""
        sizes = {each.name: min(PICTURES, len(each.real) // 2) for each in self.domains}
        return {
            each.name: real_vs_real_floor(each.real, subsets=_SUBSETS, subset_size=sizes[each.name], seed=_SEED).mean
            for each in self.domains
        }


def _features_of(part: Pictures, resolution: int) -> NDArray[np.float32]:
    return features(np.stack([load_pixels(part.folder, picture, resolution) for picture in part.pictures]))


def _prompts(site: Site) -> tuple[str, ...]:
    """Captions of the hold-out pictures, evenly picked, as often as needed."""
    captions = [picture.caption for picture in site.holdout.pictures or site.train.pictures]
    return tuple(captions[i * len(captions) // PICTURES] for i in range(PICTURES))
