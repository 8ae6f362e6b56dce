"""A finished run of three real sites, and releases of it."""

from __future__ import annotations

import datetime as dt
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.release_folder import ReleaseFolder
from server.model_card import CardFacts
from server.release import ReleasePlan, RunLeft, make_release
from tests.simulations.vault_sites import COORDINATOR, VaultSites, make_vault_sites

if TYPE_CHECKING:
    from pathlib import Path

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


def finished_run(root: Path, *, rounds: int = 2) -> FinishedRun:
    sites = make_vault_sites(root, rounds=rounds)
    with sites.serving():
        sites.lead()
    return FinishedRun(sites)


def copied(folder: ReleaseFolder, to: Path) -> ReleaseFolder:
    shutil.copytree(folder.root, to, symlinks=True)
    return ReleaseFolder(to)
