"""A run of n institutions in memory: every message passes through the test's hands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from common.config import PLAIN_WORDS, BaseModelConfig, RunConfig
from common.crypto.primitives import Identity, Secret
from common.manifest.manifest import (
    Manifest,
    Member,
    PrivacyTerms,
    SecureAggregationTerms,
    canonical_bytes,
    manifest_digest,
)
from common.secagg import aggregator, participant
from common.secagg.ring import Summand, word_type

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from common.secagg.messages import Step

HEAD = b"h" * 32
DIGEST = "sha256:" + "0" * 64
PRIVACY = PrivacyTerms(
    unit="image", epsilon=8, delta=1e-6, clip=1, sampling_rate=1, noise_multiplier=1, maximum_units=1
)
"""Stated, for nothing here adds noise."""


def identity(number: int) -> Identity:
    """A fixed key per number, so that tests do not depend on the system's randomness."""
    return Identity(Secret(number.to_bytes(32, "little")))


@dataclass
class World:
    """Coordinator and institutions; ``sites`` holds each institution's current state by place."""

    manifest: Manifest
    coordinator: Identity
    identities: tuple[Identity, ...]
    server: Any
    sites: dict[int, Any]

    @property
    def digest(self) -> bytes:
        return manifest_digest(canonical_bytes(self.manifest))

    def open(self, places: Sequence[int] | None = None) -> World:
        """Run the session's messages with these institutions."""
        present = list(self.sites) if places is None else list(places)
        self.server, opening = self.server.create_open_session()
        for place in present:
            self.sites[place], advert = self.sites[place].handle_open_session(opening)
            self.server = self.server.handle_advert(advert)
        self.server, keys = self.server.create_session_keys()
        for place in present:
            self.sites[place] = self.sites[place].handle_session_keys(keys)
        return self

    def request(self, step: Step, cohort: Sequence[int] | None = None, adapter: bytes = b"adapter") -> bytes:
        """Start a step; its request bytes."""
        chosen = tuple(sorted(self.sites)) if cohort is None else tuple(cohort)
        self.server, data = self.server.create_round_request(step, adapter=adapter, cohort=chosen, head=HEAD)
        return data

    def share(self, words: Any, cohort: int | None = None) -> Summand:
        """A summand as if clipped, quantised and noised."""
        bits = self.manifest.secure_aggregation.bits  # type: ignore[union-attr]
        vector = np.asarray(words).astype(word_type(bits))
        return Summand(words=vector, bits=bits, cohort=len(self.sites) if cohort is None else cohort)

    def answer(self, place: int, request: bytes, words: Any, cohort: int | None = None) -> bytes:
        """One institution's whole step; its contribution's bytes."""
        working = self.sites[place].handle_round_request(request)
        self.sites[place], data = working.create_contribution(self.share(words, cohort), head=HEAD)
        return data


def build(n: int, *, dimension: int = 16, bits: int = 32, minimum_cohort: int = 2, rounds: int = 1000) -> World:
    coordinator = identity(10_000)
    identities = tuple(identity(number + 1) for number in range(n))
    manifest = Manifest(
        run="ab" * 16,
        config=RunConfig(
            name="test-run",
            rounds=rounds,
            privacy="none",
            acknowledge=PLAIN_WORDS,
            base=BaseModelConfig(path="bundled"),
        ),
        base_digest=DIGEST,
        adapter_digest=DIGEST,
        dimension=dimension,
        coordinator=coordinator.public.hex(),
        roster=tuple(Member(name=f"site-{i:03}", key=who.public.hex()) for i, who in enumerate(identities)),
        privacy=PRIVACY,
        secure_aggregation=SecureAggregationTerms(
            bits=bits, minimum_cohort=minimum_cohort, colluders=minimum_cohort - 2
        ),
        code_version="test",
    )
    digest = manifest_digest(canonical_bytes(manifest))
    return World(
        manifest=manifest,
        coordinator=coordinator,
        identities=identities,
        server=aggregator.start(manifest, digest, coordinator),
        sites={place: participant.enrol(manifest, digest, who) for place, who in enumerate(identities)},
    )


@pytest.fixture(scope="session")
def world() -> Callable[..., World]:
    """Makes a run: ``world(n, dimension=…, bits=…, minimum_cohort=…, rounds=…)``."""
    return build
