"""The app bundle that all sites of a federation run: read and checked before anything is unpacked or replaced by it."""

from __future__ import annotations

import hashlib
import io
import lzma
import struct
import tomllib
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

import msgspec

from common.errors import ProvisioningError
from common.field_words import decoding_fault

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_PACKED_BYTES: Final = 16 << 20
MAX_BYTES: Final = 64 << 20
"""Unpacked; a bundle is source code, some hundred KiB."""
MAX_FILES: Final = 5000
PROJECT: Final = "pyproject.toml"
_MAX_PROJECT_BYTES: Final = 1 << 20
_DIGITS: Final = 8
"""Of the digest, in the names of a bundle's file and folder."""
_REFUSED: Final = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError),
    # an encrypted member, an unknown compression, and TOML that is nested too deeply are all RuntimeErrors
    *(RuntimeError, LookupError, TypeError, AttributeError, ValueError, ArithmeticError),
)
"""What :mod:`zipfile` and :mod:`tomllib` raise over hostile bytes."""


class _App(msgspec.Struct, frozen=True):
    publisher: str


class _Flower(msgspec.Struct, frozen=True):
    app: _App


class _Tool(msgspec.Struct, frozen=True):
    flwr: _Flower


class _Project(msgspec.Struct, frozen=True):
    name: str
    version: str


class Described(msgspec.Struct, frozen=True):
    """What Flower needs of a pyproject.toml to install a bundle."""

    project: _Project
    tool: _Tool


@dataclass(frozen=True, slots=True)
class AppBundle:
    """A bundle and its files; made by :func:`parse_bundle` alone."""

    content: bytes = field(repr=False)
    files: tuple[tuple[PurePosixPath, bytes], ...] = field(repr=False)
    described: Described

    @property
    def digest(self) -> str:
        """What join files name."""
        return bundle_digest(self.content)

    @property
    def file_name(self) -> str:
        """The one name under which Flower installs it: publisher, app, version and the digest's first digits."""
        project, publisher = self.described.project, self.described.tool.flwr.app.publisher
        version = project.version.replace(".", "-")
        return PurePosixPath(f"{publisher}.{project.name}.{version}{folder_ending(self.digest)}.fab").name

    def unpack(self, folder: Path) -> None:
        """Write the files into a folder that does not exist yet."""
        folder.mkdir(mode=0o700)
        for name, data in self.files:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def bundle_digest(content: bytes) -> str:
    """``sha256:`` and the hexadecimal digest, as join files have it."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def folder_ending(digest: str) -> str:
    """How the name of the folder ends into which Flower unpacks the bundle with this digest."""
    return f".{digest.removeprefix('sha256:')[:_DIGITS]}"


def read_content(path: Path) -> bytes:
    """A file's bytes, not yet looked into.

    Raises:
        ProvisioningError: It cannot be read, or is too large for a bundle.

    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_PACKED_BYTES + 1)
    except OSError as error:
        raise ProvisioningError(f"{path}: cannot be read ({error.strerror})") from error
    _check_size(content, source=str(path))
    return content


def _check_size(content: bytes, *, source: str) -> None:
    if len(content) > MAX_PACKED_BYTES:
        raise ProvisioningError(f"{source}: more than {MAX_PACKED_BYTES >> 20} MiB; an app bundle is source code alone")


def parse_bundle(content: bytes, *, source: str) -> AppBundle:
    """A bundle of a Flower app.

    Raises:
        ProvisioningError: Too large, damaged, encrypted, no Flower app's, or with a file that would land elsewhere.

    """
    _check_size(content, source=source)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as bundle:
            files = tuple(_unpacked(bundle))
        described = _described(dict(files).get(PurePosixPath(PROJECT)))
    except _REFUSED as error:
        raise ProvisioningError(
            f"{source}: not an app bundle: {error}; make one with: flwr build, or ask the coordinator for it again"
        ) from error
    return AppBundle(content=content, files=files, described=described)


def _unpacked(bundle: zipfile.ZipFile) -> Iterator[tuple[PurePosixPath, bytes]]:
    entries = [entry for entry in bundle.infolist() if not entry.is_dir()]
    # zipfile never gives more of an entry than this says
    if len(entries) > MAX_FILES or sum(entry.file_size for entry in entries) > MAX_BYTES:
        raise ValueError(f"more than {MAX_FILES} files or {MAX_BYTES >> 20} MiB when unpacked")
    names = [PurePosixPath(entry.filename) for entry in entries]
    if len(set(names)) < len(names):
        raise ValueError("two files have one name")
    for name, entry in zip(names, entries, strict=True):
        if not name.parts or name.is_absolute() or ".." in name.parts or "\\" in entry.filename:
            raise ValueError(f"{entry.filename!r} would lie outside")
        yield name, bundle.read(entry)


def _described(project: bytes | None) -> Described:
    if project is None:
        raise ValueError(f"there is no {PROJECT} in it")
    if len(project) > _MAX_PROJECT_BYTES:
        raise ValueError(f"its {PROJECT} is larger than {_MAX_PROJECT_BYTES >> 20} MiB")
    try:
        return msgspec.convert(tomllib.loads(project.decode()), Described)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its {PROJECT} is no Flower app's: {decoding_fault(error, Described)}") from error
