"""Checking a release: everybody can, with the folder alone where the roster is public, else with the run's manifest.

Guarantee: no fault is found only if ``release.json`` is signed by the coordinator of the manifest; every file is the
one that it names, and there is no other; the digest is that of the trained values, made for the manifest's base and
specification; both adapter files hold the same factors, with the specification's rank and α and no other tensor; no ε
stated is below the one that follows from the manifest for the attempts stated, and the card is, byte for byte, the one
that follows from these and from the coordinator's words, which stand in it under a heading of their own and are plain
text (:mod:`common.release.card_facts`); and as many institutions of the roster as were wanted signed this very release
with the roster's key.

Guarantee, with the base: what stock loaders put into that base is what the vector of the digest puts there.

Without the base the same holds of ``train = "AB"``, where everything is trained, and of ``"B"``, whose frozen factors
follow from the public seed, if the modules' shapes are the base's (others do not load). Of ``"core"`` it does not hold:
its frozen factors follow from the base's weights, so whoever signed could have put others into the files that everybody
loads, and its trained values stand in a file of their own. ``unchecked`` says so; every site that signs compares them.

Without the manifest no site's signature, ε or specification is checked against anything: a file with a site's number
among the signatures need not be that site's.

A manifest that comes with the release is whatever its coordinator put in, so a public roster is the coordinator's own
choice of names and keys: who must know that the institutions are real gives the manifest, the coordinator's key, or
compares the roster's keys, each from another source. Whether so many attempts were sent is for the sites to say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Final

import msgspec
from safetensors.numpy import load_file, save

from common.adapter.export import (
    CORE_FILE,
    SPEC_FILE,
    WEIGHTS_FILE,
    core_metadata,
    in_order,
    read_adapter_spec,
    read_adapter_vector,
    weights_metadata,
)
from common.adapter.kohya import kohya_bytes
from common.adapter.spec import encode_spec, vector_digest
from common.adapter.weights_check import check_adapter_weights, compare_with_base
from common.bounds import MAX_INSTITUTIONS
from common.errors import AdapterError, ConfigErrors, DarkroomError, ManifestError, ModelError
from common.manifest.manifest import open_manifest
from common.manifest.words import printable
from common.privacy.accounting import ACCOUNTANT
from common.privacy.run_plan import private_plan
from common.privacy.statements import RELATION
from common.release.folder import (
    CARD_FILE,
    MANIFEST_FILE,
    MAX_SIGNED_BYTES,
    SIGNATURES,
    ReleaseFolder,
    file_names,
    kohya_file,
    numbered_signature,
    signature_file,
)
from common.release.model_card import model_card
from common.release.statement import MAX_WORD_BYTES, ReleaseError, SiteWord, StatedPrivacy, parse_word, stated_privacy

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from common.adapter.spec import AdapterSpec
    from common.manifest.manifest import Manifest
    from common.release.statement import Release, StatedEpsilon


FROZEN: Final = (
    "frozen factors not compared, which everybody loads and the adapter's digest does not cover: give --base"
)
_NO_MANIFEST: Final = (
    "the sites' signatures, every ε, the number of institutions and the specification, for which the run's manifest is "
    "needed"
)
_TOLERANCE: Final = 1e-6
"""Share by which two machines' accountants may differ."""
_MAX_CARD_BYTES: Final = 1 << 20
_SHOWN: Final = 160


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What the one who checks knows or wants.

    Attributes:
        manifest: The signed manifest's bytes, where they are not to be taken from the release or its roster is private.
        coordinator: Public key, hex; None: whoever signed.
        signatures: Fewest institutions that must have signed; None: all of the roster.
        base: The base model's directory, to make the frozen factors again; None: they are not compared.

    """

    manifest: bytes | None = None
    coordinator: str | None = None
    signatures: int | None = None
    base: Path | None = None


@dataclass(frozen=True, kw_only=True)
class ReleaseCheck:
    """What was found."""

    release: Release
    manifest: Manifest | None
    """None: it is not public, and none was given."""
    faults: tuple[str, ...]
    signed: tuple[str, ...] = ()
    """Files of signatures that are in order."""
    unsigned: tuple[str, ...] = ()
    """Those that are missing."""
    unchecked: tuple[str, ...] = ()
    """What could not be checked with what was given."""

    def lines(self) -> Iterator[str]:
        """For a person."""
        release = self.release
        yield f"release {release.digest().hex()} of run {release.name!r}, {release.time}"
        yield f"signed by coordinator {release.coordinator}"
        yield f"signed by {len(self.signed)} institutions: {', '.join(self.signed) or 'none'}"
        if self.unsigned:
            yield f"not signed: {', '.join(self.unsigned)}"
        yield from (f"not checked: {each}" for each in self.unchecked)
        if not self.faults:
            yield "in order: every file, figure and signature that was checked"

    def require_sound(self) -> None:
        """Refuse a release with faults.

        Raises:
            ReleaseError: Every fault.

        """
        if self.faults:
            raise ReleaseError("this release is not in order:\n" + "\n".join(f"  - {fault}" for fault in self.faults))


def verify_release(
    root: Path, *, manifest: Path | None, coordinator: str | None, signatures: int | None, base: Path | None
) -> Iterator[str]:
    """What both command lines do: say what was found, then refuse what is not in order.

    Raises:
        ReleaseError: Every fault.

    """
    signed = None if manifest is None else _read_manifest(manifest)
    expected = Expected(manifest=signed, coordinator=coordinator, signatures=signatures, base=base)
    found = check_release(ReleaseFolder(root), expected)
    yield from found.lines()
    found.require_sound()


def check_release(folder: ReleaseFolder, expected: Expected) -> ReleaseCheck:
    """Look at everything; the faults are in the result.

    Raises:
        ReleaseError: There is no statement to begin with, or it is altered or not signed.
        ManifestError: The manifest that was given is altered or not signed.
        ConfigErrors: The same contradicts itself.

    """
    release = folder.release()
    faults = list(folder.file_faults(release))
    are_altered = bool(faults)
    inside = _manifest_inside(folder, faults)
    if not are_altered:  # what is inside an altered file says nothing
        faults += _content_faults(folder, release, expected.base, _names(inside))
    if expected.coordinator not in {None, release.coordinator}:
        faults.append("signed by another coordinator than the one whose key was given; ask that one by telephone")
    opened = inside if expected.manifest is None else open_manifest(expected.manifest)
    unchecked = _not_compared(folder) if expected.base is None else ()
    if opened is None:
        if expected.signatures != 0:
            faults.append("the sites' signatures cannot be checked without the run's manifest; give its file")
        faults += _stray_faults(folder)
        unchecked += (_NO_MANIFEST,)
        return ReleaseCheck(release=release, manifest=None, faults=_one_line_each(faults), unchecked=unchecked)
    manifest, digest = opened
    faults += _manifest_faults(release, manifest, digest)
    if inside is not None and inside[1] != digest:
        faults.append(f"{MANIFEST_FILE}: is not the manifest of the run that the release is of")
    words, found = read_words(folder, release, manifest)
    checked = _with_words(release, manifest, words, due=expected.signatures)
    return replace(checked, faults=_one_line_each([*faults, *found, *checked.faults]), unchecked=unchecked)


def read_words(folder: ReleaseFolder, release: Release, manifest: Manifest) -> tuple[tuple[SiteWord, ...], list[str]]:
    """The sites' words that are in order, and a fault for every other thing in the folder of signatures."""
    places = {signature_file(release, manifest, place): place for place in range(len(manifest.roster))}
    words, faults = [], []
    for name in folder.signature_names():
        source = f"{SIGNATURES}/{name}"
        if name not in places:
            faults.append(f"{source}: of nobody in the run's roster")
            continue
        try:
            data = folder.read(source, most=MAX_WORD_BYTES)
            word = parse_word(data, key=manifest.roster[places[name]].key, source=source)
        except ReleaseError as error:
            faults.append(str(error))
            continue
        if wrong := list(_word_faults(word, release, manifest, places[name])):
            faults += [f"{source}: {fault}" for fault in wrong]
        else:
            words.append(word)
    return tuple(words), faults


