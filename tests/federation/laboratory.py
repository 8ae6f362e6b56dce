"""A federation of separate processes on loopback, made at once: for chaos, captures and benchmarks.

The pilot goes through the commands that people type; here the same keys, vaults, join files and manifest are made by
the functions behind them, because a command takes seconds to start and a test needs dozens.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import io
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
from PIL import Image

from client.connection.supernode import request_to_join
from client.operations.new_site import make_site
from client.site.layout import SiteLayout
from client.site.open_site import link_to_steward, open_site
from client.site.settings import read_site
from client.site.vault_access import open_vault
from client.vault.records import NewRecord
from common.adapter.model import open_base
from common.config import RunConfig
from common.crypto.identity_file import read_identity_file
from common.errors import StewardUnavailable
from common.host.flower_commands import program
from common.provisioning import coordinator_fingerprint, sign_join_file
from server.federation.directory import FederationConfig, FederationDirectory
from server.federation.run_files import RunFiles
from server.flower.runs import FlowerRun, KeptBundle
from server.flower.superlink import Launch
from server.release.adapter_files import adapter_spec
from simulations.pilot.processes import ROOT, call, client_command, free_ports, server_command

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from common.host.supervision import Command

_PIXELS: Final = 32
_POLICY: Final = """\
coordinators = ["{coordinator}"]
base_digests = ["{base}"]
adapter_kinds = ["AB", "B", "core"]
minimum_cohort = {minimum}
colluders = 1
institutions = {institutions}
[privacy]
epsilon_per_run = 100.0
delta_per_run = 1e-2
epsilon_lifetime = 100.0
delta_lifetime = 1e-1
units = ["image"]
"""


def noise_pixels(name: str, number: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """uint8[32, 32, 3]: noise, of which no piece occurs by chance."""
    seed = int.from_bytes(hashlib.sha256(f"{name}/{number}".encode()).digest()[:8], "big")
    return np.random.default_rng(seed).integers(0, 256, (_PIXELS, _PIXELS, 3), dtype=np.uint8)


def noise_record(name: str, number: int) -> NewRecord:
    """A picture whose bytes and words are found wherever they are."""
    stream = io.BytesIO()
    Image.fromarray(noise_pixels(name, number)).save(stream, "PNG")
    image = stream.getvalue()
    exact = hashlib.sha256(image).digest()
    return NewRecord(
        image=image,
        caption=f"CanaryCaption {name} mediastinum {number}",
        subject_id=f"CanarySubject-{name}-{number}",
        label=f"CanaryLabel-{name}",
        source_name=f"CanaryFile-{name}-{number}.dcm",
        exact_hash=exact,
        perceptual_hash=int.from_bytes(exact[:8], "big"),
    )


@dataclass(frozen=True, kw_only=True)
class LaboratoryPlan:
    """What a laboratory is made of."""

    directory: Path
    base: Path
    config: RunConfig
    names: tuple[str, ...]
    pictures: int = 6
    """In each vault."""
    record: Callable[[str, int], NewRecord] = field(default=noise_record)
    """The picture of this site with this number."""
    addresses: Mapping[str, str] = field(default_factory=dict)
    """Where a site connects, if not straight to the public listener: a proxy that cuts or records."""
    policies: Mapping[str, str] = field(default_factory=dict)
    """TOML of a site's policy in place of the usual one; ``{coordinator}`` and ``{base}`` are filled in."""


