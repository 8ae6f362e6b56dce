"""Three institutions with real vaults, stewards behind real sockets, and a coordinator that leads them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import threading
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np
import torch
from PIL import Image

from client.app import make_client_app
from client.operations.compose import compose_steward
from client.operations.new_site import make_site
from client.site.open_site import link_to_steward, open_site
from client.site.vault_access import open_vault
from client.steward.process import socket_place
from client.steward.socket import held
from client.training.trainer import build_trainer
from client.vault.records import NewRecord
from common.adapter.model import Family, open_base
from common.adapter.vector import initial_vector
from common.audit_log import AuditLog
from common.crypto.identity_file import read_identity_file
from common.crypto.primitives import Identity, Secret
from common.crypto.randomness import REPEATABLE_WORDS
from common.errors import StewardUnavailable
from common.manifest.manifest import Member, sign_manifest
from common.manifest.terms import draft_manifest
from server.rounds.secagg_session import SecureRun
from server.run.coordinator import Coordinator
from server.run.directory import RunDirectory
from simulations.engines.inprocess import run_inprocess
from tests.client.sites import run_config
from tests.tiny_base import write_tiny_base

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from client.site.open_site import OpenSite
    from client.site.settings import SiteConfig
    from client.steward.process import StewardProcess
    from common.config import RunConfig
    from common.wire.messages import StewardPort
    from server.rounds.optimizer import Vector

NAMES = ("ash", "birch", "cedar")
COORDINATOR = Identity(Secret(b"c" * 32))
POLICY = """
coordinators = ["{coordinator}"]
base_digests = ["{base}"]
adapter_kinds = ["AB"]
minimum_cohort = 3
colluders = 1
institutions = {institutions}
repeatable = "{repeatable}"
[privacy]
epsilon_per_run = 4.0
delta_per_run = 1e-3
epsilon_lifetime = 8.0
delta_lifetime = 1e-2
units = ["image"]
"""


def policy_text(base_digest: str, institutions: list[str], *, repeatable: str = "") -> str:
    key = COORDINATOR.public.hex()
    named = json.dumps(institutions)
    return POLICY.format(coordinator=key, base=base_digest, institutions=named, repeatable=repeatable)


def pixels_of(name: str, number: int) -> np.ndarray[Any, Any]:
    """Noise: no piece of it occurs by chance."""
    seed = int.from_bytes(hashlib.sha256(f"{name}/{number}".encode()).digest()[:8], "big")
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def new_record(name: str, number: int, **changes: Any) -> NewRecord:
    stream = io.BytesIO()
    Image.fromarray(pixels_of(name, number)).save(stream, "PNG")
    values: dict[str, Any] = {
        "image": stream.getvalue(),
        "caption": f"CanaryCaption {name} mediastinum {number}",
        "subject_id": f"CanarySubject-{name}-{number // 2}",
        "label": f"CanaryLabel-{name}",
        "source_name": f"CanaryFile-{name}-{number}.dcm",
        "exact_hash": hashlib.sha256(stream.getvalue()).digest(),
        "perceptual_hash": number,
    }
    return NewRecord(**values | changes)


def secure_config(base_digest: str, *, rounds: int, repeatable: str, repeats: int = 1) -> RunConfig:
    privacy: dict[str, Any] = {
        "epsilon": 4.0,
        "delta": 1e-3,
        "clip": 0.015,
        "population": 18,
        "largest_site": 8,
        "sampling_rate": 0.5,
        "repeats": repeats,
        "repeatable": repeatable,
    }
    return run_config(
        rounds=rounds,
        privacy=privacy,
        acknowledge="",
        base={"path": "unused", "digest": base_digest},
        server={"minimum_institutions": 3},
    )


@dataclass
class Wire:
    """A shim's link, with everything that passes kept; ``hook`` may do something about a request first."""

    link: StewardPort
    passed: list[bytes]
    hook: Callable[[bytes], bytes | None] = lambda _: None

    def answer(self, request: bytes) -> bytes:
        self.passed.append(request)
        reply = self.hook(request) or self.link.answer(request)
        self.passed.append(reply)
        return reply


