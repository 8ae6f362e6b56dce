"""A release's ``README.md``: a Hugging Face model card, of public facts and of what the coordinator wrote in a file.

Nothing in it is counted or measured on anybody's data. What the facts file says of data, use and licence is the
coordinator's own word, and the card says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from huggingface_hub import ModelCardData
from msgspec import Meta

from common.adapter.export import WEIGHTS_FILE
from common.config import Config
from common.errors import ConfigErrors
from common.manifest import InstitutionName  # noqa: TC001 - msgspec reads annotations at run time
from common.release_folder import MANIFEST_FILE, RELEASE_FILE, SIGNATURES, kohya_file
from common.release_words import privacy_section
from common.toml_config import parse_config, read_toml

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from common.manifest import Manifest
    from common.release import Release

Line = Annotated[str, Meta(min_length=1, max_length=2000, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]+\Z")]
_LIMITS: Final = (
    "Its pictures are made up. They show nobody, prove nothing, and are no basis for a diagnosis.",
    "Differential privacy bounds what can be found out about one unit; what many share is learnt, as it should be.",
    "What the base model knew before, with its faults and prejudices, is still in it.",
    "It belongs to one base model, named above by its digest; on another it draws noise.",
)
_NOT_INTENDED: Final = ("passing its pictures off as photographs or as findings", "looking for people in it")
_FAMILIES: Final = {"sd1": "Stable Diffusion 1", "sd2": "Stable Diffusion 2", "sdxl": "Stable Diffusion XL"}


class DataCategory(Config, frozen=True, kw_only=True):
    """One kind of data that was trained on."""

    category: Line
    """What kind, as "retina photographs"; no count."""
    source: Line | None = None
    """Where from, and on what legal ground."""
    institution: InstitutionName | None = None
    """Whose; only where the roster is public."""


class CardFacts(Config, frozen=True, kw_only=True):
    """The facts file: what a coordinator alone can say. Every key may be absent."""

    summary: Line | None = None
    licence: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9.-]{0,60}\Z")] | None = None
    """Hugging Face's identifier of a licence, such as ``cc-by-nc-4.0``; mind the base model's own."""
    base_model: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*\Z")] | None = None
    """The base's hub id."""
    contact: Line | None = None
    data: tuple[DataCategory, ...] = ()
    intended: tuple[Line, ...] = ()
    not_intended: tuple[Line, ...] = ()
    limits: tuple[Line, ...] = ()


def read_facts(path: Path) -> CardFacts:
    """The facts file.

    Raises:
        ConfigError: Missing or not TOML.
        ConfigErrors: Every fault in it.

    """
    return parse_config(read_toml(path), CardFacts, source=str(path))


def model_card(release: Release, manifest: Manifest, facts: CardFacts) -> str:
    """The card.

    Raises:
        ConfigErrors: The facts name an institution, and the roster is not public or does not have it.

    """
    names = {member.name for member in manifest.roster} if release.roster == "public" else set()
    unknown = [
        each.institution for each in facts.data if each.institution is not None and each.institution not in names
    ]
    if unknown:
        roster = "the roster is not public" if release.roster == "private" else "it is not in the roster"
        raise ConfigErrors("model card", tuple(f"data.institution: {name} is named, and {roster}" for name in unknown))
    return "\n".join((*_front_matter(facts), *_sections(release, manifest, facts), ""))


def _front_matter(facts: CardFacts) -> Iterator[str]:
    tags = ["lora", "stable-diffusion", "text-to-image", "federated-learning", "differential-privacy"]
    data = ModelCardData(
        license=facts.licence,
        base_model=facts.base_model,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=tags,
    )
    yield from ("---", data.to_yaml(), "---")


def _sections(release: Release, manifest: Manifest, facts: CardFacts) -> Iterator[str]:
    yield f"\n# {manifest.config.title or release.name}\n"
    state = "" if release.is_finished else f", ended early: {release.rounds} of {release.rounds_planned} rounds"
    yield facts.summary or f"A LoRA for {_FAMILIES[release.family]}."
    yield (
        f"\n{len(manifest.roster)} institutions trained it together{state}; no picture or caption left any of them. "
        f"Run `{release.name}`, version {release.code_version} of Darkroom.\n"
    )
    yield "## Use\n"
    yield f'* diffusers: `pipeline.load_lora_weights(FOLDER, weight_name="{WEIGHTS_FILE}")`'
    yield f"* A1111, ComfyUI and other programs: `{kohya_file(release.name)}`, with weight 1"
    yield f"* base model: `{release.base}`{'' if facts.base_model is None else f', {facts.base_model}'}\n"
    yield from _list("Meant for:", facts.intended or ("not stated by the coordinator",))
    yield from _list("Not meant for:", (*facts.not_intended, *_NOT_INTENDED))
    yield "## Training data\n"
    yield from _data(release, manifest, facts)
    yield f"## Privacy\n\n{privacy_section(release)}\n"
    yield from _list("## Limits\n", (*facts.limits, *_LIMITS))
    yield "## Licence\n"
    yield f"{facts.licence or 'Not stated; ask the coordinator before using it.'}\n"
    yield "## Checking it\n"
    yield _checking(release)
    if facts.contact is not None:
        yield f"\nContact: {facts.contact}"


def _data(release: Release, manifest: Manifest, facts: CardFacts) -> Iterator[str]:
    yield "As the coordinator states it; nobody else has seen the data.\n"
    for each in facts.data:
        whose = "" if each.institution is None else f" ({each.institution})"
        yield f"* {each.category}{whose}{'' if each.source is None else f': {each.source}'}"
    if not facts.data:
        yield "* kinds of data: not stated"
    if release.roster == "public":
        yield f"\nInstitutions: {', '.join(member.name for member in manifest.roster)}.\n"
    else:
        yield "\nThe institutions are not named.\n"


def _checking(release: Release) -> str:
    roster = f"`{MANIFEST_FILE}`" if release.roster == "public" else "the run's manifest, which is not public"
    manifest = "" if release.roster == "public" else " --manifest FILE"
    return (
        f"`{RELEASE_FILE}` holds the digest of every file, signed by the coordinator with key `{release.coordinator}`. "
        f"Every institution's own word on it is in `{SIGNATURES}/`; their keys are in {roster}. "
        f"`darkroom-client release verify FOLDER --base MODEL{manifest}` checks all of it."
    )


def _list(heading: str, items: tuple[str, ...]) -> Iterator[str]:
    yield f"{heading}\n" if not heading.startswith("#") else heading
    yield from (f"* {item}" for item in items)
    yield ""
