"""Starting and ending a run in Flower: the bundle that every site holds, with our files as its settings."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from common.durable_files import write_atomically
from common.errors import ProvisioningError
from common.host.app_bundle import parse_bundle
from common.host.file_lock import locked
from server.federation.node_names import with_names
from server.flower.superlink import CONNECTION, parse_flower
from server.run import leadership

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from common.host.app_bundle import AppBundle
    from server.federation.directory import FederationDirectory
    from server.federation.run_files import RunFiles
    from server.flower.superlink import Launch

_ENDED: Final = "finished"


class _Started(msgspec.Struct, frozen=True, rename="kebab"):
    success: bool
    run_id: str | None = None


class _Run(msgspec.Struct, frozen=True, rename="kebab"):
    run_id: str
    status: str


class _Runs(msgspec.Struct, frozen=True):
    runs: tuple[_Run, ...] = ()


@dataclass(frozen=True, slots=True)
class KeptBundle:
    """The app bundle in the federation's directory: the very bytes whose digest the join files name."""

    federation: FederationDirectory

    @property
    def file(self) -> Path:
        """The bundle, to be sent to sites."""
        return self.federation.root / "bundle.fab"

    @property
    def app(self) -> Path:
        """Its content, from which Flower makes the same bundle again: same files, same digest."""
        return self.federation.root / "app"

    def keep(self, content: bytes) -> str:
        """Keep a bundle in place of the last one; its digest.

        Raises:
            ProvisioningError: Not a bundle.

        """
        bundle = parse_bundle(content, source="bundle")
        with self.replacing(bundle):
            return bundle.digest

    @contextlib.contextmanager
    def replacing(self, bundle: AppBundle) -> Iterator[None]:
        """Keep a bundle once all within has succeeded; until then, and if it fails, the last one stays as it is."""
        staging, old = (self.federation.root / f".app.{secrets.token_hex(8)}.{kind}" for kind in ("partial", "old"))
        try:
            bundle.unpack(staging)
            yield
            if self.app.exists():
                self.app.rename(old)
            try:
                staging.rename(self.app)
                write_atomically(self.file, bundle.content)
            except BaseException:
                self._put_back(old)
                raise
        finally:
            for folder in (staging, old):
                shutil.rmtree(folder, ignore_errors=True)

    def _put_back(self, old: Path) -> None:
        shutil.rmtree(self.app, ignore_errors=True)
        if old.exists():
            old.rename(self.app)


@dataclass(frozen=True, slots=True)
class FlowerRun:
    """One run in Flower's hands."""

    launch: Launch
    files: RunFiles

    def start(self) -> str:
        """Start it, or go on from its last checkpoint; Flower's number of it.

        Raises:
            ManifestError: It has no signed manifest.
            ProvisioningError: It runs already, or Flower refused.

        """
        self._check_ready()
        with self._alone():
            if not self.has_ended():
                raise ProvisioningError(f"{self.files.name}: runs already; end it with darkroom-server run stop")
            return self._start()

    def start_again(self) -> str | None:
        """Start it if it is still wanted and Flower has given it up; Flower's number of it, or None.

        Raises:
            ManifestError: It has no signed manifest.
            ProvisioningError: Flower refused, or did not answer.

        """
        self._check_ready()
        with self._alone():
            # looked at within: since somebody saw that nobody leads it, a person may have stopped or started it
            is_due = leadership.is_wanted(self.files.directory) and self.has_ended()
            return self._start() if is_due else None

    def _check_ready(self) -> None:
        self.files.signed()
        if not (app := KeptBundle(self.files.federation).app).is_dir():
            raise ProvisioningError(f"{app}: no bundle; darkroom-server approve keeps the one that sites are given")

    def _alone(self) -> AbstractContextManager[int]:
        """One start or stop at a time.

        ``up`` must not start what a person is just starting, whose number nobody knows yet, nor what one is just
        stopping; and what a stop says of the run must not be said of the start that follows it.
        """
        return locked(self.files.root / "start.lock", wait_s="forever")

    def _start(self) -> str:
        directory = self.files.directory
        wanted = leadership.is_wanted(directory)
        leadership.want(directory)  # before it starts: one that fails at once is wanted no more
        try:
            number = self._hand_over(KeptBundle(self.files.federation).app)
        except ProvisioningError:
            if not wanted:
                leadership.want_no_more(directory)
            raise
        write_atomically(self.files.flower_file, number.encode())
        return number

    def _hand_over(self, app: Path) -> str:
        files = self.files
        settings = {
            "manifest": str(files.manifest_file),
            "identity": str(files.federation.file("coordinator.key")),
            "spec": str(files.spec_file),
            "directory": str(files.directory),
        }
        given = " ".join(f"{key}={json.dumps(value)}" for key, value in settings.items())
        said = self.launch.flwr("run", str(app), CONNECTION, "-c", given, "--format", "json")
        started = parse_flower(said, _Started)
        if not started.success or started.run_id is None:
            raise ProvisioningError(f"{files.name}: Flower did not start it: {said.strip()}")
        return started.run_id

    def status(self) -> str:
        """``pending``, ``starting``, ``running``, ``finished``; empty where Flower does not know it."""
        number = self.number()
        if not number:
            return ""
        runs = parse_flower(self.launch.flwr("list", CONNECTION, "--format", "json"), _Runs).runs
        return next((run.status.partition(":")[0] for run in runs if run.run_id == number), "")

    def has_ended(self) -> bool:
        """Whether Flower has nothing more to do with it, or never had."""
        return self.status() in {"", _ENDED}

    def stop(self) -> bool:
        """End it now; it can be started again and goes on from its last checkpoint. False: it had ended already.

        Raises:
            ProvisioningError: It was never started, or Flower refused.

        """
        directory = self.files.directory
        self._started()
        with self._alone():
            wanted = leadership.is_wanted(directory)
            leadership.want_no_more(directory)  # first: else it would be started again
            if not leadership.is_led(directory) and (not wanted or self.has_ended()):
                return wanted
            self.launch.flwr("stop", self._started(), CONNECTION)
            leadership.note(directory, "stopped", "by darkroom-server run stop")
        return True

    def log(self) -> str:
        """What the coordinator's loop said so far, over all starts; before it says anything, what Flower kept.

        The loop knows nodes by Flower's number alone; here each gets its site's name.
        """
        number = self._started()
        try:
            said = self.files.log_file.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            said = self.launch.flwr("log", number, CONNECTION, "--show")
        return self.named(said)

    def named(self, text: str) -> str:
        """What the loop says, with each site's name beside its node."""
        sites = ((self.launch.node_id(site.name), site.name) for site in self.files.federation.roster().site)
        return with_names(text, {int(number): name for number, name in sites if number.isdecimal()})

    def number(self) -> str:
        """Flower's number of the last start; empty before."""
        try:
            return self.files.flower_file.read_text(encoding="ascii", errors="replace")
        except FileNotFoundError:
            return ""

    def _started(self) -> str:
        if not (number := self.number()):
            raise ProvisioningError(f"{self.files.name}: was never started; darkroom-server run start does that")
        return number
