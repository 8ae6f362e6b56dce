"""A pilot: a whole federation on one machine, every party a process and a folder of its own, by the users' commands.

Requests, join files, TLS, vaults, stewards, a private run with masked sums, a signed release, a picture. Everything
that was said is kept in the pilot's folder.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from client.drawing.credentials import AUTHORITY_FILE
from common.adapter.model import open_base
from common.errors import DarkroomError
from common.host.supervision import Supervisor
from server.federation.run_status import run_status
from server.run.leadership import is_led
from simulations.pilot.local_federation import LocalFederation
from simulations.pilot.processes import client, server
from simulations.pilot.site import SiteUsers
from simulations.pilot.users import why_not_separate
from simulations.scenario.medical import build_institutions
from simulations.scenario.scenario import load_scenario

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from common.config import RunConfig
    from common.host.supervision import Command
    from server.federation.run_files import RunFiles
    from server.run.leadership import Standing
    from simulations.pilot.site import LocalSite

LEADERLESS_SECONDS: Final = 60.0
"""A server app takes seconds to start; one that cannot, never leads."""
_UP_SECONDS: Final = 180.0
_ROUND_SECONDS: Final = 300.0
_STOP_SECONDS: Final = 60.0
"""``up`` and ``join`` end processes of their own first."""


@dataclass(frozen=True, kw_only=True)
class PilotPlan:
    """What a pilot is made of."""

    directory: Path
    """New or empty."""
    base: Path
    folders: Mapping[str, Path]
    """Image folder by institution."""
    config: RunConfig
    prompt: str
    run_seconds: float
    """Longest that the run may take."""


@dataclass(frozen=True, kw_only=True)
class PilotResult:
    """What is left."""

    files: RunFiles = field(repr=False)
    release: Path
    """The adapter with its model card, signed by everybody."""
    pictures: Path
    sites: tuple[LocalSite, ...]


def demonstration(directory: Path, cache: Path, *, rounds: int) -> PilotPlan:
    """The three demonstration institutions on the small base, under differential privacy with masked sums."""
    scenario = load_scenario("three-institutions", rounds=rounds)
    made = build_institutions(cache / "institutions-48", cache / "sources", resolution=48)
    config = msgspec.structs.replace(scenario.run_config(), name="pilot", title="Three institutions on one machine")
    return PilotPlan(
        directory=directory,
        base=Path(scenario.base_path()),
        folders={each.name: each.train for each in made},
        config=config,
        prompt="a retina photo, optic disc",
        run_seconds=_ROUND_SECONDS * (rounds + 1),
    )


class Pilot:
    """One pilot, from an empty folder to a picture."""

    def __init__(self, plan: PilotPlan, say: Callable[[str], None]) -> None:
        """Nothing is made yet."""
        self._plan = plan
        self._say = say
        self._start = time.monotonic()
        self._together = why_not_separate([plan.directory.parent])
        self._local = LocalFederation(
            plan.directory,
            sorted(plan.folders),
            title="Pilot",
            run=plan.config.name,
            users=None if self._together else SiteUsers.numbered,
        )
        self._sites = tuple(self._local.sites.values())
        self._root = str(self._local.federation.root)

    def run(self) -> PilotResult:
        """All of it.

        Raises:
            DarkroomError: A step failed; which one, and what was said.

        """
        if self._plan.directory.exists() and any(self._plan.directory.iterdir()):
            raise DarkroomError(f"{self._plan.directory}: is not empty; give a new folder, or remove it")
        fingerprint = self._make_federation()
        self._make_sites()
        self._approve_sites()
        manifest = self._agree(fingerprint)
        self._approve_run(manifest)
        joins = self._hand_over(fingerprint)
        commands = [self._local.up(), *(site.steward() for site in self._sites)]
        with Supervisor(commands, stop_seconds=_STOP_SECONDS) as first:
            self._local.wait("stewards and listener", lambda: self._is_up(first), _UP_SECONDS)
            with Supervisor(joins, stop_seconds=_STOP_SECONDS) as second:
                self._lead(first, second)
        return self._finish()

    def _make_federation(self) -> str:
        self._tell("the coordinator makes a federation")
        place = ("--listen", "127.0.0.1", "--superlink-port", str(self._local.superlink_port))
        named = ("--name", self._local.title, "--address", self._local.address)
        said = self._server("init", self._root, *named, *place)
        return said.rpartition("fingerprint:")[2].strip()

    def _make_sites(self) -> None:
        digest = open_base(str(self._plan.base)).digest
        privacy = self._plan.config.privacy
        for site in self._sites:
            self._client("init", str(site.root), "--name", site.name)
            contact = f"it@{site.name}.example"
            self._client("request", "--name", site.name, "--contact", contact, "--directory", str(site.root))
            site.fill_in(
                base=site.copy_base(self._plan.base),
                base_digest=digest,
                coordinator=self._local.federation.identity().public.hex(),
                unit="image" if privacy == "none" else privacy.unit,
            )
            count = site.fill_vault(self._plan.folders[site.name], self._local.log)
            self._tell(f"{site.name}: site, keys, request, and a vault of {count} pictures to train with")

    def _approve_sites(self) -> None:
        bundle = self._local.build_bundle()
        requests = [str(site.root / f"{site.name}.request") for site in self._sites]
        self._server("approve", *requests, "--bundle", str(bundle), *self._place(), "--yes")
        self._tell("the coordinator approves the requests and writes join files")

    def _agree(self, fingerprint: str) -> Path:
        self._tell(f"fingerprint that was told by telephone: {fingerprint}")
        files = self._local.files
        config = self._plan.directory / "run.toml"
        config.write_bytes(msgspec.toml.encode(_without_none(msgspec.to_builtins(self._plan.config))))
        self._say(self._server("manifest", "new", str(config), *self._base(), *self._place()))
        self._server("manifest", "sign", files.name, *self._place())
        return files.manifest_file

    def _approve_run(self, manifest: Path) -> None:
        for site in self._sites:
            site.name_institutions([each.key for each in self._sites])
            self._client("approve", str(manifest), "--config", str(site.site_file), "--yes")
            self._tell(f"{site.name} approves the run")

    def _hand_over(self, fingerprint: str) -> list[Command]:
        """Send each site its files and let every process run as a user of its own, if root starts them."""
        joins = []
        for site in self._sites:
            sent = replace(self._local.sent(site.name), fingerprint=fingerprint)  # as it was told by telephone
            joins.append(site.supernode(site.receive(sent, self._local.log)))
        users = f"one user ({self._together})" if self._together else "a user each for steward and SuperNode"
        self._tell(f"the sites' processes run as {users}")
        return joins

    def _is_up(self, processes: Supervisor) -> bool:
        _check(processes)
        return self._local.is_registered() and all(site.serves() for site in self._sites)

    def _lead(self, *processes: Supervisor) -> None:
        files = self._local.files
        self._server("run", "start", files.name, *self._place())
        self._tell("the run is started; rounds follow")
        seen, watch = 0, RunWatch(files)

        def finished() -> bool:
            nonlocal seen
            for each in processes:
                _check(each)
            status = run_status(files)
            watch.check(status.standing)
            if status.round > seen:
                seen = status.round
                self._tell(f"round {status.round} of {status.rounds}: {status.sites} sites, {status.seconds:.1f} s")
            return status.round == status.rounds

        try:
            self._local.wait("the run's end", finished, self._plan.run_seconds)
            time.sleep(2)  # the last checkpoint follows the last row
            self._say(self._server("run", "status", files.name, *self._place()))
        finally:
            self._server("run", "logs", files.name, *self._place())

    def _finish(self) -> PilotResult:
        release, pictures = self._plan.directory / "release", self._plan.directory / "pictures"
        self._release(release)
        keys = self._sites[0].root / "pictures"
        self._client("picture", "key", str(keys), "--institution", self._sites[0].name)
        drawn = ("--prompt", self._plan.prompt, "--out", str(pictures), "--sign-with", str(keys), "--label")
        self._client("generate", *self._base(), "--adapter", str(release), *drawn)
        for path in sorted(pictures.glob("*.png")):
            self._say(self._client("picture", "verify", str(path), "--authority", str(keys / AUTHORITY_FILE)))
        self._tell(f"release in {release}, a picture in {pictures}, all logs below {self._plan.directory}")
        return PilotResult(files=self._local.files, release=release, pictures=pictures, sites=self._sites)

    def _release(self, folder: Path) -> None:
        """Made by the coordinator, signed by every site, and checked by a stranger who knows the coordinator's key."""
        made = ("--out", str(folder), "--public-roster", *self._place())
        self._server("release", "make", self._local.files.name, *self._base(), *made)
        for site in self._sites:
            self._client("countersign", str(folder), "--config", str(site.site_file), "--yes")
            self._tell(f"{site.name} signs the release")
        key = self._local.federation.identity().public.hex()
        self._say(self._client("release", "verify", str(folder), "--coordinator", key))

    def _base(self) -> tuple[str, str]:
        return "--base", str(self._plan.base)

    def _place(self) -> tuple[str, str]:
        return "--directory", self._root

    def _client(self, *words: str) -> str:
        return client(self._local.log, *words)

    def _server(self, *words: str) -> str:
        return server(self._local.log, *words)

    def _tell(self, what: str) -> None:
        self._say(f"[{time.monotonic() - self._start:5.0f} s] {what}")


