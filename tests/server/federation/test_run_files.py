"""Drafting, signing and showing a manifest; pausing; a run's status from its directory."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
import pytest
from typer.testing import CliRunner

from common.adapter.spec import AdapterSpec, Family, TensorSpec
from common.config import AdapterConfig, BaseModelConfig, PrivacyConfig, RunConfig, ServerConfig
from common.errors import ConfigError, ConfigErrors, ManifestError
from common.manifest.manifest import canonical_bytes, open_manifest
from server.cli import app
from server.federation.run_files import RunFiles
from server.federation.run_status import run_status
from server.run import leadership
from server.run.attempts import FILE, AttemptJournal
from tests.federation.live_federation import BUNDLE, federation_on_disk, site_request

if TYPE_CHECKING:
    from pathlib import Path

DIGEST = "sha256:" + "cd" * 32


def spec() -> AdapterSpec:
    config = AdapterConfig(rank=2, train="core")
    tensors = (TensorSpec(name="a.core", shape=(2, 2)),)
    return AdapterSpec(config=config, family=Family.SD2, base_digest=DIGEST, tensors=tensors)


def config(*, institutions: int = 3) -> RunConfig:
    privacy = PrivacyConfig(
        epsilon=4.0, delta=1e-5, clip=0.05, population=24, largest_site=8, sampling_rate=0.5, repeats=1
    )
    return RunConfig(
        name="trial",
        rounds=2,
        privacy=privacy,
        base=BaseModelConfig(path="base"),
        adapter=AdapterConfig(rank=2, train="core"),
        server=ServerConfig(minimum_institutions=institutions),
    )


def files(root: Path, *, sites: int = 3) -> RunFiles:
    federation = federation_on_disk(root / "federation")
    federation.approve([site_request(root, name) for name in ("aspen", "birch", "cedar")[:sites]], bundle=BUNDLE)
    return RunFiles(federation, "trial")


def test_a_draft_names_every_approved_site_and_signing_gives_a_manifest_that_opens(tmp_path: Path) -> None:
    run = files(tmp_path)
    drafted = run.draft(config(), spec())
    assert [member.name for member in drafted.roster] == ["aspen", "birch", "cedar"]
    assert drafted.config.base.digest == drafted.base_digest == DIGEST
    run.sign()
    manifest, digest = open_manifest(run.manifest_file.read_bytes())
    assert manifest == drafted
    assert (manifest, digest) == run.signed()


def test_a_revoked_site_is_not_drafted_and_too_few_sites_are_said(tmp_path: Path) -> None:
    run = files(tmp_path)
    run.federation.revoke("birch")
    with pytest.raises(ConfigErrors, match="minimum_cohort"):
        run.draft(config(), spec())


def test_a_draft_never_replaces_a_signed_manifest(tmp_path: Path) -> None:
    run = files(tmp_path)
    run.draft(config(), spec())
    run.sign()
    with pytest.raises(ManifestError, match="another name"):
        run.draft(config(), spec())


def test_a_changed_draft_is_not_signed(tmp_path: Path) -> None:
    run = files(tmp_path)
    run.draft(config(), spec())
    run.draft_file.write_bytes(run.draft_file.read_bytes() + b" ")
    with pytest.raises(ManifestError, match="canonical"):
        run.sign()


def test_without_a_draft_or_a_manifest_the_next_step_is_named(tmp_path: Path) -> None:
    run = files(tmp_path)
    with pytest.raises(ManifestError, match="manifest new"):
        run.sign()
    with pytest.raises(ManifestError, match="manifest sign"):
        run.signed()


@pytest.mark.parametrize("name", ["..", "a/b", "", "A", "-a"])
def test_a_name_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        RunFiles(federation_on_disk(tmp_path / "federation"), name)


def test_a_paused_run_waits_until_the_file_is_gone(tmp_path: Path) -> None:
    leadership.pause(tmp_path)
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            leadership.resume(tmp_path)

    leadership.wait_while_paused(tmp_path, sleep=sleep)
    assert len(looks) == 3
    leadership.resume(tmp_path)  # twice does no harm


def test_the_status_counts_rounds_and_every_attempt_that_was_sent(tmp_path: Path) -> None:
    run = files(tmp_path)
    run.draft(config(), spec())
    run.sign()
    before = run_status(run)
    assert (before.round, before.attempts, before.privacy) == (0, 0, None)
    run.directory.mkdir()
    journal = AttemptJournal(run.directory / FILE, most=3)
    journal.record(1, 0)
    journal.record(1, 1)
    row = {"kind": "round", "round": 1, "answered": [4, 5, 6], "seconds": 2.5}
    (run.directory / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    status = run_status(run)
    assert (status.round, status.rounds, status.sites, status.attempts) == (1, 2, 3, 2)
    assert status.left.total_seconds() == 2
    assert status.privacy is not None
    assert status.privacy.attempts == 2
    assert any("epsilon" in line for line in status.lines())


def test_showing_what_was_never_drafted_says_what_makes_one(tmp_path: Path) -> None:
    run = files(tmp_path)
    done = CliRunner().invoke(app, ["manifest", "show", "trial", "--directory", str(run.federation.root)])
    assert "no manifest, signed or drafted; darkroom-server manifest new makes one" in str(done.exception)


def test_an_address_without_a_port_is_told_what_one_looks_like(tmp_path: Path) -> None:
    words = ["init", str(tmp_path / "new"), "--name", "Pilot", "--address", "federation.example.org"]
    said = str(CliRunner().invoke(app, words).exception)
    assert "wanted host:port, such as federation.example.org:443; got 'federation.example.org'" in said
    words[-1] = "federation..example.org:443"
    assert "has no host's name or address" in str(CliRunner().invoke(app, words).exception)
    assert not (tmp_path / "new").exists()


def test_what_was_signed_once_is_not_signed_otherwise(tmp_path: Path) -> None:
    run = files(tmp_path)
    drafted = run.draft(config(), spec())
    run.sign()
    before = run.manifest_file.read_bytes()
    run.sign()  # the same again does no harm
    run.draft_file.write_bytes(canonical_bytes(msgspec.structs.replace(drafted, run="0" * len(drafted.run))))
    with pytest.raises(ManifestError, match="another manifest is signed already"):
        run.sign()
    assert run.manifest_file.read_bytes() == before


def test_another_runs_draft_is_not_signed(tmp_path: Path) -> None:
    run = files(tmp_path)
    run.draft(config(), spec())
    other = RunFiles(run.federation, "other")
    other.root.mkdir()
    other.draft_file.write_bytes(run.draft_file.read_bytes())
    with pytest.raises(ManifestError, match="'trial', not 'other'"):
        other.sign()
    assert not other.manifest_file.exists()
