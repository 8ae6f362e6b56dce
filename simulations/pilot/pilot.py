"""A pilot: a whole federation on one machine, every party a process and a folder of its own, by the users' commands.

Requests, join files, TLS, vaults, stewards, a private run with masked sums, a signed release, a picture. Everything
that was said is kept in the pilot's folder.

Notices that a run will not finish, so that nobody waits for it to its deadline.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from client.drawing.credentials import AUTHORITY_FILE
from common.adapter.model import open_base
from common.errors import DarkroomError
from common.host.flower_commands import program
from common.host.supervision import Supervisor
from server.federation.directory import FederationDirectory
from server.federation.run_files import RunFiles
from server.federation.run_status import run_status
from server.run.leadership import is_led
from simulations.pilot.processes import ROOT, call, client, free_ports, server, server_command
from simulations.pilot.site import PilotSite, Sent, SiteUsers
from simulations.pilot.users import why_not_separate
from simulations.scenario.medical import build_institutions
from simulations.scenario.scenario import load_scenario

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from common.config import RunConfig
    from common.host.supervision import Command
    from server.run.leadership import Standing


LEADERLESS_SECONDS: Final = 60.0
"""A server app takes seconds to start; one that cannot, never leads."""


class RunWatch:
    """Watches one run from its start on."""

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
    sites: tuple[PilotSite, ...]


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
        ports = free_ports(2 + len(plan.folders))
        self._plan = plan
        self._say = say
        self._start = time.monotonic()
        self._address, self._superlink_port = f"127.0.0.1:{ports[0]}", ports[1]
        self._federation = FederationDirectory(plan.directory / "coordinator")
        self._log = plan.directory / "commands.log"
        self._together = why_not_separate([plan.directory.parent])
        self._sites = tuple(
            PilotSite(
                name=name,
                root=plan.directory / name,
                pictures=plan.folders[name],
                port=port,
                users=None if self._together else SiteUsers.numbered(number),
            )
            for number, (name, port) in enumerate(zip(sorted(plan.folders), ports[2:], strict=True))
        )

    def run(self) -> PilotResult:
        """All of it.

        Raises:
            DarkroomError: A step failed; which one, and what was said.

        """
        if self._plan.directory.exists() and any(self._plan.directory.iterdir()):
            raise DarkroomError(f"{self._plan.directory}: is not empty; give a new folder, or remove it")
        fingerprint = self._make_federation()
        self._make_sites()
        bundle = self._approve_sites()
        manifest = self._agree(fingerprint)
        self._approve_run(manifest)
        joins = self._hand_over(bundle, fingerprint)
        commands = [server_command("up", self._federation.root, "up", str(self._federation.root))]
        commands += [site.steward() for site in self._sites]
        with Supervisor(commands, stop_seconds=_STOP_SECONDS) as first:
            self._wait("stewards and listener", lambda: self._is_up(first), _UP_SECONDS)
            with Supervisor(joins, stop_seconds=_STOP_SECONDS) as second:
                self._lead(first, second)
        return self._finish()

    def _make_federation(self) -> str:
        self._tell("the coordinator makes a federation")
        place = ("--listen", "127.0.0.1", "--superlink-port", str(self._superlink_port))
        root = str(self._federation.root)
        said = server(self._log, "init", root, "--name", "Pilot", "--address", self._address, *place)
        return said.rpartition("fingerprint:")[2].strip()

    def _make_sites(self) -> None:
        digest = open_base(str(self._plan.base)).digest
        privacy = self._plan.config.privacy
        for site in self._sites:
            client(self._log, "init", str(site.root), "--name", site.name)
            contact = f"it@{site.name}.example"
            client(self._log, "request", "--name", site.name, "--contact", contact, "--directory", str(site.root))
            site.fill_in(
                base=site.copy_base(self._plan.base),
                base_digest=digest,
                coordinator=self._federation.identity().public.hex(),
                unit="image" if privacy == "none" else privacy.unit,
            )
            count = site.fill_vault(self._log)
            self._tell(f"{site.name}: site, keys, request, and a vault of {count} pictures to train with")

    def _approve_sites(self) -> Path:
        built = self._plan.directory / "bundle"
        built.mkdir()
        call(self._log, program("flwr"), "build", "--app", str(ROOT), cwd=built)
        (bundle,) = built.glob("*.fab")
        requests = [str(site.request_file) for site in self._sites]
        root = str(self._federation.root)
        server(self._log, "approve", *requests, "--bundle", str(bundle), "--directory", root, "--yes")
        self._tell("the coordinator approves the requests and writes join files")
        return bundle

    def _agree(self, fingerprint: str) -> Path:
        self._tell(f"fingerprint that was told by telephone: {fingerprint}")
        files = self._files()
        config = self._plan.directory / "run.toml"
        config.write_bytes(msgspec.toml.encode(_without_none(msgspec.to_builtins(self._plan.config))))
        place = ("--directory", str(self._federation.root))
        self._say(server(self._log, "manifest", "new", str(config), "--base", str(self._plan.base), *place))
        server(self._log, "manifest", "sign", files.name, *place)
        return files.manifest_file

    def _approve_run(self, manifest: Path) -> None:
        for site in self._sites:
            site.name_institutions([each.key for each in self._sites])
            client(self._log, "approve", str(manifest), "--config", str(site.site_file), "--yes")
            self._tell(f"{site.name} approves the run")

    def _hand_over(self, bundle: Path, fingerprint: str) -> list[Command]:
        """Send each site its files and let every process run as a user of its own, if root starts them."""
        joins = []
        for site in self._sites:
            join_file = self._federation.root / "join" / f"{site.name}.join"
            received = site.receive(Sent(join_file=join_file, bundle=bundle, fingerprint=fingerprint), self._log)
            joins.append(site.supernode(received, allow_root=os.geteuid() == 0))
        users = f"one user ({self._together})" if self._together else "a user each for steward and SuperNode"
        self._tell(f"the sites' processes run as {users}")
        return joins

    def _is_up(self, processes: Supervisor) -> bool:
        _check(processes)
        registered = len(list((self._federation.root / "nodes").glob("*.id")))
        return registered == len(self._sites) and all(site.serves() for site in self._sites)

    def _lead(self, *processes: Supervisor) -> None:
        files = self._files()
        place = ("--directory", str(self._federation.root))
        server(self._log, "run", "start", files.name, *place)
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
            self._wait("the run's end", finished, self._plan.run_seconds)
            time.sleep(2)  # the last checkpoint follows the last row
            self._say(server(self._log, "run", "status", files.name, *place))
        finally:
            server(self._log, "run", "logs", files.name, *place)

    def _finish(self) -> PilotResult:
        release, pictures = self._plan.directory / "release", self._plan.directory / "pictures"
        self._release(release)
        keys = self._sites[0].root / "pictures"
        client(self._log, "picture", "key", str(keys), "--institution", self._sites[0].name)
        drawn = ("--prompt", self._plan.prompt, "--out", str(pictures), "--sign-with", str(keys), "--label")
        client(self._log, "generate", *self._base(), "--adapter", str(release), *drawn)
        for path in sorted(pictures.glob("*.png")):
            self._say(client(self._log, "picture", "verify", str(path), "--authority", str(keys / AUTHORITY_FILE)))
        self._tell(f"release in {release}, a picture in {pictures}, all logs below {self._plan.directory}")
        return PilotResult(files=self._files(), release=release, pictures=pictures, sites=self._sites)

    def _release(self, folder: Path) -> None:
        """Made by the coordinator, signed by every site, and checked by a stranger who knows the coordinator's key."""
        place = ("--directory", str(self._federation.root))
        made = ("--out", str(folder), "--public-roster", *place)
        server(self._log, "release", "make", self._files().name, *self._base(), *made)
        for site in self._sites:
            client(self._log, "countersign", str(folder), "--config", str(site.site_file), "--yes")
            self._tell(f"{site.name} signs the release")
        key = self._federation.identity().public.hex()
        self._say(client(self._log, "release", "verify", str(folder), "--coordinator", key))

    def _base(self) -> tuple[str, str]:
        return "--base", str(self._plan.base)

    def _files(self) -> RunFiles:
        return RunFiles(self._federation, self._plan.config.name)

    def _wait(self, what: str, condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise DarkroomError(f"{what}: not within {seconds:.0f} s; see the logs below {self._plan.directory}")
            time.sleep(0.5)

    def _tell(self, what: str) -> None:
        self._say(f"[{time.monotonic() - self._start:5.0f} s] {what}")


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
