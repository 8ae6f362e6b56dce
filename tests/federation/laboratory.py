"""A federation of separate processes on loopback, made at once: for chaos and captures.

The pilot goes through the commands that people type; here the same keys, vaults, join files and manifest are made by
the functions behind them, because a command takes seconds to start and a test needs dozens.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
from PIL import Image

from client.connection.supernode import request_to_join
from client.operations.new_site import make_site
from client.site.open_site import open_site
from client.site.settings import read_site
from client.site.vault_access import open_vault
from client.vault.records import NewRecord
from common.adapter.model import open_base
from common.config import RunConfig
from common.crypto.identity_file import read_identity_file
from common.provisioning import sign_join_file
from server.release.adapter_files import adapter_spec
from simulations.pilot.local_federation import LocalFederation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from common.host.supervision import Command
    from common.provisioning import SiteRequest
    from server.federation.run_files import RunFiles
    from simulations.pilot.site import LocalSite

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


class Laboratory(LocalFederation):
    """One federation with one run, approved by everybody."""

    def __init__(self, plan: LaboratoryPlan) -> None:
        """Nothing is made yet, but the ports are chosen."""
        super().__init__(plan.directory, plan.names, title="Laboratory", run=plan.config.name)
        self.plan = plan

    def make(self) -> None:
        """Keys, vaults, roster, join files, the signed manifest and everybody's approval."""
        self.create()
        base_digest = open_base(str(self.plan.base)).digest
        for site in self.sites.values():
            make_site(site.root, site.name)
        requests = [self._fill_site(site, base_digest) for site in self.sites.values()]
        self.approve(requests)
        for name, address in self.plan.addresses.items():
            self._write_join_file(name, address)
        self.agree(self.files, self.plan.config)

    def agree(self, files: RunFiles, config: RunConfig) -> None:
        """Draft and sign a manifest, and have every site approve it."""
        files.draft(config, adapter_spec(self.plan.base, config))
        files.sign()
        signed = files.manifest_file.read_bytes()
        for site in self.sites.values():
            open_site(site.site_file).approvals.approve(signed)

    def _fill_site(self, site: LocalSite, base_digest: str) -> SiteRequest:
        settings = site.site_file
        settings.write_text(
            settings.read_text(encoding="utf-8").replace('base = "base"', f'base = "{self.plan.base}"'),
            encoding="utf-8",
        )
        policy = self.plan.policies.get(site.name, _POLICY).format(
            coordinator=self.federation.identity().public.hex(),
            base=base_digest,
            institutions=[read_identity_file(each.layout.identity_file).public.hex() for each in self.sites.values()],
            minimum=self.plan.config.server.minimum_institutions,
        )
        site.layout.policy_file.write_text(policy, encoding="utf-8")
        with open_vault(read_site(settings).vault, access="write") as vault:
            vault.add([self.plan.record(site.name, number) for number in range(self.plan.pictures)])
        return request_to_join(site.layout, name=site.name, contact=f"it@{site.name}.example")[0]

    def _write_join_file(self, name: str, address: str) -> None:
        """With another address than the federation's own, as behind a relay."""
        join = msgspec.structs.replace(self.federation.join_file(name), address=address)
        self.sent(name).join_file.write_bytes(sign_join_file(join, self.federation.identity()))

    def join(self, name: str) -> Command:
        """``darkroom-client join``."""
        return self.sites[name].supernode(self.sent(name))


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
