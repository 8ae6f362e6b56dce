"""An app bundle as a file from elsewhere: whether it is the one that was named, and what it would unpack to."""

from __future__ import annotations

import hashlib
import io
import lzma
import struct
import tomllib
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from common.errors import ProvisioningError

if TYPE_CHECKING:
    from common.provisioning import JoinFile

MAX_BUNDLE_BYTES: Final = 64 << 20
MAX_UNPACKED_BYTES: Final = 256 << 20
MAX_BUNDLE_FILES: Final = 10_000
_MAX_PROJECT_BYTES: Final = 1 << 20
_PROJECT: Final = "pyproject.toml"
_DIGITS: Final = 8
"""Of the digest, in the names of a bundle's file and folder."""
_NO_BUNDLE: Final = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError),
    # an encrypted member, an unknown compression, and TOML that is nested too deeply are all RuntimeErrors
    *(RuntimeError, LookupError, TypeError, AttributeError, ValueError, ArithmeticError),
)
"""What :mod:`zipfile` and :mod:`tomllib` raise over hostile bytes."""


def read_bundle(path: Path, join: JoinFile) -> bytes:
    """The bytes that the join file names.

    Raises:
        ProvisioningError: The file cannot be read, is too large, or holds others.

    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BUNDLE_BYTES + 1)
    except OSError as error:
        raise ProvisioningError(f"{path}: cannot be read ({error.strerror})") from error
    if len(content) > MAX_BUNDLE_BYTES:
        raise ProvisioningError(f"{path}: wanted a bundle of at most {MAX_BUNDLE_BYTES >> 20} MiB; this is larger")
    check_bundle(content, join, source=str(path))
    return content


def check_bundle(content: bytes, join: JoinFile, *, source: str) -> None:
    """Refuse other bytes than the join file names.

    Raises:
        ProvisioningError: They are others.

    """
    got = f"sha256:{hashlib.sha256(content).hexdigest()}"
    if got != join.bundle:
        raise ProvisioningError(f"{source}: its digest is {got}; the join file names {join.bundle}")


def bundle_file_name(content: bytes) -> str:
    """The one name under which Flower installs these bytes: publisher, app, version and the digest's first digits.

    Raises:
        ProvisioningError: Not a bundle, or one that would unpack to more than :data:`MAX_UNPACKED_BYTES` or
            :data:`MAX_BUNDLE_FILES`.

    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as bundle:
            _check_unpacked(bundle)
            project = tomllib.loads(bundle.read(_PROJECT).decode())
        publisher = str(project["tool"]["flwr"]["app"]["publisher"])
        name, version = str(project["project"]["name"]), str(project["project"]["version"])
    except _NO_BUNDLE as error:
        raise ProvisioningError(f"not an app bundle: {error!r}; ask the coordinator for the file again") from error
    digits = hashlib.sha256(content).hexdigest()[:_DIGITS]
    return Path(f"{publisher}.{name}.{version.replace('.', '-')}.{digits}.fab").name


def holds_bundle(apps: Path, digest: str) -> bool:
    """Whether Flower's folder of apps has the bundle with this digest, ``sha256:…``, in a folder that is no link.

    Raises:
        OSError: It cannot be looked at.

    """
    end = f".{digest.removeprefix('sha256:')[:_DIGITS]}"
    if apps.is_symlink():
        return False
    found = [path for path in apps.iterdir() if path.name.endswith(end)]
    return len(found) == 1 and not found[0].is_symlink() and (found[0] / _PROJECT).is_file()


def _check_unpacked(bundle: zipfile.ZipFile) -> None:
    """By the sizes that the archive states: :mod:`zipfile` never unpacks more of a file than that."""
    files = bundle.infolist()
    size = sum(each.file_size for each in files)
    if len(files) > MAX_BUNDLE_FILES or size > MAX_UNPACKED_BYTES:
        raise ProvisioningError(
            f"not an app bundle: {len(files)} files of {size >> 20} MiB when unpacked; "
            f"wanted at most {MAX_BUNDLE_FILES} of {MAX_UNPACKED_BYTES >> 20} MiB"
        )
    if bundle.getinfo(_PROJECT).file_size > _MAX_PROJECT_BYTES:
        raise ProvisioningError(f"not an app bundle: its {_PROJECT} is larger than {_MAX_PROJECT_BYTES >> 20} MiB")
