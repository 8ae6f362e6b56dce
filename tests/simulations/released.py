"""A finished run of three real sites, and releases of it."""

from __future__ import annotations

import datetime as dt
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from common.crypto.primitives import Label
from common.release.card_facts import CardFacts
from common.release.folder import ReleaseFolder
from common.release.statement import Release, file_bytes
from server.release.release import ReleasePlan, RunLeft, make_release
from tests.simulations.vault_sites import COORDINATOR, VaultSites, make_vault_sites

if TYPE_CHECKING:
    from pathlib import Path

    from common.crypto.primitives import Identity

NOW = dt.datetime(2026, 3, 1, 12, 0, tzinfo=dt.UTC)


@dataclass(frozen=True)
class FinishedRun:
    sites: VaultSites

    @property
    def left(self) -> RunLeft:
        return RunLeft(signed=self.sites.signed, identity=COORDINATOR, directory=self.sites.root / "coordinator")

    def plan(self, out: Path, **changes: Any) -> ReleasePlan:
        given: dict[str, Any] = {"facts": CardFacts(), "roster": "public", "now": lambda: NOW, **changes}
        return ReleasePlan(base=self.sites.root / "base", out=out, **given)

    def release(self, out: Path, **changes: Any) -> ReleaseFolder:
        make_release(self.left, self.plan(out, **changes))
        return ReleaseFolder(out)


def finished_run(root: Path, *, rounds: int = 2, train: Literal["B", "AB", "core"] = "AB") -> FinishedRun:
    sites = make_vault_sites(root, rounds=rounds, train=train)
    with sites.serving():
        sites.lead()
    return FinishedRun(sites)


def copied(folder: ReleaseFolder, to: Path) -> ReleaseFolder:
    shutil.copytree(folder.root, to, symlinks=True)
    return ReleaseFolder(to)


def restated(folder: ReleaseFolder, *, signer: Identity = COORDINATOR, **changes: Any) -> ReleaseFolder:
    """The folder with other things in its statement, signed again, the files' digests brought up to date."""
    old = msgspec.json.decode((folder.root / "release.json").read_bytes(), type=Release)
    if "files" not in changes:
        changes["files"] = tuple(folder.describe(file.name) for file in old.files)
    new = msgspec.structs.replace(old, **changes)
    signature = signer.sign(Label.RELEASE_SIGNED, new.digest()).hex()
    data = file_bytes(msgspec.structs.replace(new, signature=signature))
    (folder.root / "release.json").write_bytes(data)
    return folder
