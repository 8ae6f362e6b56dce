"""Checking a release: everybody can, with the folder alone where the roster is public, else with the run's manifest.

Guarantee: no fault is found only if ``release.json`` is signed by the coordinator of the manifest; every file is the
one that it names, and there is no other; both adapter files and the digest hold the same adapter, made for the
manifest's base and specification; no ε stated is below the one that follows from the manifest for the attempts stated,
and the card has the section on privacy that follows from these; and as many institutions of the roster as were wanted
signed this very release with the roster's key. Whether so many attempts were sent is for the sites to say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from common.adapter.export import read_adapter_spec, read_adapter_vector
from common.adapter.kohya import kohya_bytes
from common.adapter.spec import vector_digest
from common.errors import AdapterError, ConfigErrors, DarkroomError, ManifestError
from common.manifest import open_manifest
from common.privacy.run_plan import private_plan
from common.release import MAX_WORD_BYTES, ReleaseError, SiteWord, StatedPrivacy, parse_word, stated_privacy
from common.release_folder import (
    CARD_FILE,
    MANIFEST_FILE,
    MAX_SIGNED_BYTES,
    SIGNATURES,
    ReleaseFolder,
    file_names,
    kohya_file,
    signature_file,
)
from common.release_words import privacy_section

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from common.manifest import Manifest
    from common.release import Release, StatedEpsilon

_MAX_CARD_BYTES: Final = 1 << 20
_TOLERANCE: Final = 1e-6
"""Share by which two machines' accountants may differ."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What the one who checks knows or wants.

    Attributes:
        manifest: the signed manifest's bytes, where they are not to be taken from the release or its roster is private.
        coordinator: public key, hex; None: whoever signed.
        signatures: fewest institutions that must have signed; None: all of the roster.
    """

    manifest: bytes | None = None
    coordinator: str | None = None
    signatures: int | None = None


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

    def lines(self) -> Iterator[str]:
        """For a person."""
        release = self.release
        yield f"release {release.digest().hex()} of run {release.name!r}, {release.time}"
        yield f"signed by coordinator {release.coordinator}"
        yield f"signed by {len(self.signed)} institutions: {', '.join(self.signed) or 'none'}"
        if self.unsigned:
            yield f"not signed: {', '.join(self.unsigned)}"
        if not self.faults:
            yield "in order: every file, figure and signature that was checked"

    def require_sound(self) -> None:
        """Refuse a release with faults.

        Raises:
            ReleaseError: Every fault.

        """
        if self.faults:
            raise ReleaseError("this release is not in order:\n" + "\n".join(f"  - {fault}" for fault in self.faults))


def check_release(folder: ReleaseFolder, expected: Expected) -> ReleaseCheck:
    """Look at everything; the faults are in the result.

    Raises:
        ReleaseError: There is no statement to begin with, or it is altered or not signed.
        ManifestError: The manifest that was given is altered or not signed.
        ConfigErrors: The same contradicts itself.

    """
    release = folder.release()
    faults = list(folder.file_faults(release))
    if not faults:  # what is inside an altered file says nothing
        faults += _content_faults(folder, release)
    if expected.coordinator not in {None, release.coordinator}:
        faults.append(f"signed by coordinator {release.coordinator}, wanted {expected.coordinator}")
    inside = _manifest_inside(folder, faults)
    opened = inside if expected.manifest is None else open_manifest(expected.manifest)
    if opened is None:
        if expected.signatures != 0:
            faults.append("the sites' signatures cannot be checked without the run's manifest; give its file")
        return ReleaseCheck(release=release, manifest=None, faults=tuple(faults))
    manifest, digest = opened
    faults += _manifest_faults(release, manifest, digest)
    if inside is not None and inside[1] != digest:
        faults.append(f"{MANIFEST_FILE}: is not the manifest of the run that the release is of")
    words, found = read_words(folder, release, manifest)
    return _with_words(release, manifest, (*faults, *found), words, due=expected.signatures)


def _manifest_inside(folder: ReleaseFolder, faults: list[str]) -> tuple[Manifest, bytes] | None:
    """The release's own copy and its digest; None if it has none, or one that adds to the faults."""
    try:
        signed = folder.signed_manifest()
        return None if signed is None else open_manifest(signed)
    except (ReleaseError, ManifestError, ConfigErrors) as error:
        faults.append(f"{MANIFEST_FILE}: {error}")
        return None


