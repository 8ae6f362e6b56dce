"""Every command of the guides, executed in the order of a federation's life, on one machine."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from PIL import Image

from common.adapter.model import Family, open_base
from common.manifest.manifest import open_manifest
from server.federation.directory import FederationDirectory
from server.federation.run_files import RunFiles
from server.federation.run_status import run_status
from simulations.pilot.processes import free_ports
from simulations.pilot.site import LocalSite
from tests.federation.documented import ROOT, Page
from tests.federation.live_federation import wait_for
from tests.tiny_base import write_tiny_base

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SITES = ("hospital-a", "hospital-b", "hospital-c")
ROUNDS = 2
FAMILY = "patient-17"
TRIAL = {
    "name": "trial",
    "rounds": ROUNDS,
    "privacy": {
        "unit": "subject",
        "epsilon": 4.0,
        "delta": 1e-5,
        "clip": 0.05,
        "population": 36,
        "largest_site": 12,
        "sampling_rate": 0.5,
    },
    "base": {"path": "/srv/base"},
    "adapter": {"rank": 2, "train": "core"},
    "server": {"minimum_institutions": 3},
}


def write_pictures(folder: Path) -> None:
    """Twelve pictures that are unlike each other, of eleven subjects."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(17)
    rows = []
    for index in range(12):
        coarse = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8))
        coarse.resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
        subject = FAMILY if index < 2 else f"patient-{index + 20}"
        rows.append(json.dumps({"file_name": f"{index}.png", "text": "a coloured field", "subject_id": subject}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))


class Life:
    """One federation's."""

    def __init__(self, root: Path) -> None:
        """Nothing but base and pictures is there yet."""
        write_tiny_base(root / "srv" / "base", Family.SD2)
        write_pictures(root / "srv" / "pictures")
        ports = free_ports(5)
        self.root, self.ports = root, dict(zip(SITES, ports[2:], strict=True))
        self.places = {
            "/srv/": f"{root}/srv/",
            "darkroom.example.org:8443": f"127.0.0.1:{ports[0]}",
            "--app .": f"--app {ROOT}",
        }
        self.listen = ("--listen", "127.0.0.1", "--superlink-port", str(ports[1]))
        self.pilot, self.operations = (
            Page(ROOT / "docs" / f"{name}.md", root, self.places, root / f"{name}.said")
            for name in ("pilot", "operations")
        )
        self.running: list[subprocess.Popen[bytes]] = []

    @property
    def federation(self) -> FederationDirectory:
        return FederationDirectory(self.root / "federation")

    def names(self, site: str) -> dict[str, str]:
        """The guides show one site; the others type their own name and folder."""
        return {} if site == SITES[0] else {"hospital-a": site, "site/": f"{site}/", "site ": f"{site} "}

    def said(self, name: str, after: str) -> str:
        """What a command printed behind some words."""
        return (self.root / f"{name}.said").read_text().rpartition(after)[2].splitlines()[0].strip()

    def end(self) -> None:
        for process in reversed(self.running):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
        for process in self.running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    made = Life(tmp_path_factory.mktemp("d"))
    try:
        yield made
    finally:
        made.end()


def test_every_command_of_the_guides_works(life: Life) -> None:
    fingerprint = begin(life)
    for site in SITES:
        furnish(life, site)
    let_in(life)
    agree(life)
    connect(life, fingerprint)
    serve_at_boot(life, fingerprint)
    lead(life)
    release(life)
    look_after(life)
    forget_and_prove(life)
    assert life.pilot.left() == []
    assert life.operations.left() == []


def begin(life: Life) -> str:
    life.pilot.run("darkroom-server init", *life.listen)
    life.pilot.run("flwr build")
    life.pilot.run("mv ")
    return life.said("pilot", "coordinator's fingerprint:")