def _read_manifest(path: Path) -> bytes:
    return ReleaseFolder(path.parent).read(path.name, most=MAX_SIGNED_BYTES)


def _manifest_inside(folder: ReleaseFolder, faults: list[str]) -> tuple[Manifest, bytes] | None:
    """The release's own copy and its digest; None if it has none, or one that adds to the faults."""
    try:
        signed = folder.signed_manifest()
        return None if signed is None else open_manifest(signed)
    except (ReleaseError, ManifestError, ConfigErrors) as error:
        faults.append(f"{MANIFEST_FILE}: {error}")
        return None


def _names(inside: tuple[Manifest, bytes] | None) -> tuple[str, ...]:
    """Of the roster, as far as it is public."""
    return () if inside is None else tuple(member.name for member in inside[0].roster)


def _one_line_each(faults: list[str]) -> tuple[str, ...]:
    """Names and words in a release are a stranger's: none may move the cursor, or pass for a line of ours."""
    return tuple(printable(" ".join(fault.splitlines())) for fault in faults)


def _stray_faults(folder: ReleaseFolder) -> Iterator[str]:
    """Whatever lies among the signatures and cannot be one; whether one is right, only the manifest's keys tell."""
    numbered = {numbered_signature(place) for place in range(MAX_INSTITUTIONS)}
    for name in folder.signature_names():
        source = f"{SIGNATURES}/{name}"
        if name not in numbered:
            yield f"{source}: is not part of the release; nobody signed it"
            continue
        try:
            folder.read(source, most=MAX_WORD_BYTES)
        except ReleaseError as error:
            yield str(error)


