"""A release as a folder: which files it has, and whether they are those that its statement names."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from common.adapter.export import CORE_FILE, SPEC_FILE, WEIGHTS_FILE
from common.manifest.manifest import MAX_MANIFEST_BYTES
from common.release.statement import MAX_RELEASE_BYTES, ReleasedFile, ReleaseError, parse_release

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from common.adapter.spec import AdapterSpec
    from common.manifest.manifest import Manifest
    from common.release.statement import Release, RosterKind

RELEASE_FILE: Final = "release.json"
SIGNATURES: Final = "signatures"
CARD_FILE: Final = "README.md"
MANIFEST_FILE: Final = "run.manifest"
MAX_SIGNED_BYTES: Final = MAX_MANIFEST_BYTES + 1024
_PIECE: Final = 1 << 20


def kohya_file(name: str) -> str:
    """The file that A1111 and ComfyUI show under the run's name."""
    return f"{name}.safetensors"


def file_names(name: str, spec: AdapterSpec, roster: RosterKind) -> tuple[str, ...]:
    """Every file of a release but its statement and signatures, sorted."""
    names = [CARD_FILE, SPEC_FILE, WEIGHTS_FILE, kohya_file(name)]
    names += [CORE_FILE] if spec.config.train == "core" else []
    names += [MANIFEST_FILE] if roster == "public" else []
    return tuple(sorted(names))


def signature_file(release: Release, manifest: Manifest, place: int) -> str:
    """Where the word of the institution at this place in the roster lies; only its number where names are private."""
    return f"{manifest.roster[place].name}.json" if release.roster == "public" else numbered_signature(place)


def numbered_signature(place: int) -> str:
    """The same where names are private."""
    return f"institution-{place + 1:04d}.json"


@dataclass(frozen=True, slots=True)
class ReleaseFolder:
    """Everything of one release; what is in it came from somebody else."""

    root: Path

    @property
    def signatures(self) -> Path:
        """The sites' words."""
        return self.root / SIGNATURES

    def signature_names(self) -> list[str]:
        """Whatever lies there, sorted."""
        return sorted(path.name for path in self.signatures.iterdir()) if self.signatures.is_dir() else []

    def release(self) -> Release:
        """The statement, signed by the coordinator that it names.

        Raises:
            ReleaseError: Missing, altered or not signed.

        """
        return parse_release(self.read(RELEASE_FILE, most=MAX_RELEASE_BYTES))

    def signed_manifest(self) -> bytes | None:
        """The signed manifest's bytes, where the roster is public."""
        path = self.root / MANIFEST_FILE
        return self.read(MANIFEST_FILE, most=MAX_SIGNED_BYTES) if path.exists() else None

    def read(self, name: str, *, most: int) -> bytes:
        """A file's bytes.

        Raises:
            ReleaseError: Missing, a link or no file, or larger than this.

        """
        path = self.root / name
        try:
            with os.fdopen(_open(path), "rb") as file:
                data = file.read(most + 1)
        except OSError as error:
            if not (self.root / RELEASE_FILE).exists():
                raise ReleaseError(
                    f"{self.root}: no release's folder, for there is no {RELEASE_FILE} in it; give the whole folder "
                    "that the coordinator sent"
                ) from error
            raise ReleaseError(f"{path}: cannot be read ({error.strerror}); wanted a release's own file") from error
        if len(data) > most:
            raise ReleaseError(f"{path}: more than {most} bytes; this is no such file")
        return data

    def describe(self, name: str) -> ReleasedFile:
        """A file's size and digest.

        Raises:
            ReleaseError: It cannot be read.

        """
        path, hashed, size = self.root / name, hashlib.sha256(), 0
        try:
            with os.fdopen(_open(path), "rb") as file:
                while piece := file.read(_PIECE):
                    hashed.update(piece)
                    size += len(piece)
        except OSError as error:
            raise ReleaseError(f"{path}: cannot be read ({error.strerror}); wanted a release's own file") from error
        return ReleasedFile(name=name, size=size, digest=f"sha256:{hashed.hexdigest()}")

    def file_faults(self, release: Release) -> Iterator[str]:
        """Each file that is missing, altered or not one of the release's; nothing is said of signatures."""
        named = {file.name: file for file in release.files}
        if list(named) != sorted(set(named)) or len(named) < len(release.files):
            yield "release.json: wanted each file once, sorted by name"
        if os.path.lexists(self.signatures) and (self.signatures.is_symlink() or not self.signatures.is_dir()):
            yield f"{SIGNATURES}: wanted a folder of its own"  # through a link a word would be written elsewhere
        for name in sorted({path.name for path in self.root.iterdir()} - set(named) - {RELEASE_FILE, SIGNATURES}):
            yield f"{name}: is not part of the release; nobody signed it"
        for name, file in named.items():
            try:
                found = self.describe(name)
            except ReleaseError as error:
                yield str(error)
                continue
            if found != file:
                yield f"{name}: {found.digest}, {found.size} bytes; wanted {file.digest}, {file.size} bytes"


def _open(path: Path) -> int:
    """Of an ordinary file: a link would show another content to each who looks, a pipe would never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "no ordinary file")
    return descriptor
