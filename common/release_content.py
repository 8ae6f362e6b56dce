"""What is inside a release's files, against its statement: the adapter in each of its forms, and the model card."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from common.adapter.export import read_adapter_spec, read_adapter_vector
from common.adapter.kohya import kohya_bytes
from common.adapter.spec import vector_digest
from common.adapter.weights_check import check_adapter_weights, compare_with_base
from common.errors import AdapterError, ModelError
from common.privacy.accounting import ACCOUNTANT
from common.privacy.statements import RELATION
from common.release import ReleaseError
from common.release_folder import CARD_FILE, file_names, kohya_file
from common.release_words import privacy_section

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from common.adapter.spec import AdapterSpec
    from common.release import Release
    from common.release_folder import ReleaseFolder

HEADING: Final = "## Privacy\n\n"
"""Of the card's section on privacy."""
FROZEN: Final = (
    "frozen factors not compared, which everybody loads and the adapter's digest does not cover: give --base"
)
_MAX_CARD_BYTES: Final = 1 << 20


def content_faults(folder: ReleaseFolder, release: Release, base: Path | None) -> Iterator[str]:
    """Adapter files, words and card; the files' digests are right already.

    Args:
        folder: The release.
        release: Its statement.
        base: The base model's directory; None: frozen factors that follow from it are not compared.

    """
    try:
        spec = read_adapter_spec(folder.root)
    except AdapterError as error:
        yield str(error)
        return
    if tuple(file.name for file in release.files) != (wanted := file_names(release.name, spec, release.roster)):
        yield f"wanted the files {', '.join(wanted)}"
        return
    try:
        yield from _adapter_faults(folder, release, spec)
        if base is not None:
            _compare(folder, spec, base)
    except (AdapterError, ModelError, ReleaseError) as error:
        yield str(error)
    try:
        yield from _word_faults(folder, release)
    except ReleaseError as error:
        yield str(error)


def not_compared(folder: ReleaseFolder) -> tuple[str, ...]:
    """What of the adapter nobody can check without the base."""
    try:
        return (FROZEN,) if read_adapter_spec(folder.root).config.train == "core" else ()
    except AdapterError:
        return ()  # that is a fault already


def _adapter_faults(folder: ReleaseFolder, release: Release, spec: AdapterSpec) -> Iterator[str]:
    if (spec.digest, spec.base_digest, spec.dimension, str(spec.family)) != (
        release.adapter_spec,
        release.base,
        release.dimension,
        release.family,
    ):
        yield "the adapter's specification is not the one that the release names"
    check_adapter_weights(folder.root, spec)
    found = vector_digest(read_adapter_vector(folder.root, spec))
    if found != release.adapter:
        yield f"the adapter is {found}; the release says {release.adapter}"
    theirs = kohya_bytes(folder.root, spec, title=release.name)
    if folder.read(kohya_file(release.name), most=len(theirs)) != theirs:
        yield f"{kohya_file(release.name)}: holds another adapter than diffusers' file"


def _compare(folder: ReleaseFolder, spec: AdapterSpec, base: Path) -> None:
    from common.adapter.model import open_base  # noqa: PLC0415 - diffusers takes seconds to load

    compare_with_base(folder.root, spec, open_base(str(base), digest=spec.base_digest, family=spec.family))


def _word_faults(folder: ReleaseFolder, release: Release) -> Iterator[str]:
    """What people read: free text in the statement would be the coordinator's own promise in the card's table."""
    privacy = release.privacy
    for name, said, due in (("accountant", privacy.accountant, ACCOUNTANT), ("relation", privacy.relation, RELATION)):
        if said != due:
            yield f"privacy.{name}: {said}; wanted {due}"
    card = folder.read(CARD_FILE, most=_MAX_CARD_BYTES).decode(errors="replace")
    section = f"{HEADING}{privacy_section(release)}\n"
    if section not in card or card.count(HEADING.strip()) != 1:
        yield f"{CARD_FILE}: does not say of privacy what release.json says, once and under one heading"
    if "<!--" in card:
        yield f"{CARD_FILE}: has a comment (<!--), in which nobody sees what is written"
