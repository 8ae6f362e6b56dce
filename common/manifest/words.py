"""A manifest, and what changed between two, in plain words: the same ones for coordinator and institutions.

An institution's officer reads them before countersigning, and again before countersigning a changed run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from common.errors import DarkroomError
from common.privacy.run_plan import private_plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from common.manifest.manifest import Manifest, Member


_TRAINED: Final = {
    "B": "one of the two factors of each adapter layer (the other is public and fixed)",
    "AB": "both factors of each adapter layer",
    "core": "a small core between public, fixed factors of each adapter layer",
}
_WORDS: Final = {
    "run": "the run's random identifier",
    "base_digest": "the base model",
    "adapter_digest": "the adapter's layout",
    "dimension": "the number of trained values",
    "coordinator": "the coordinator's key",
    "code_version": "the code version",
    "config.rounds": "the number of rounds",
    "config.privacy": "the privacy mode",
    "config.adapter.rank": "the adapter's rank",
    "config.adapter.train": "the trained adapter factors",
    "config.training.batch_size": "the expected batch per institution",
    "config.training.mode": "the training mode",
    "privacy": "differential privacy",
    "privacy.unit": "what counts as one privacy unit",
    "privacy.relation": "the neighbouring relation",
    "privacy.epsilon": "the promised ε",
    "privacy.delta": "the promised δ",
    "privacy.clip": "the clipping bound",
    "privacy.sampling_rate": "the sampling rate",
    "privacy.noise_multiplier": "the noise multiplier",
    "secure_aggregation": "secure aggregation",
    "secure_aggregation.bits": "the word size of masked values",
    "secure_aggregation.minimum_cohort": "the smallest allowed cohort",
    "secure_aggregation.colluders": "the number of tolerated colluders",
}
"""Settings that a non-programmer should recognise; others are named by their path."""


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


def describe_changes(old: Manifest, new: Manifest) -> tuple[str, ...]:
    """One sentence per change, the roster's first; empty if nothing changed."""
    before, after = msgspec.to_builtins(old), msgspec.to_builtins(new)
    del before["roster"], after["roster"]
    return (*_roster_changes(old.roster, new.roster), *_value_changes("", before, after))


def printable(text: str) -> str:
    """A coordinator's words without characters that move a terminal's cursor or turn the writing round."""
    return "".join(char if char.isprintable() else "�" for char in text)


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


def _roster_changes(old: tuple[Member, ...], new: tuple[Member, ...]) -> Iterator[str]:
    before = {member.name: member.key for member in old}
    after = {member.name: member.key for member in new}
    for name in sorted(before.keys() | after.keys()):
        if name not in after:
            yield f"institution {name} leaves"
        elif name not in before:
            yield f"institution {name} joins with key {after[name]}"
        elif before[name] != after[name]:
            yield f"institution {name} has another key: {before[name]} before, {after[name]} now"


def _value_changes(path: str, old: object, new: object) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _value_changes(f"{path}.{key}".lstrip("."), old.get(key), new.get(key))
    elif old != new:
        known = _WORDS.get(path)
        name = f"{known} ({path})" if known else path
        if isinstance(old, dict) or isinstance(new, dict):
            yield f"{name} is {'removed' if new is None else 'added'}: {new if old is None else old}"
        else:
            yield f"{name} changes from {old} to {new}"
