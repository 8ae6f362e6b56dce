"""What changed between two manifests, in words that an institution's officer can read before countersigning again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from common.manifest.manifest import Manifest, Member

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


def describe_changes(old: Manifest, new: Manifest) -> tuple[str, ...]:
    """One sentence per change, the roster's first; empty if nothing changed."""
    before, after = msgspec.to_builtins(old), msgspec.to_builtins(new)
    del before["roster"], after["roster"]
    return (*_roster_changes(old.roster, new.roster), *_value_changes("", before, after))


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