class Laboratory:
    """One federation with one run, approved by everybody."""

    def __init__(self, plan: LaboratoryPlan) -> None:
        """Nothing is made yet, but the ports are chosen."""
        public, superlink, *nodes = free_ports(2 + len(plan.names))
        self.plan = plan
        self.federation = FederationDirectory(plan.directory / "coordinator")
        self.files = RunFiles(self.federation, plan.config.name)
        self.address = f"127.0.0.1:{public}"
        self._superlink_port = superlink
        self._ports = dict(zip(plan.names, nodes, strict=True))

    @property
    def launch(self) -> Launch:
        """The coordinator's processes."""
        return Launch(self.federation, self.federation.config())

    @property
    def run(self) -> FlowerRun:
        """The run in Flower's hands."""
        return FlowerRun(self.launch, self.files)

    @property
    def bundle(self) -> Path:
        """What every site installs."""
        return KeptBundle(self.federation).file

    def root(self, name: str) -> Path:
        """A site's folder."""
        return self.plan.directory / name

    def make(self) -> None:
        """Keys, vaults, roster, join files, the signed manifest and everybody's approval."""
        config = FederationConfig(
            name="Laboratory", address=self.address, listen="127.0.0.1", superlink_port=self._superlink_port
        )
        self.federation.create(config, now=dt.datetime.now(dt.UTC))
        base_digest = open_base(str(self.plan.base)).digest
        requests = []
        for name in self.plan.names:
            make_site(self.root(name), name)
        for name in self.plan.names:
            self._fill_site(name, base_digest)
            requests.append(request_to_join(SiteLayout(self.root(name)), name=name, contact=f"it@{name}.example")[0])
        bundle = KeptBundle(self.federation).keep(self._build())
        self.federation.approve(requests, bundle=bundle)
        for name, address in self.plan.addresses.items():
            self._write_join_file(name, address)
        self.agree(self.files, self.plan.config)

    def agree(self, files: RunFiles, config: RunConfig) -> None:
        """Draft and sign a manifest, and have every site approve it."""
        files.draft(config, adapter_spec(self.plan.base, config))
        files.sign()
        signed = files.manifest_file.read_bytes()
        for name in self.plan.names:
            open_site(SiteLayout(self.root(name)).site_file).approvals.approve(signed)

    def _fill_site(self, name: str, base_digest: str) -> None:
        root = self.root(name)
        settings = SiteLayout(root).site_file
        settings.write_text(
            settings.read_text(encoding="utf-8").replace('base = "base"', f'base = "{self.plan.base}"'),
            encoding="utf-8",
        )
        policy = self.plan.policies.get(name, _POLICY).format(
            coordinator=self.federation.identity().public.hex(),
            base=base_digest,
            institutions=[self._key(each) for each in self.plan.names],
            minimum=self.plan.config.server.minimum_institutions,
        )
        (root / "policy.toml").write_text(policy, encoding="utf-8")
        with open_vault(read_site(settings).vault, access="write") as vault:
            vault.add([self.plan.record(name, number) for number in range(self.plan.pictures)])

    def _key(self, name: str) -> str:
        return read_identity_file(SiteLayout(self.root(name)).identity_file).public.hex()

    def _build(self) -> bytes:
        built = self.plan.directory / "bundle"
        built.mkdir()
        call(self.plan.directory / "commands.log", program("flwr"), "build", "--app", str(ROOT), cwd=built)
        (bundle,) = built.glob("*.fab")
        return bundle.read_bytes()

    def _write_join_file(self, name: str, address: str) -> None:
        """With another address than the federation's own, as behind a relay."""
        join = msgspec.structs.replace(self.federation.join_file(name), address=address)
        self.join_file(name).write_bytes(sign_join_file(join, self.federation.identity()))

    def join_file(self, name: str) -> Path:
        """What the coordinator sends to a site."""
        return self.federation.root / "join" / f"{name}.join"

    def up(self) -> Command:
        """``darkroom-server up``."""
        return server_command("up", self.federation.root, "up", str(self.federation.root))

    def steward(self, name: str) -> Command:
        """``darkroom-client steward``."""
        return client_command(
            f"{name}-steward", self.root(name), "steward", "--config", str(SiteLayout(self.root(name)).site_file)
        )

    def join(self, name: str) -> Command:
        """``darkroom-client join``."""
        fingerprint = coordinator_fingerprint(self.federation.identity().public)
        given = ("join", str(self.join_file(name)), "--bundle", str(self.bundle), "--fingerprint", fingerprint)
        place = ("--directory", str(self.root(name)), "--port", str(self._ports[name]))
        root = ("--allow-root",) if os.geteuid() == 0 else ()
        return client_command(f"{name}-join", self.root(name), *given, *place, *root)

    def registered(self) -> bool:
        """Whether the SuperLink knows every site's node."""
        return len(list((self.federation.root / "nodes").glob("*.id"))) == len(self.plan.names)

    def serves(self, name: str) -> bool:
        """Whether a site's steward answers."""
        try:
            return link_to_steward(read_site(SiteLayout(self.root(name)).site_file)).health().serving
        except StewardUnavailable:
            return False


def laboratory_config(*, rounds: int, sites: int, minimum: int, pictures: int = 6, repeats: int = 0) -> RunConfig:
    """A private run with masked sums on the tiny base, quick enough for many rounds."""
    return msgspec.convert(
        {
            "name": "laboratory",
            "rounds": rounds,
            "privacy": {
                "unit": "image",
                "epsilon": 4.0,
                "delta": 1e-3,
                "clip": 0.05,
                "population": sites * pictures,
                "largest_site": pictures,
                "sampling_rate": 0.5,
                "repeats": repeats,
            },
            "base": {"path": "base"},
            "adapter": {"rank": 2, "train": "core"},
            "server": {"minimum_institutions": minimum, "round_timeout_s": 30.0},
            "evaluation": {"every": 1000},
        },
        type=RunConfig,
    )