@dataclass
class VaultSites:
    """The three, from empty folders to an approved run."""

    root: Path
    config: RunConfig
    signed: bytes
    trainer: Any
    hooks: dict[str, Callable[[bytes], bytes | None]] = field(default_factory=dict)
    passed: list[bytes] = field(default_factory=list)

    def open(self, name: str) -> OpenSite:
        return open_site(self.root / name / "site.toml")

    def settings(self, name: str) -> SiteConfig:
        return self.open(name).config

    @contextlib.contextmanager
    def serving(self, *names: str) -> Iterator[dict[str, StewardProcess]]:
        """Stewards of these sites, each in a thread as ``darkroom-client steward`` has it in a process."""
        stop, threads = threading.Event(), []
        with contextlib.ExitStack() as stack:
            processes = {}
            for name in names or NAMES:
                site = self.open(name)
                stack.enter_context(held(socket_place(site.config.service)))
                processes[name] = compose_steward(site)
                threads.append(threading.Thread(target=processes[name].run, args=(stop,), kwargs={"every": 0.1}))
                threads[-1].start()
            try:
                for name in processes:
                    self.wait_for(name)
                yield processes
            finally:
                stop.set()
                for thread in threads:
                    thread.join(60)

    def wait_for(self, name: str) -> None:
        config, pause = self.settings(name), threading.Event()
        for _ in range(1200):
            with contextlib.suppress(StewardUnavailable):
                link_to_steward(config).health()
                return
            pause.wait(0.05)
        raise AssertionError(f"{name} does not serve")

    def connect(self, context: Any) -> StewardPort:
        name = NAMES[int(context.node_config["partition-id"])]
        return Wire(link_to_steward(self.settings(name)), self.passed, self.hooks.get(name, lambda _: None))

    def lead(
        self,
        directory: Path | None = None,
        *,
        connect: Callable[[Any], StewardPort] | None = None,
        resume: bool = False,
    ) -> Vector:
        """The whole run; the final adapter."""
        folder = directory or self.root / "coordinator"
        folder.mkdir(exist_ok=True)
        secure = SecureRun(
            manifest=self.signed,
            identity=COORDINATOR,
            audit=AuditLog(path=folder / "audit.log", identity=COORDINATOR),
        )

        def run(transport: Any) -> Vector:
            spec = self.trainer.spec
            return Coordinator(
                config=self.config,
                spec=spec,
                initial=initial_vector(spec),
                transport=transport,
                observer=RunDirectory(folder),
                directory=folder,
                secure=secure,
            ).run(resume=resume)

        return run_inprocess(run, make_client_app(connect or self.connect), len(NAMES))


def make_vault_sites(
    root: Path,
    *,
    rounds: int = 2,
    pictures: int = 6,
    repeatable: bool = False,
    repeats: int = 1,
    train: Literal["B", "AB", "core"] = "AB",
) -> VaultSites:
    torch.set_num_threads(1)
    words = REPEATABLE_WORDS if repeatable else ""
    base = open_base(write_tiny_base(root / "base", Family.SD1))
    config = secure_config(base.digest, rounds=rounds, repeatable=words, repeats=repeats)
    config = msgspec.structs.replace(config, adapter=msgspec.structs.replace(config.adapter, train=train))
    trainer = build_trainer(base, config)
    members = []
    for name in NAMES:
        make_site(root / name, name)
        members.append(Member(name=name, key=read_identity_file(root / name / "identity.key").public.hex()))
    for name in NAMES:
        folder = root / name
        settings = folder / "site.toml"
        settings.write_text(settings.read_text().replace('base = "base"', f'base = "{base.directory}"'))
        policy = policy_text(base.digest, [member.key for member in members], repeatable=words)
        (folder / "policy.toml").write_text(policy.replace('["AB"]', f'["{train}"]'))
        with open_vault(open_site(settings).config.vault, access="write") as vault:
            vault.add([new_record(name, number) for number in range(pictures)])
    manifest = draft_manifest(
        config,
        base_digest=base.digest,
        adapter_digest=trainer.spec.digest,
        dimension=trainer.spec.dimension,
        coordinator=COORDINATOR.public,
        roster=members,
        code_version=version("darkroom"),
    )
    made = VaultSites(root, config, sign_manifest(manifest, COORDINATOR), trainer)
    for name in NAMES:
        made.open(name).approvals.approve(made.signed)
    return made


def audit_kinds(folder: Path) -> list[str]:
    lines = (folder / "audit.log").read_bytes().splitlines()
    return [msgspec.json.decode(line)["kind"] for line in lines]
