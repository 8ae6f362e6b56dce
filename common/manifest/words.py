"""A manifest in plain words, the same ones for coordinator and institutions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from common.errors import DarkroomError
from common.privacy.run_plan import private_plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from common.manifest.manifest import Manifest

_TRAINED: Final = {
    "B": "one of the two factors of each adapter layer (the other is public and fixed)",
    "AB": "both factors of each adapter layer",
    "core": "a small core between public, fixed factors of each adapter layer",
}


def terms_words(manifest: Manifest, digest: bytes) -> Iterator[str]:
    """Who takes part, in what, for how long: lines for a person."""
    config = manifest.config
    yield f"Run {config.name!r}{': ' + printable(config.title) if config.title else ''}"
    yield f"Digest: {digest.hex()}"
    yield f"Coordinator's key: {manifest.coordinator}"
    yield f"Institutions ({len(manifest.roster)}):"
    yield from (f"- {member.name}  {member.key}" for member in manifest.roster)
    yield f"Base model: {manifest.base_digest}"
    yield (
        f"Trained: {manifest.dimension} numbers of an adapter of rank {config.adapter.rank}: "
        f"{_TRAINED[config.adapter.train]}."
    )
    yield f"Rounds: {config.rounds}, mode {config.training.mode}; code version {printable(manifest.code_version)}."
    yield from _sampling(manifest)
    yield _aggregation(manifest)


def _sampling(manifest: Manifest) -> Iterator[str]:
    """What noise and price rest on, as the coordinator chose it."""
    privacy = manifest.config.privacy
    if privacy == "none":
        return
    yield f"Clip: {privacy.clip:g}, to which each {privacy.unit}'s gradient, the mean of {privacy.draws} draws, is cut."
    yield (
        f"Sampling rate: {privacy.sampling_rate:g}, the chance of each {privacy.unit} to be in a round; population: at "
        f"least {privacy.population} of all institutions together, so {privacy.expected_batch:g} expected in a round; "
        f"largest site: {privacy.largest_site or privacy.population}, the most that one institution may have."
    )


def _aggregation(manifest: Manifest) -> str:
    terms = manifest.secure_aggregation
    if terms is None:
        return "No secure aggregation: the coordinator sees what this institution sends by itself."
    return (
        f"Secure aggregation: the coordinator sees sums of at least {terms.minimum_cohort} institutions only, as long "
        f"as no more than {terms.colluders} of the others work with it."
    )


def privacy_words(manifest: Manifest) -> str:
    """The four ε statements as worked out here, beside what the manifest promises."""
    try:
        plan = private_plan(manifest.config)
        text = None if plan is None else plan.report(plan.attempts).as_text()
    except DarkroomError as error:
        return f"No (ε, δ) can be worked out for this run: {error}"
    if text is None:
        return "NO DIFFERENTIAL PRIVACY: what is sent may show single pictures to whoever receives it."
    promised = manifest.privacy
    if promised is None:
        return text
    return f"{text}\nThe manifest promises epsilon = {promised.epsilon:.4g} at delta = {promised.delta:.3g}."


def printable(text: str) -> str:
    """A coordinator's words without characters that move a terminal's cursor or turn the writing round."""
    return "".join(char if char.isprintable() else "�" for char in text)
