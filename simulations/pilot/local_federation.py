"""A federation on this machine's loopback: the coordinator's folder, the sites' beside it, and their processes."""

from __future__ import annotations

import datetime as dt
import time
from typing import TYPE_CHECKING

from common.errors import DarkroomError
from common.host.flower_commands import program
from common.provisioning import coordinator_fingerprint
from server.federation.directory import FederationConfig, FederationDirectory
from server.federation.run_files import RunFiles
from server.flower.runs import FlowerRun, KeptBundle
from server.flower.superlink import Launch
from simulations.pilot.processes import ROOT, call, free_ports, server_command
from simulations.pilot.site import LocalSite, Sent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from common.host.supervision import Command
    from common.provisioning import SiteRequest
    from simulations.pilot.site import SiteUsers


class LocalFederation:
    """A coordinator, its sites, and one run of theirs."""

    def __init__(
        self,
        directory: Path,
        names: Iterable[str],
        *,
        title: str,
        run: str,
        users: Callable[[int], SiteUsers] | None = None,
    ) -> None:
        """Nothing is made yet, but the ports are chosen.

        Args:
            directory: Holds a folder for each party.
            names: The sites'.
            title: The federation's name.
            run: The run's name.
            users: Of the site with this number; absent: all is done by whoever starts it.

        """
        names = tuple(names)
        public, self.superlink_port, *ports = free_ports(2 + len(names))
        self.directory = directory
        self.title = title
        self.address = f"127.0.0.1:{public}"
        self.log = directory / "commands.log"
        self.federation = FederationDirectory(directory / "coordinator")
        self.files = RunFiles(self.federation, run)
        self.sites = {
            name: LocalSite(name=name, root=directory / name, port=port, users=None if users is None else users(number))
            for number, (name, port) in enumerate(zip(names, ports, strict=True))
        }

    @property
    def launch(self) -> Launch:
        """The coordinator's processes."""
        return Launch(self.federation, self.federation.config())

    @property
    def run(self) -> FlowerRun:
        """The run in Flower's hands."""
        return FlowerRun(self.launch, self.files)

    def create(self) -> None:
        """The coordinator's folder, as ``darkroom-server init`` makes it."""
        config = FederationConfig(
            name=self.title, address=self.address, listen="127.0.0.1", superlink_port=self.superlink_port
        )
        self.federation.create(config, now=dt.datetime.now(dt.UTC))

    def approve(self, requests: Iterable[SiteRequest]) -> None:
        """Build the bundle, keep it, and let these sites in."""
        digest = KeptBundle(self.federation).keep(self.build_bundle().read_bytes())
        self.federation.approve(tuple(requests), bundle=digest)

    def build_bundle(self) -> Path:
        """This copy of the code as Flower's app bundle."""
        built = self.directory / "bundle"
        built.mkdir(parents=True)
        call(self.log, program("flwr"), "build", "--app", str(ROOT), cwd=built)
        (bundle,) = built.glob("*.fab")
        return bundle

    def sent(self, name: str) -> Sent:
        """What an approved site was sent, and heard by telephone."""
        return Sent(
            join_file=self.federation.root / "join" / f"{name}.join",
            bundle=KeptBundle(self.federation).file,
            fingerprint=coordinator_fingerprint(self.federation.identity().public),
        )

    def up(self) -> Command:
        """``darkroom-server up``."""
        return server_command("up", self.federation.root, "up", str(self.federation.root))

    def is_registered(self) -> bool:
        """Whether the SuperLink knows every site's node."""
        return len(list((self.federation.root / "nodes").glob("*.id"))) == len(self.sites)

    def wait(self, what: str, condition: Callable[[], bool], seconds: float) -> None:
        """Return once it is so.

        Raises:
            DarkroomError: It took longer.

        """
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise DarkroomError(f"{what}: not within {seconds:.0f} s; see the logs below {self.directory}")
            time.sleep(0.2)