def _with_words(
    release: Release, manifest: Manifest, faults: tuple[str, ...], words: tuple[SiteWord, ...], *, due: int | None
) -> ReleaseCheck:
    names = [signature_file(release, manifest, place) for place in range(len(manifest.roster))]
    signers = {names[word.place] for word in words}
    unsigned = tuple(name for name in names if name not in signers)
    if len(words) < (due := len(names) if due is None else due):
        faults += (f"{len(words)} institutions signed, {due} are wanted; missing: {', '.join(unsigned)}",)
    return ReleaseCheck(
        release=release,
        manifest=manifest,
        faults=faults,
        signed=tuple(name for name in names if name in signers),
        unsigned=unsigned,
    )


def verify_release(
    root: Path, *, manifest: Path | None, coordinator: str | None, signatures: int | None
) -> Iterator[str]:
    """What both command lines do: say what was found, then refuse what is not in order.

    Raises:
        ReleaseError: Every fault.

    """
    signed = None if manifest is None else _read_manifest(manifest)
    expected = Expected(manifest=signed, coordinator=coordinator, signatures=signatures)
    found = check_release(ReleaseFolder(root), expected)
    yield from found.lines()
    found.require_sound()


def _read_manifest(path: Path) -> bytes:
    return ReleaseFolder(path.parent).read(path.name, most=MAX_SIGNED_BYTES)


def read_words(folder: ReleaseFolder, release: Release, manifest: Manifest) -> tuple[tuple[SiteWord, ...], list[str]]:
    """The sites' words that are in order, and a fault for every other thing in the folder of signatures."""
    places = {signature_file(release, manifest, place): place for place in range(len(manifest.roster))}
    words, faults = [], []
    present = sorted(path.name for path in folder.signatures.iterdir()) if folder.signatures.is_dir() else []
    for name in present:
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


def _word_faults(word: SiteWord, release: Release, manifest: Manifest, place: int) -> Iterator[str]:
    if word.release != release.digest().hex():
        yield f"is about release {word.release}, not this one"
    if word.place != place or word.institution not in {None, manifest.roster[place].name}:
        yield "is of another institution than the file's name says"
    if word.attempts > release.privacy.sent.attempts:
        yield f"contributed {word.attempts} times; the release says that {release.privacy.sent.attempts} were asked for"


def _content_faults(folder: ReleaseFolder, release: Release) -> Iterator[str]:
    """Adapter files and card against the statement; their digests are right already."""
    try:
        spec = read_adapter_spec(folder.root)
        wanted = file_names(release.name, spec, release.roster)
        if tuple(file.name for file in release.files) != wanted:
            yield f"wanted the files {', '.join(wanted)}"
            return
        if (spec.digest, spec.base_digest, spec.dimension, str(spec.family)) != (
            release.adapter_spec,
            release.base,
            release.dimension,
            release.family,
        ):
            yield "the adapter's specification is not the one that the release names"
        found = vector_digest(read_adapter_vector(folder.root, spec))
        if found != release.adapter:
            yield f"the adapter is {found}; the release says {release.adapter}"
        theirs = kohya_bytes(folder.root, spec, title=release.name)
    except AdapterError as error:
        yield str(error)
        return
    if folder.read(kohya_file(release.name), most=len(theirs)) != theirs:
        yield f"{kohya_file(release.name)}: holds another adapter than diffusers' file"
    card = folder.read(CARD_FILE, most=_MAX_CARD_BYTES).decode(errors="replace")
    if privacy_section(release) not in card:
        yield f"{CARD_FILE}: does not say of privacy what release.json says"


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
    }
    yield from (f"{name}: {said}; the manifest says {due}" for name, (said, due) in pairs.items() if said != due)
    if release.rounds > config.rounds:
        yield f"rounds: {release.rounds}; the manifest has {config.rounds}"
    if release.privacy.sent.attempts < release.rounds:
        yield f"attempts: {release.privacy.sent.attempts}, fewer than the {release.rounds} rounds that were done"
    if any(each.place >= len(manifest.roster) for each in release.logs):
        yield "logs: of an institution that is not in the roster"
    try:
        yield from _privacy_faults(release.privacy, manifest)
    except DarkroomError as error:
        yield f"no ε can be worked out for this run: {error}"


def _privacy_faults(stated: StatedPrivacy, manifest: Manifest) -> Iterator[str]:
    """Every ε is worked out here from the manifest and the number of attempts; nobody is believed."""
    plan = private_plan(manifest.config)
    if plan is None:
        yield "the run has no differential privacy, and the release promises some"
        return
    if stated.sent.attempts > plan.attempts:
        yield f"attempts: {stated.sent.attempts}; the noise is sized for {plan.attempts}"
    due = stated_privacy(plan.report(stated.sent.attempts), plan.report(plan.attempts))
    for name in ("unit", "relation", "delta", "secure_aggregation"):
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
