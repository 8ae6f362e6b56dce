"""The model card of a release: the page that people read who think of using its adapter.

The card is a function of the signed statement and, where it is public, the roster, byte for byte: whoever verifies a
release makes its card again. So there is no place in it where other words could stand, or hide the ones that are due.
Its front matter is for the Hugging Face hub.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from msgspec import UnsetType

from common.adapter.export import WEIGHTS_FILE
from common.release.folder import MANIFEST_FILE, RELEASE_FILE, SIGNATURES, kohya_file
from common.release.statement import ReleaseError
from common.release.words import privacy_section

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from common.release.card_facts import CardFacts, DataCategory
    from common.release.statement import Release

OWN_WORDS: Final = "## In the coordinator's own words"
"""Heading of the last section, the only one with words that do not follow from figures."""
_UNCHECKED: Final = (
    "Nobody has checked what stands from here to the end, and nobody else has seen the data. What holds of privacy is "
    "said above, and nowhere else."
)
_LIMITS: Final = (
    "Its pictures are made up. They show nobody, prove nothing, and are no basis for a diagnosis.",
    "Differential privacy bounds what can be found out about one unit; what many share is learnt, as it should be.",
    "What the base model knew before, with its faults and prejudices, is still in it.",
    "It belongs to one base model, named above by its digest; on another it draws noise.",
)
_NOT_INTENDED: Final = ("passing its pictures off as photographs or as findings", "looking for people in it")
_FAMILIES: Final = {"sd1": "Stable Diffusion 1", "sd2": "Stable Diffusion 2", "sdxl": "Stable Diffusion XL"}
_TAGS: Final = ("lora", "stable-diffusion", "text-to-image", "federated-learning", "differential-privacy")


def model_card(release: Release, names: Sequence[str] = ()) -> str:
    """The card; ``names`` are those of the roster, where it is public.

    Raises:
        ReleaseError: The statement is of version 1, which has no facts for a card.

    """
    facts, count = release.card, release.institutions
    if isinstance(facts, UnsetType) or isinstance(count, UnsetType):
        raise ReleaseError(
            "release.json: is of version 1, of which a model card could say anything; have the coordinator make the "
            "release again with this version"
        )
    lines = (*_front_matter(facts), *_head(release, count, names), *_sections(release, facts), *_own_words(facts), "")
    return "\n".join(lines)


def _front_matter(facts: CardFacts) -> Iterator[str]:
    """Strings as JSON writes them, which YAML reads alike."""
    yield "---"
    if facts.licence is not None:
        yield f"license: {json.dumps(facts.licence)}"
    if facts.base_model is not None:
        yield f"base_model: {json.dumps(facts.base_model)}"
    yield 'library_name: "diffusers"'
    yield 'pipeline_tag: "text-to-image"'
    yield "tags:"
    yield from (f"- {json.dumps(tag)}" for tag in _TAGS)
    yield "---"


def _head(release: Release, count: int, names: Sequence[str]) -> Iterator[str]:
    rounds = f"{release.rounds} of {release.rounds_planned} rounds"
    state = "" if release.is_finished else f"; the run ended early, after {rounds}"
    yield f"\n# {release.name}\n"
    yield (
        f"A LoRA for {_FAMILIES[release.family]}. {count} institutions trained it together{state}; no picture or "
        f"caption left any of them. Run `{release.name}`, version {release.code_version} of Darkroom.\n"
    )
    yield f"Institutions: {', '.join(names)}.\n" if release.roster == "public" else "The institutions are not named.\n"


def _sections(release: Release, facts: CardFacts) -> Iterator[str]:
    yield "## Use\n"
    yield f'* diffusers: `pipeline.load_lora_weights(FOLDER, weight_name="{WEIGHTS_FILE}")`'
    yield f"* A1111, ComfyUI and other programs: `{kohya_file(release.name)}`, with weight 1"
    yield f"* base model: `{release.base}`"
    yield from (f"* not meant for {each}" for each in _NOT_INTENDED)
    yield f"\n## Privacy\n\n{privacy_section(release)}\n"
    yield "## Limits\n"
    yield from (f"* {each}" for each in _LIMITS)
    yield "\n## Licence\n"
    unstated = "Not stated; ask the coordinator before using it.\n"
    yield unstated if facts.licence is None else f"{facts.licence}, as the coordinator states it.\n"
    yield "## Checking it\n"
    yield f"{_checking(release)}\n"


def _checking(release: Release) -> str:
    roster = f"`{MANIFEST_FILE}`" if release.roster == "public" else "the run's manifest, which is not public"
    manifest = "" if release.roster == "public" else " --manifest FILE"
    return (
        f"`{RELEASE_FILE}` holds the digest of every file, signed by the coordinator with key `{release.coordinator}`. "
        f"Every institution's own word on it is in `{SIGNATURES}/`; their keys are in {roster}. "
        f"`darkroom-client release verify FOLDER --base MODEL{manifest}` checks all of it."
    )


def _own_words(facts: CardFacts) -> Iterator[str]:
    yield f"{OWN_WORDS}\n\n{_UNCHECKED}\n"
    yield from (f"* {line}" for line in own_words(facts))


def own_words(facts: CardFacts) -> Iterator[str]:
    """What is the coordinator's to say, one line each: every line begins with a word of ours, so none begins markup."""
    yield from (f"title: {text}" for text in (facts.title,) if text is not None)
    yield from (f"summary: {text}" for text in (facts.summary,) if text is not None)
    yield from (f"base model on the hub: {text}" for text in (facts.base_model,) if text is not None)
    yield from (f"kind of data: {_data(each)}" for each in facts.data)
    if not facts.data:
        yield "kinds of data: not stated"
    yield from (f"meant for: {each}" for each in facts.intended or ("not stated",))
    yield from (f"not meant for: {each}" for each in facts.not_intended)
    yield from (f"limit: {each}" for each in facts.limits)
    yield from (f"contact: {text}" for text in (facts.contact,) if text is not None)


def _data(each: DataCategory) -> str:
    whose = "" if each.institution is None else f" ({each.institution})"
    return f"{each.category}{whose}{'' if each.source is None else f': {each.source}'}"
