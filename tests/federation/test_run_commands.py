"""Leading a run with the commands that an operator types, against real processes over TLS; and who is refused in it."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import msgspec
import pytest

from client.site.open_site import open_site
from common.adapter.spec import Family
from common.manifest.manifest import canonical_bytes, parse_manifest
from server.federation.run_files import RunFiles
from server.federation.run_status import run_status
from server.run.leadership import is_led, standing
from simulations.pilot.processes import server
from tests.federation.chaos import Federation, audit
from tests.federation.laboratory import Laboratory, LaboratoryPlan, laboratory_config
from tests.tiny_base import write_tiny_base

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from common.manifest.manifest import Manifest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
NAMES = ("ash", "birch", "cedar", "dogwood", "elm")
LATE, UNWILLING = "elm", "dogwood"
ROUNDS = 500
"""More than there is time for: it is ended by command."""
STRICT = """
coordinators = ["{coordinator}"]
base_digests = ["{base}"]
adapter_kinds = ["AB", "B", "core"]
minimum_cohort = 3
colluders = 1
institutions = {institutions}
[privacy]
epsilon_per_run = 0.1
delta_per_run = 1e-9
epsilon_lifetime = 0.1
delta_lifetime = 1e-9
units = ["image"]
"""


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    root = tmp_path_factory.mktemp("led")
    plan = LaboratoryPlan(
        directory=root,
        base=write_tiny_base(root / "base", Family.SD1),
        config=laboratory_config(rounds=ROUNDS, sites=len(NAMES), minimum=3, repeats=40),
        names=NAMES,
        policies={UNWILLING: STRICT},
    )
    lab = Laboratory(plan)
    lab.make()
    with Federation(lab, joining=tuple(name for name in NAMES if name != LATE)) as made:
        yield made


def command(federation: Federation, *arguments: str, name: str = "laboratory") -> str:
    lab = federation.lab
    log = lab.plan.directory / "commands.log"
    return server(log, "run", *arguments, name, "--directory", str(lab.federation.root))


def rounds(federation: Federation) -> int:
    return run_status(federation.lab.files).round


def site_log(federation: Federation, name: str) -> str:
    return (federation.lab.sites[name].root / "logs" / f"{name}-steward.log").read_text()


def test_an_operator_leads_a_run(federation: Federation) -> None:
    lab = federation.lab
    assert "started laboratory as Flower's run" in command(federation, "start")
    federation.wait_for(lambda: rounds(federation) >= 2, 240)
    said = command(federation, "status")
    assert f"of {ROUNDS}" in said
    assert "accepted by 3 of 5 sites: ash, birch, cedar" in said
    assert "epsilon" in said

    # one site's policy forbids the run; both ends say so, and the others go on
    assert f"({UNWILLING}) does not take part: refused (not_allowed)" in command(federation, "logs")
    assert "epsilon" in site_log(federation, UNWILLING)
    assert ("refused", "not_allowed") in [(k, d.get("code")) for k, d in audit(lab.sites[UNWILLING].root / "audit.log")]

    command(federation, "pause")
    federation.wait_for(lambda: "paused before the next round" in lab.files.log_file.read_text(), 60)
    before = rounds(federation)
    federation.start_joining(LATE)  # while nothing happens
    time.sleep(12)
    assert rounds(federation) == before
    assert ", paused" in command(federation, "status")
    command(federation, "resume")
    federation.wait_for(lambda: rounds(federation) > before, 120)
    # the one that came late has entered between two rounds, as soon as it had the base and its pictures ready
    sessions = [d["institutions"] for kind, d in audit(lab.files.directory / "audit.log") if kind == "session"]
    federation.wait_for(lambda: "institutions=4" in lab.files.log_file.read_text(), 300)
    assert sessions[0] == 3

    command(federation, "stop")
    federation.wait_for(lambda: not is_led(lab.files.directory), 60)
    stopped = rounds(federation)
    assert "finished" in command(federation, "status").splitlines()[0]
    time.sleep(15)  # nobody starts again what an operator has stopped
    assert rounds(federation) == stopped
    assert not is_led(lab.files.directory)
    command(federation, "start")
    federation.wait_for(lambda: rounds(federation) > stopped, 240)
    assert command(federation, "logs").count("started as Flower's run") == 2
    command(federation, "stop")
    federation.wait_for(lambda: not is_led(lab.files.directory), 60)


def other_run(
    federation: Federation, name: str, *, edit: Callable[[Manifest], Manifest] = lambda manifest: manifest
) -> RunFiles:
    """A run with a signed manifest that nobody has approved; its draft is edited first."""
    from server.release.adapter_files import adapter_spec  # noqa: PLC0415 - torch

    lab = federation.lab
    files = RunFiles(lab.federation, name)
    config = msgspec.structs.replace(lab.plan.config, name=name)
    files.draft(config, adapter_spec(lab.plan.base, config))
    files.draft_file.write_bytes(canonical_bytes(edit(parse_manifest(files.draft_file.read_bytes()))))
    files.sign()
    return files


@contextlib.contextmanager
def led(federation: Federation, files: RunFiles) -> Iterator[None]:
    command(federation, "start", name=files.name)
    try:
        yield
    finally:
        command(federation, "stop", name=files.name)
        federation.wait_for(lambda: not is_led(files.directory), 60)


def waits_because_of(files: RunFiles, reason: str) -> bool:
    said = standing(files.directory)
    return said is not None and said.state == "waiting" and reason in said.reason


def test_a_manifest_that_nobody_approved_waits_until_they_have(federation: Federation) -> None:
    files = other_run(federation, "unapproved")
    with led(federation, files):
        federation.wait_for(lambda: waits_because_of(files, "refused (awaiting_approval)"), 240)
        assert "waits for approval at this institution" in site_log(federation, "ash")
        assert "waiting since" in command(federation, "status", name=files.name)
        assert not (files.directory / "attempts.json").exists()  # it has cost nothing
        for name in ("ash", "birch", "cedar"):
            open_site(federation.lab.sites[name].root / "site.toml").approvals.approve(files.manifest_file.read_bytes())
        federation.wait_for(lambda: run_status(files).round >= 1, 240)
        assert standing(files.directory) is None


def test_a_manifest_of_another_code_version_is_refused(federation: Federation) -> None:
    files = other_run(
        federation, "versioned", edit=lambda manifest: msgspec.structs.replace(manifest, code_version="9.9.9")
    )
    for name in NAMES:
        open_site(federation.lab.sites[name].root / "site.toml").approvals.approve(files.manifest_file.read_bytes())
    with led(federation, files):
        federation.wait_for(lambda: waits_because_of(files, "refused (bad_manifest)"), 240)
    assert "the run is for version 9.9.9; this site has" in site_log(federation, "ash")


def test_parameters_that_change_in_mid_run_are_refused_at_both_ends(federation: Federation) -> None:
    """The coordinator's own log and checkpoints are another run's then; without them, sites know no such run."""
    lab = federation.lab
    files = lab.files
    assert run_status(files).round >= 1
    privacy = msgspec.structs.replace(lab.plan.config.privacy, clip=5.0)  # type: ignore[type-var]
    files.manifest_file.unlink()
    from server.release.adapter_files import adapter_spec  # noqa: PLC0415 - torch

    config = msgspec.structs.replace(lab.plan.config, privacy=privacy)
    files.draft(config, adapter_spec(lab.plan.base, config))
    files.sign()
    command(federation, "start")
    federation.wait_for(lambda: (said := standing(files.directory)) is not None and said.state == "stopped", 120)
    assert "is of a run with manifest" in str(standing(files.directory))
    for path in (*(files.directory / "checkpoints").iterdir(), files.directory / "audit.log"):
        path.unlink()
    with led(federation, files):
        federation.wait_for(lambda: waits_because_of(files, "refused (awaiting_approval)"), 240)
    contributed = [d["run"] for kind, d in audit(lab.sites["ash"].root / "audit.log") if kind == "contributed"]
    assert files.signed()[1].hex() not in contributed
