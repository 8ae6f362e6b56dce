"""The app bundle that all sites of a federation run: read and checked before anything is replaced by it."""

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

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_PACKED_BYTES: Final = 16 << 20
MAX_BYTES: Final = 64 << 20
"""Unpacked; a bundle is source code, some hundred KiB."""
_MAX_FILES: Final = 5000
_PROJECT: Final = "pyproject.toml"
_DAMAGED: Final = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, ValueError, OSError)
# RuntimeError: encrypted; its kind NotImplementedError: packed in a way that Python does not know
_REFUSED: Final = (*_DAMAGED, RuntimeError)


class _App(msgspec.Struct, frozen=True):
    publisher: str


class _Flower(msgspec.Struct, frozen=True):
    app: _App


class _Tool(msgspec.Struct, frozen=True):
    flwr: _Flower


class _Project(msgspec.Struct, frozen=True):
    name: str
    version: str


class _Described(msgspec.Struct, frozen=True):
    """What Flower needs of a pyproject.toml to install a bundle."""

    project: _Project
    tool: _Tool


@dataclass(frozen=True, slots=True)
class AppBundle:
    """A bundle and its files; made by :func:`parse_bundle` alone."""

    content: bytes = field(repr=False)
    files: tuple[tuple[PurePosixPath, bytes], ...] = field(repr=False)

    @property
    def digest(self) -> str:
        """What join files name."""
        return f"sha256:{hashlib.sha256(self.content).hexdigest()}"

    def unpack(self, folder: Path) -> None:
        """Write the files into a folder that does not exist yet."""
        folder.mkdir(mode=0o700)
        for name, data in self.files:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def read_bundle(path: Path) -> AppBundle:
    """The bundle in a file.

    Raises:
        ProvisioningError: It cannot be read, or is none.

    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_PACKED_BYTES + 1)
    except OSError as error:
        raise ProvisioningError(f"{path}: cannot be read ({error.strerror})") from error
    return parse_bundle(content, source=str(path))


def parse_bundle(content: bytes, *, source: str) -> AppBundle:
    """A bundle of a Flower app.

    Raises:
        ProvisioningError: Too large, damaged, encrypted, no Flower app's, or with a file that would land elsewhere.

    """
    if len(content) > MAX_PACKED_BYTES:
        raise ProvisioningError(f"{source}: more than {MAX_PACKED_BYTES >> 20} MiB; an app bundle is source code alone")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as bundle:
            files = tuple(_unpacked(bundle))
        _check_described(dict(files).get(PurePosixPath(_PROJECT)))
    except _REFUSED as error:
        raise ProvisioningError(f"{source}: not an app bundle: {error}; make one with: flwr build") from error
    return AppBundle(content=content, files=files)


def _unpacked(bundle: zipfile.ZipFile) -> Iterator[tuple[PurePosixPath, bytes]]:
    entries = [entry for entry in bundle.infolist() if not entry.is_dir()]
    # zipfile never gives more of an entry than this says
    if len(entries) > _MAX_FILES or sum(entry.file_size for entry in entries) > MAX_BYTES:
        raise ValueError(f"more than {_MAX_FILES} files or {MAX_BYTES >> 20} MiB when unpacked")
    names = [PurePosixPath(entry.filename) for entry in entries]
    if len(set(names)) < len(names):
        raise ValueError("two files have one name")
    for name, entry in zip(names, entries, strict=True):
        if not name.parts or name.is_absolute() or ".." in name.parts or "\\" in entry.filename:
            raise ValueError(f"{entry.filename!r} would lie outside")
        yield name, bundle.read(entry)


def _check_described(project: bytes | None) -> None:
    if project is None:
        raise ValueError(f"there is no {_PROJECT} in it")
    try:
        msgspec.convert(tomllib.loads(project.decode()), _Described)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its {_PROJECT} is no Flower app's: {error}") from error
