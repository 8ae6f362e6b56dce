"""What is inside a release's files, against its statement: the adapter in each of its forms, and the model card."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, Final

import msgspec
from safetensors.numpy import load_file, save

from common.adapter.export import (
    CORE_FILE,
    SPEC_FILE,
    WEIGHTS_FILE,
    core_metadata,
    read_adapter_spec,
    read_adapter_vector,
    weights_metadata,
)
from common.adapter.kohya import kohya_bytes
from common.adapter.spec import encode_spec, vector_digest
from common.adapter.tensor_file import in_order
from common.adapter.weights_check import check_adapter_weights, compare_with_base
from common.errors import AdapterError, ModelError
from common.privacy.accounting import ACCOUNTANT
from common.privacy.statements import RELATION
from common.release.folder import CARD_FILE, file_names, kohya_file
from common.release.model_card import model_card
from common.release.statement import ReleaseError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from common.adapter.spec import AdapterSpec
    from common.release.folder import ReleaseFolder
    from common.release.statement import Release

FROZEN: Final = (
    "frozen factors not compared, which everybody loads and the adapter's digest does not cover: give --base"
)
_MAX_CARD_BYTES: Final = 1 << 20
_SHOWN: Final = 160


def content_faults(folder: ReleaseFolder, release: Release, base: Path | None, names: Sequence[str]) -> Iterator[str]:
    """Adapter files, words and card; the files' digests are right already.

    Args:
        folder: The release.
        release: Its statement.
        base: The base model's directory; None: frozen factors that follow from it are not compared.
        names: Of the roster, where it is public.

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
        yield from _word_faults(folder, release, names)
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
    for name, ours in _own_files(folder, spec):
        if folder.read(name, most=len(ours)) != ours:
            yield f"{name}: holds what no program reads beside the adapter; wanted the file as it was exported"


def _own_files(folder: ReleaseFolder, spec: AdapterSpec) -> Iterator[tuple[str, bytes]]:
    """The adapter's files as our export writes them: a header or a specification has room for words as well."""
    yield SPEC_FILE, msgspec.json.format(encode_spec(spec), indent=2) + b"\n"
    yield WEIGHTS_FILE, in_order(save(load_file(folder.root / WEIGHTS_FILE), metadata=weights_metadata(spec)))
    if spec.config.train == "core":
        yield CORE_FILE, in_order(save(load_file(folder.root / CORE_FILE), metadata=core_metadata(spec)))


def _compare(folder: ReleaseFolder, spec: AdapterSpec, base: Path) -> None:
    from common.adapter.model import open_base  # noqa: PLC0415 - diffusers takes seconds to load

    compare_with_base(folder.root, spec, open_base(str(base), digest=spec.base_digest, family=spec.family))


def _word_faults(folder: ReleaseFolder, release: Release, names: Sequence[str]) -> Iterator[str]:
    """What people read: free text in the statement would be the coordinator's own promise in the card's table."""
    privacy = release.privacy
    for name, said, due in (("accountant", privacy.accountant, ACCOUNTANT), ("relation", privacy.relation, RELATION)):
        if said != due:
            yield f"privacy.{name}: {said}; wanted {due}"
    wanted, found = model_card(release, names), folder.read(CARD_FILE, most=_MAX_CARD_BYTES)
    if found != wanted.encode():
        yield (
            f"{CARD_FILE}: is not the card that release.json gives: {_first_difference(found, wanted)}; use the file "
            "as it was made, or the version of Darkroom that made it"
        )


def _first_difference(found: bytes, wanted: str) -> str:
    """For a person; a byte that is no text shows as such."""
    theirs, ours = found.decode(errors="backslashreplace").split("\n"), wanted.split("\n")
    for number, (one, other) in enumerate(zip_longest(theirs, ours, fillvalue=""), start=1):
        if one != other:
            return f"line {number} is {_shortened(one)}, wanted {_shortened(other)}"
    return f"{len(theirs)} lines, wanted {len(ours)}"


def _shortened(line: str) -> str:
    return repr(line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…")