def furnish(life: Life, site: str) -> None:
    """A site's folder, keys, settings and pictures."""
    page, names = life.pilot, life.names(site)
    page.run("darkroom-client init", **names)
    page.run("darkroom-client request", **names)
    folder = life.root / ("site" if site == SITES[0] else site)
    (folder / f"{site}.request").rename(life.root / f"{site}.request")
    base = life.root / "srv" / "base"
    digest = open_base(str(base)).digest
    coordinator = re.search(
        r"public key, for the sites' policies: ([0-9a-f]{64})", (life.root / "pilot.said").read_text()
    )
    assert coordinator
    LocalSite(name=site, root=folder, port=1).fill_in(
        base=base, base_digest=digest, coordinator=coordinator.group(1), unit="subject"
    )
    if site == SITES[0]:
        assert page.run("darkroom-client digest").strip() == digest
        page.run("darkroom-client ingest", ending="sheet.html")
        assert (life.root / "sheet.html").stat().st_size > 1000
    page.run("darkroom-client ingest", ending="--commit", answer="y\n", **names)


def let_in(life: Life) -> None:
    """By the coordinator; what each site is sent."""
    for site in SITES:
        life.pilot.run("darkroom-server approve", answer="y\n", **life.names(site))
        (life.root / f"{site}.join").write_bytes((life.root / "federation" / "join" / f"{site}.join").read_bytes())
    (life.root / "bundle.fab").write_bytes((life.root / "federation" / "bundle.fab").read_bytes())


def connect(life: Life, fingerprint: str) -> None:
    look_before(life)
    life.running.append(life.pilot.start("darkroom-server up"))
    for site in SITES:
        life.running.append(life.pilot.start("darkroom-client steward", **life.names(site)))
    wait_for(lambda: len(list((life.root / "federation" / "nodes").glob("*.id"))) == len(SITES), 120, "listener")
    more = ("--allow-root",) if os.geteuid() == 0 else ()
    for site in SITES:
        port = ("--port", str(life.ports[site]))
        names = life.names(site)
        life.running.append(life.pilot.start("darkroom-client join", *port, *more, answer=fingerprint + "\n", **names))


def look_before(life: Life) -> None:
    """Nothing runs yet, so every port is free."""
    assert "policy" in life.operations.run("darkroom-client preflight", ending="site")
    assert "port" in life.operations.run("darkroom-server preflight")


def serve_at_boot(life: Life, fingerprint: str) -> None:
    """What an administrator would install; the connection's checks want the listener up, and a port of their own."""
    page, words = life.operations, {"FINGERPRINT": fingerprint}
    # services do not see home directories, where a developer's Python may lie
    hidden = [path for path in (Path(sys.base_prefix), Path(sys.prefix), ROOT) if _is_at_home(path)]
    refused = "is in a home directory" if hidden else ""
    page.run("darkroom-server units", refused=refused)
    page.run("darkroom-server nginx")
    assert "proxy_pass" in (life.root / "darkroom.conf").read_text()
    settings = life.root / "site" / "site.toml"
    before = settings.read_text()
    settings.write_text(before.replace('# group = "darkroom"', 'group = "darkroom"'))
    page.run("darkroom-client units", refused=refused, **words)
    settings.write_text(before)
    assert len(list((life.root / "units").glob("*.service"))) == (0 if hidden else 3)
    free = str(free_ports(1)[0])
    assert "clock" in page.run("darkroom-client preflight", "--port", free, ending='FINGERPRINT"', **words)


def _is_at_home(path: Path) -> bool:
    return any(path.resolve().is_relative_to(home) for home in ("/root", "/home", "/run/user"))


def release(life: Life) -> None:
    """Made, signed by everybody, checked, and a picture that says where it comes from."""
    page = life.operations
    page.run("darkroom-server release make")
    for site in SITES:
        names = {} if site == SITES[0] else {"site/": f"{site}/"}
        page.run("darkroom-client countersign", answer="y\n", **names)
    page.run("darkroom-server release verify")
    page.run("darkroom-client release verify")
    page.run("darkroom-client picture key")
    page.run("darkroom-client generate", "--steps", "2")
    page.run("darkroom-client picture verify")