def _with_words(release: Release, manifest: Manifest, words: tuple[SiteWord, ...], *, due: int | None) -> ReleaseCheck:
    names = [signature_file(release, manifest, place) for place in range(len(manifest.roster))]
    signers = {names[word.place] for word in words}
    unsigned = tuple(name for name in names if name not in signers)
    faults: tuple[str, ...] = ()
    if len(words) < (due := len(names) if due is None else due):
        faults = (f"{len(words)} institutions signed, {due} are wanted; missing: {', '.join(unsigned)}",)
    return ReleaseCheck(
        release=release,
        manifest=manifest,
        faults=faults,
        signed=tuple(name for name in names if name in signers),
        unsigned=unsigned,
    )


def _word_faults(word: SiteWord, release: Release, manifest: Manifest, place: int) -> Iterator[str]:
    if word.release != release.digest().hex():
        yield f"is about release {word.release}, not this one"
    if word.place != place or word.institution not in {None, manifest.roster[place].name}:
        yield "is of another institution than the file's name says"
    if word.attempts > release.privacy.sent.attempts:
        yield f"contributed {word.attempts} times; the release says that {release.privacy.sent.attempts} were asked for"


def _manifest_faults(release: Release, manifest: Manifest, digest: bytes) -> Iterator[str]:
    config = manifest.config
    pairs = {
        "manifest": (release.manifest, digest.hex()),
        "coordinator": (release.coordinator, manifest.coordinator),
        "name": (release.name, config.name),
        "base": (release.base, manifest.base_digest),
        "adapter_spec": (release.adapter_spec, manifest.adapter_digest),
        "dimension": (release.dimension, manifest.dimension),
        "rounds_planned": (release.rounds_planned, config.rounds),
        "code_version": (release.code_version, manifest.code_version),
        "institutions": (release.institutions, len(manifest.roster)),
    }
    yield from (f"{name}: {said}; the manifest says {due}" for name, (said, due) in pairs.items() if said != due)
    if release.rounds > config.rounds:
        yield f"rounds: {release.rounds}; the manifest has {config.rounds}"
    if release.privacy.sent.attempts < release.rounds:
        yield f"attempts: {release.privacy.sent.attempts}, fewer than the {release.rounds} rounds that were done"
    if any(each.place >= len(manifest.roster) for each in release.logs):
        yield "logs: of an institution that is not in the roster"
    places = [each.place for each in release.logs]
    if places != sorted(set(places)):
        yield "logs: wanted each institution once, by place"
    yield from _name_faults(release, manifest)
    try:
        yield from _privacy_faults(release.privacy, manifest)
    except DarkroomError as error:
        yield f"no ε can be worked out for this run: {error}"


def _name_faults(release: Release, manifest: Manifest) -> Iterator[str]:
    """No institution is named that did not take part, or that is not to be named."""
    names = {member.name for member in manifest.roster} if release.roster == "public" else set()
    for each in release.card.data if release.card else ():
        if each.institution is not None and each.institution not in names:
            yield f"card.data: names {each.institution}, which is not in the roster, or the roster is not public"


def _privacy_faults(stated: StatedPrivacy, manifest: Manifest) -> Iterator[str]:
    """Every ε is worked out here from the manifest and the number of attempts; nobody is believed."""
    plan = private_plan(manifest.config)
    if plan is None:
        yield "the run has no differential privacy, and the release promises some"
        return
    if stated.sent.attempts > plan.attempts:
        yield f"attempts: {stated.sent.attempts}; the noise is sized for {plan.attempts}"
    due = stated_privacy(plan.report(stated.sent.attempts), plan.report(plan.attempts))
    for name in ("unit", "delta", "secure_aggregation"):  # the others are the same in every release
        if getattr(stated, name) != getattr(due, name):
            yield f"privacy.{name}: {getattr(stated, name)}; worked out here it is {getattr(due, name)}"
    yield from _epsilon_faults("sent", stated.sent, due.sent)
    yield from _epsilon_faults("planned", stated.planned, due.planned)


def _epsilon_faults(name: str, stated: StatedEpsilon, due: StatedEpsilon) -> Iterator[str]:
    if stated.attempts != due.attempts:
        yield f"privacy.{name}.attempts: {stated.attempts}; wanted {due.attempts}"
    for against in ("server", "institutions", "public", "fallback"):
        said, ours = (math.inf if (value := getattr(one, against)) is None else value for one in (stated, due))
        if said < ours * (1 - _TOLERANCE):
            yield f"privacy.{name}.{against}: ε = {said:.6g} is stated; worked out here it is {ours:.6g}"


def _content_faults(folder: ReleaseFolder, release: Release, base: Path | None, names: Sequence[str]) -> Iterator[str]:
    """What is inside the files, whose digests are right already: the adapter in each of its forms, words and card.

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
        yield from _sentence_faults(folder, release, names)
    except ReleaseError as error:
        yield str(error)


def _not_compared(folder: ReleaseFolder) -> tuple[str, ...]:
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


def _sentence_faults(folder: ReleaseFolder, release: Release, names: Sequence[str]) -> Iterator[str]:
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
