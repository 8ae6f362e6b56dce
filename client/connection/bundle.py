"""The app bundle that a site's join file names, as a file from elsewhere and as Flower has installed it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.errors import ProvisioningError
from common.host.app_bundle import PROJECT, bundle_digest, folder_ending, read_content

if TYPE_CHECKING:
    from pathlib import Path

    from common.provisioning import JoinFile


def read_named(path: Path, join: JoinFile) -> bytes:
    """The bytes that the join file names.

    Raises:
        ProvisioningError: The file cannot be read, is too large, or holds others.

    """
    content = read_content(path)
    if (got := bundle_digest(content)) != join.bundle:
        raise ProvisioningError(f"{path}: its digest is {got}; the join file names {join.bundle}")
    return content


def holds_bundle(apps: Path, digest: str) -> bool:
    """Whether Flower's folder of apps has the bundle with this digest, ``sha256:…``, in a folder that is no link.

    Raises:
        OSError: It cannot be looked at.

    """
    if apps.is_symlink():
        return False
    found = [path for path in apps.iterdir() if path.name.endswith(folder_ending(digest))]
    return len(found) == 1 and not found[0].is_symlink() and (found[0] / PROJECT).is_file()