def agree(life: Life) -> None:
    trial = {**TRIAL, "base": {"path": str(life.root / "srv" / "base")}}
    (life.root / "trial.toml").write_bytes(msgspec.toml.encode(trial))
    life.pilot.run("darkroom-server manifest new")
    life.pilot.run("darkroom-server manifest sign")
    signed = (life.root / "federation" / "runs" / "trial" / "trial.manifest").read_bytes()
    (life.root / "trial.manifest").write_bytes(signed)
    for site in SITES:
        said = life.pilot.run("darkroom-client approve", refused="is not in policy.institutions", **life.names(site))
        assert said.count("NOT NAMED") == len(SITES)
        name_institutions(life, site, said)
        said = life.pilot.run("darkroom-client approve", answer="y\n", **life.names(site))
        assert said.count("epsilon = ") >= 4


def name_institutions(life: Life, site: str, said: str) -> None:
    """Compare what is shown with what each institution's ``init`` printed, and write what is to be written."""
    told = re.findall(r"to read out to the other institutions: ([0-9 ]+)", (life.root / "pilot.said").read_text())
    shown = re.findall(r"^- \S+  ([0-9 ]+)  NOT NAMED", said, re.MULTILINE)
    assert sorted(shown) == sorted(told)
    (line,) = re.findall(r"^institutions = .*$", said, re.MULTILINE)
    policy = life.root / ("site" if site == SITES[0] else site) / "policy.toml"
    policy.write_text(policy.read_text().replace("institutions = []", line))


def lead(life: Life) -> None:
    """Start, pause, stop, start again, pause, resume, to the end."""
    page, files = life.pilot, RunFiles(life.federation, "trial")
    page.run("darkroom-server run start")
    page.run("darkroom-server run pause")  # at once, so that it has not ended when it is stopped
    wait_for(lambda: "running" in life.operations.run("darkroom-server run status").lower(), 60, "the run begins")
    page.run("darkroom-server run stop")
    page.run("darkroom-server run start")
    page.run("darkroom-server run pause")
    page.run("darkroom-server run resume")
    page.run("darkroom-server run status", ending="--watch")
    assert run_status(files).round == ROUNDS
    time.sleep(2)
    assert "round" in page.run("darkroom-server run logs")
    page.run("darkroom-server run export")
    page.run("darkroom-client generate", "--steps", "2")
    assert list((life.root / "pictures").glob("*.png"))


def look_after(life: Life) -> None:
    page = life.operations
    page.run("darkroom-server run logs")
    assert "epsilon" in page.run("darkroom-server manifest show")
    assert "Privacy budget" in page.run("darkroom-client status")
    life.pilot.run("darkroom-client status")
    assert "approved" in page.run("darkroom-client approvals --config")
    page.run("darkroom-server renew")
    page.run("darkroom-server revoke")
    digest = open_manifest((life.root / "trial.manifest").read_bytes())[1].hex()
    life.pilot.run("darkroom-client withdraw", answer="y\n", DIGEST=digest)
    life.end()
    life.running.clear()


def forget_and_prove(life: Life) -> None:
    page = life.operations
    fingerprint = life.said("pilot", "coordinator's fingerprint:")
    page.run("darkroom-client install", FINGERPRINT=fingerprint)
    page.run("darkroom-client accept-vault", answer="y\n")
    page.run("darkroom-client accept-clock", answer="y\n")
    page.run("darkroom-client rotate-key")
    assert "pictures to destroy: 2" in page.run("darkroom-client erase", ending="site.toml", answer=f"{FAMILY}\n")
    page.run("darkroom-client expire", ending="site.toml")
    assert "done" in page.run("darkroom-client erase", ending="--commit", answer=f"{FAMILY}\ny\n")
    page.run("darkroom-client expire", ending="--commit", answer="y\n")
    keys = {"SITE_KEY": public_key(life), "COORDINATOR_KEY": life.federation.identity().public.hex()}
    assert "heads" in page.run("darkroom-client log verify", **keys)
    assert "heads" in page.run("darkroom-server log verify", **keys)
    (receipt,) = (life.root / "site" / "receipts").glob("*.json")
    assert "not altered" in page.run("darkroom-client receipt verify", RECEIPT=receipt.stem, **keys)


def public_key(life: Life) -> str:
    found = re.search(r"^public key: ([0-9a-f]{64})$", (life.root / "pilot.said").read_text(), re.MULTILINE)
    assert found
    return found.group(1)
