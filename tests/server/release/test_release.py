"""Releases of a real run: what is in them, what they do not tell, and what stands in their way."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from huggingface_hub import ModelCard
from safetensors import safe_open

from common.adapter.export import read_adapter_spec, read_adapter_vector
from common.audit_log import AuditLog, verify_log
from common.errors import AuditLogError, CheckpointError, ConfigErrors, DigestMismatch
from common.manifest.manifest import open_manifest, sign_manifest
from common.privacy.run_plan import private_plan
from common.release.card_facts import CardFacts, DataCategory
from common.release.check import Expected, check_release
from common.release.statement import ReleaseError, parse_release
from server.release.card_facts import read_facts
from server.release.release import AUDIT_FILE, make_release
from server.run.attempts import FILE
from server.run.checkpoint import load_checkpoint
from tests.simulations.released import NOW, FinishedRun, finished_run
from tests.simulations.vault_sites import COORDINATOR, NAMES

if TYPE_CHECKING:
    from pathlib import Path

    from common.release.folder import ReleaseFolder
    from server.release.release import RunLeft

FACTS = """
summary = "Draws noise."
licence = "cc-by-nc-4.0"
base_model = "someone/tiny"
contact = "coordinator@example.org"
intended = ["teaching"]
limits = ["noise only"]
[[data]]
category = "test noise"
source = "made for this test"
institution = "ash"
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    return finished_run(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="module")
def released(run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> ReleaseFolder:
    return run.release(tmp_path_factory.mktemp("out") / "release")


@pytest.fixture
def left(run: FinishedRun, tmp_path: Path) -> RunLeft:
    """A copy of what the run left, to be damaged."""
    shutil.copytree(run.left.directory, tmp_path / "left")
    return replace(run.left, directory=tmp_path / "left")


def test_the_release_holds_the_last_checkpoints_adapter(run: FinishedRun, released: ReleaseFolder) -> None:
    checkpoint = load_checkpoint(run.left.directory / "checkpoints")
    vector = read_adapter_vector(released.root, read_adapter_spec(released.root))
    assert np.array_equal(vector, checkpoint.released)
    assert vector.any()
    described = json.loads((run.left.directory / "run.json").read_text())
    assert released.release().adapter == described["finish"]["adapter_digest"]


def test_it_is_in_order_but_for_the_sites_signatures(released: ReleaseFolder) -> None:
    assert check_release(released, Expected(signatures=0)).faults == ()
    found = check_release(released, Expected())
    assert [fault for fault in found.faults if "institutions signed" in fault] == list(found.faults)
    assert found.unsigned == tuple(f"{name}.json" for name in NAMES)


def test_what_it_states_is_what_plan_journal_and_log_say(run: FinishedRun, released: ReleaseFolder) -> None:
    release, (manifest, digest) = released.release(), open_manifest(run.left.signed)
    plan = private_plan(manifest.config)
    assert plan is not None
    sent = sum(json.loads((run.left.directory / FILE).read_text()).values())
    statements = plan.report(sent).statements
    assert statements is not None
    assert release.privacy.sent.attempts == sent == 2
    assert release.privacy.planned.attempts == plan.attempts == 3
    assert release.privacy.sent.public == statements.public.epsilon
    assert release.privacy.sent.fallback == statements.fallback.epsilon
    log = verify_log(run.left.directory / AUDIT_FILE, COORDINATOR.public)
    assert (release.coordinator_log, release.coordinator_entries) == (log.head.hex(), log.entries)
    assert (release.manifest, release.base) == (digest.hex(), manifest.base_digest)
    assert [each.place for each in release.logs] == [0, 1, 2]
    for each, name in zip(release.logs, NAMES, strict=True):
        path = run.sites.root / name / "audit.log"
        key = bytes.fromhex(manifest.roster[each.place].key)
        verify_log(path, key, witnessed=[bytes.fromhex(each.head)])
    assert release.time == NOW.isoformat()


def test_the_same_run_gives_the_same_bytes(run: FinishedRun, released: ReleaseFolder, tmp_path: Path) -> None:
    again = run.release(tmp_path / "again")
    for path in released.root.iterdir():
        if path.is_file():
            assert (again.root / path.name).read_bytes() == path.read_bytes(), path.name


def test_nothing_that_was_measured_is_told(run: FinishedRun, released: ReleaseFolder) -> None:
    text = b"".join(path.read_bytes() for path in released.root.iterdir() if path.suffix in {".json", ".md"}).decode()
    for line in (run.left.directory / "metrics.jsonl").read_text().splitlines():
        for key in ("step_norm", "decoded_mean_norm", "seconds", "seconds_waiting", "train_loss", "loss"):
            value = json.loads(line).get(key)
            assert value is None or f"{value:.4g}" not in text, key
    fields = set(msgspec.to_builtins(released.release()))
    assert not fields & {"loss", "seconds", "norm", "pictures", "failures"}
    assert "Canary" not in text


def test_a_private_roster_names_nobody(run: FinishedRun, tmp_path: Path) -> None:
    folder = run.release(tmp_path / "private", roster="private")
    manifest, _ = open_manifest(run.left.signed)
    content = b"".join(path.read_bytes() for path in folder.root.iterdir() if path.is_file())
    for member in manifest.roster:
        assert member.name.encode() not in content
        assert member.key.encode() not in content
    assert b"release verify FOLDER --base MODEL --manifest FILE` checks all of it" in content
    found = check_release(folder, Expected())
    assert any("without the run's manifest" in fault for fault in found.faults)
    assert check_release(folder, Expected(signatures=0)).faults == ()
    assert check_release(folder, Expected(manifest=run.left.signed, signatures=0)).faults == ()


def test_the_card_is_one_that_the_hub_reads(run: FinishedRun, tmp_path: Path) -> None:
    (tmp_path / "facts.toml").write_text(FACTS)
    folder = run.release(tmp_path / "release", facts=read_facts(tmp_path / "facts.toml"))
    card = ModelCard.load(folder.root / "README.md")
    assert (card.data.license, card.data.base_model) == ("cc-by-nc-4.0", "someone/tiny")
    assert {"lora", "differential-privacy"} <= set(card.data.tags or [])
    text = card.text
    for said in ("Draws noise.", "test noise (ash): made for this test", "teaching", "noise only", *NAMES):
        assert said in text
    stated = folder.release().privacy.sent
    (shown,) = re.findall(r"\| whoever gets the adapter.* \| ([0-9.]+) \|", text)
    assert stated.public is not None
    assert stated.public <= float(shown) < 1.01 * stated.public


def test_without_facts_the_card_says_that_nothing_is_stated(released: ReleaseFolder) -> None:
    text = (released.root / "README.md").read_text()
    assert "Not stated; ask the coordinator before using it." in text
    assert "kinds of data: not stated" in text
    assert "release verify FOLDER --base MODEL` checks all of it" in text
    assert ModelCard.load(released.root / "README.md").data.license is None


@pytest.mark.parametrize(("roster", "name"), [("private", "ash"), ("public", "nobody")])
def test_facts_name_no_institution_that_may_not_be_named(
    run: FinishedRun, tmp_path: Path, roster: str, name: str
) -> None:
    facts = CardFacts(data=(DataCategory(category="noise", institution=name),))
    with pytest.raises(ConfigErrors, match=name):
        run.release(tmp_path / "release", roster=roster, facts=facts)
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_in_the_facts_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "facts.toml"
    path.write_text('license = "mit"\nsummary = "a\\nb"\n[[data]]\nkind = "x"\n')
    with pytest.raises(ConfigErrors, match="licence") as caught:
        read_facts(path)
    assert len(caught.value.faults) == 4


def test_nothing_is_overwritten(run: FinishedRun, tmp_path: Path) -> None:
    for make in (lambda path: path.mkdir(), lambda path: path.write_text("x"), lambda path: path.symlink_to("nowhere")):
        out = tmp_path / "release"
        make(out)
        with pytest.raises(ReleaseError, match="not overwritten"):
            run.release(out)
        out.rmdir() if out.is_dir() else out.unlink()


def test_a_crash_leaves_no_half_release(run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> str:
        raise OSError("full")

    with monkeypatch.context() as patched:
        patched.setattr("server.release.release.model_card", broken)
        with pytest.raises(OSError, match="full"):
            run.release(tmp_path / "release")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".release.partial").mkdir()
    (tmp_path / ".release.partial" / "old").write_text("left by a power cut")
    folder = run.release(tmp_path / "release")
    assert check_release(folder, Expected(signatures=0)).faults == ()


def test_a_run_with_rounds_left_is_released_only_when_told_to(run: FinishedRun, left: RunLeft, tmp_path: Path) -> None:
    (left.directory / "checkpoints" / "round-0000002.safetensors").unlink()
    with pytest.raises(ReleaseError, match=r"1 of 2 rounds are done.*--unfinished"):
        make_release(left, run.plan(tmp_path / "release"))
    release = make_release(left, run.plan(tmp_path / "release", rounds="done"))
    assert (release.rounds, release.rounds_planned, release.is_finished) == (1, 2, False)
    # what was sent after the checkpoint was seen by the coordinator all the same
    assert release.privacy.sent.attempts == 2
    card = (tmp_path / "release" / "README.md").read_text()
    assert "the run ended early, after 1 of 2 rounds" in card
    assert "ended early because of what its adapter showed" in card


def test_a_run_that_has_not_begun_is_not_released(run: FinishedRun, left: RunLeft, tmp_path: Path) -> None:
    shutil.rmtree(left.directory / "checkpoints")
    with pytest.raises(CheckpointError):
        make_release(left, run.plan(tmp_path / "release", rounds="done"))


@pytest.mark.parametrize("said", ["", "{}", '{"1":1}'])
def test_a_journal_that_counts_too_few_attempts_is_not_believed(
    run: FinishedRun, left: RunLeft, tmp_path: Path, said: str
) -> None:
    (left.directory / FILE).unlink()
    if said:
        (left.directory / FILE).write_text(said)
    with pytest.raises(ReleaseError, match="at least 2"):
        make_release(left, run.plan(tmp_path / "release"))


def test_requests_in_the_log_count_even_where_no_round_came_of_them(
    run: FinishedRun, left: RunLeft, tmp_path: Path
) -> None:
    (left.directory / "checkpoints" / "round-0000002.safetensors").unlink()
    (left.directory / FILE).write_text('{"1":1}')
    with pytest.raises(ReleaseError, match="at least 2"):
        make_release(left, run.plan(tmp_path / "release", rounds="done"))


def test_a_damaged_log_and_another_base_are_refused(run: FinishedRun, left: RunLeft, tmp_path: Path) -> None:
    log = left.directory / AUDIT_FILE
    whole = log.read_bytes()
    log.write_bytes(whole.replace(b'"round":1', b'"round":7', 1))
    with pytest.raises(AuditLogError):
        make_release(left, run.plan(tmp_path / "release"))
    log.write_bytes(whole)
    base = tmp_path / "base"
    shutil.copytree(run.sites.root / "base", base)
    path = base / "unet" / "config.json"
    path.write_text(path.read_text().replace("{", '{"note": 1,', 1))
    with pytest.raises(DigestMismatch):
        make_release(left, replace(run.plan(tmp_path / "release"), base=base))


def test_the_file_for_other_programs_says_what_it_is(run: FinishedRun, released: ReleaseFolder) -> None:
    release = parse_release((released.root / "release.json").read_bytes())
    with safe_open(released.root / f"{release.name}.safetensors", framework="np") as file:
        metadata = file.metadata()
        keys = list(file.keys())
    config = run.sites.config.adapter
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == (str(config.rank), str(config.alpha))
    assert all(key.startswith("lora_unet_") for key in keys)


def test_another_runs_checkpoint_is_not_released(left: RunLeft, run: FinishedRun, tmp_path: Path) -> None:
    """Same configuration, same roster, another manifest: its attempts, and so its ε, may be others."""
    manifest, _ = open_manifest(left.signed)
    other = sign_manifest(msgspec.structs.replace(manifest, run="0" * len(manifest.run)), COORDINATOR)
    with pytest.raises(CheckpointError, match="manifest: checkpoint"):
        make_release(replace(left, signed=other), run.plan(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_another_runs_log_is_not_released(left: RunLeft, run: FinishedRun, tmp_path: Path) -> None:
    log = AuditLog(path=left.directory / AUDIT_FILE, identity=COORDINATOR)
    log.append("session", {"epoch": 9, "institutions": 3, "manifest": "0" * 64})
    with pytest.raises(CheckpointError, match="is of a run with manifest 000"):
        make_release(left, run.plan(tmp_path / "out"))