class RunWatch:
    """Notices that a run will not finish, so that nobody waits for it to its deadline."""

    def __init__(self, files: RunFiles, *, now: Callable[[], float] = time.monotonic) -> None:
        """``now`` is in seconds of a clock that only runs forward."""
        self._files = files
        self._now = now
        self._led = now()

    def check(self, standing: Standing | None) -> None:
        """Call about once a second with what the run says of itself.

        Raises:
            DarkroomError: It has ended early, for the reason that is told, or nobody leads it.

        """
        if standing is not None and standing.state == "stopped":
            raise DarkroomError(f"{self._files.name}: has ended early: {standing.reason}")
        if is_led(self._files.directory):
            self._led = self._now()
        elif self._now() - self._led > LEADERLESS_SECONDS:
            log = self._files.federation.root / "logs" / "superexec.log"
            raise DarkroomError(
                f"{self._files.name}: nobody has led it for {LEADERLESS_SECONDS:.0f} s; its server app's log is {log}"
            )


def _check(processes: Supervisor) -> None:
    """A pilot has no use for restarts: whatever ends before it is told to has failed."""
    if ended := processes.ended():
        raise DarkroomError("\n".join(f"{command.name} ended; its log is {command.log}" for command in ended))


def _without_none(value: object) -> object:
    """TOML has no word for absent values."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value
