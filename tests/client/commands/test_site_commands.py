"""What a person at an institution does with a proposed run, and how its vault's key is chosen."""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING, Any, get_args

import msgspec
import pytest
from typer.testing import CliRunner

from client.cli import app
from client.operations.compose import compose_steward
from client.operations.new_site import make_site
from client.operations.preflight import steward_checks
from client.site.open_site import open_site
from client.site.settings import read_site
from client.site.vault_access import count_units, hold_vault, open_vault
from client.training.latents import EncodingPlan
from client.training.loaded_base import MIB, LoadedBase, check_memory
from client.training.vault_latents import encode_vault
from client.vault.errors import WrongMasterKey
from client.vault.records import today
from common.adapter.model import Family, open_base
from common.crypto.identity_file import read_identity_file
from common.crypto.primitives import Identity
from common.errors import ConfigError, NotEnoughMemory
from common.host.preflight import look_at
from common.manifest.manifest import open_manifest, sign_manifest
from common.manifest.terms import draft_manifest
from common.privacy.statements import Unit
from common.provisioning import institution_fingerprint
from tests.simulations.vault_sites import COORDINATOR, NAMES, VaultSites, make_vault_sites, new_record
from tests.tiny_base import write_tiny_base

if TYPE_CHECKING:
    from pathlib import Path

SITE = NAMES[0]


@pytest.fixture
def sites(tmp_path_factory: pytest.TempPathFactory) -> VaultSites:
    made = make_vault_sites(tmp_path_factory.mktemp("v"), rounds=1)
    for path in (made.root / SITE / "approvals").rglob("*.*"):
        path.unlink()
    (made.root / "run.manifest").write_bytes(made.signed)
    return made


def invoke(sites: VaultSites, *words: str, answer: str = "") -> Any:
    return CliRunner().invoke(app, [*words, "--config", str(sites.root / SITE / "site.toml")], input=answer)


def test_approve_shows_the_run_asks_and_only_a_yes_counts(sites: VaultSites) -> None:
    path, digest = str(sites.root / "run.manifest"), open_manifest(sites.signed)[1]
    for answer in ("n\n", "\n", ""):
        done = invoke(sites, "approve", path, answer=answer)
        assert done.exit_code == 1
        assert not sites.open(SITE).approvals.is_approved(digest)
    assert len(re.findall(r"- Against .*: epsilon = [0-9.]+\.", done.output)) == 4
    assert all(name in done.output for name in NAMES)
    assert "This site's policy allows the run." in done.output
    assert f"Budget of {SITE}/subject" in done.output
    assert invoke(sites, "approve", path, answer="y\n").exit_code == 0
    assert sites.open(SITE).approvals.is_approved(digest)
    assert f"approved  {digest.hex()}" in invoke(sites, "approvals").output


def test_withdraw_asks_and_is_told_by_the_beginning_of_the_digest(sites: VaultSites) -> None:
    digest = open_manifest(sites.signed)[1]
    sites.open(SITE).approvals.approve(sites.signed)
    assert invoke(sites, "withdraw", digest.hex()[:12], answer="n\n").exit_code == 1
    assert sites.open(SITE).approvals.is_approved(digest)
    assert invoke(sites, "withdraw", digest.hex()[:12], answer="y\n").exit_code == 0
    assert not sites.open(SITE).approvals.is_approved(digest)


def test_revoke_says_that_it_is_called_withdraw_and_does_nothing(sites: VaultSites) -> None:
    digest = open_manifest(sites.signed)[1]
    sites.open(SITE).approvals.approve(sites.signed)
    done = invoke(sites, "revoke", digest.hex()[:12], "--yes")
    assert "called withdraw now" in str(done.exception)
    assert sites.open(SITE).approvals.is_approved(digest)


def test_what_is_neither_file_nor_digest_is_told_so(sites: VaultSites) -> None:
    done = invoke(sites, "approve", "trial.manifest")
    assert str(done.exception).startswith("'trial.manifest' is no file here, nor the beginning of a run's digest")


def test_a_site_that_names_no_coordinator_yet_can_be_looked_at_and_takes_no_run(sites: VaultSites) -> None:
    path = sites.root / SITE / "policy.toml"
    path.write_text(re.sub(r"(?m)^(coordinators|base_digests) = .*$", r"\1 = []", path.read_text()))
    assert "no run yet" in invoke(sites, "approvals").output
    assert invoke(sites, "status").exit_code == 0
    done = invoke(sites, "approve", str(sites.root / "run.manifest"), "--yes")
    assert "is not in policy.coordinators" in str(done.exception)
    assert invoke(sites, "approvals").output.startswith("no run yet")


def test_a_run_that_the_policy_forbids_cannot_be_approved_even_with_yes(sites: VaultSites) -> None:
    policy = sites.root / SITE / "policy.toml"
    policy.write_text(policy.read_text().replace("epsilon_per_run = 4.0", "epsilon_per_run = 0.5"))
    done = invoke(sites, "approve", str(sites.root / "run.manifest"), "--yes")
    assert done.exit_code != 0
    assert "FORBIDS" in done.output
    assert not sites.open(SITE).approvals.is_approved(open_manifest(sites.signed)[1])


def test_a_roster_of_strangers_is_shown_and_what_approve_prints_makes_the_policy_complete(sites: VaultSites) -> None:
    policy = sites.root / SITE / "policy.toml"
    whole = policy.read_text()
    policy.write_text(re.sub(r"(?m)^institutions = .*$", "institutions = []", whole))
    sites.open(SITE).approvals.note_proposal(sites.signed)
    for words in (("approvals",), ("approve", str(sites.root / "run.manifest"), "--yes")):
        said = invoke(sites, *words)
        assert said.output.count("NOT NAMED in the policy") == len(NAMES)
        (line,) = re.findall(r"(?m)^institutions = .*$", said.output)
    assert "policy.institutions" in str(said.exception)
    told = " ".join(invoke(sites, "status").output.split())
    assert (told.count("institutions: empty"), "no institution is named" in told) == (1, False)
    policy.write_text(re.sub(r"(?m)^institutions = .*$", line, policy.read_text()))
    assert invoke(sites, "approve", str(sites.root / "run.manifest"), "--yes").exit_code == 0
    assert "NOT NAMED" not in invoke(sites, "approvals").output


def test_each_institution_is_told_the_fingerprint_that_the_others_are_shown(sites: VaultSites, tmp_path: Path) -> None:
    said = init(tmp_path / "site").output
    own = Identity(read_identity_file(tmp_path / "site" / "identity.key").seed()).public
    assert f"to read out to the other institutions: {institution_fingerprint(own)}" in said
    shown = invoke(sites, "approve", str(sites.root / "run.manifest"), answer="n\n").output
    ours = institution_fingerprint(sites.open(SITE).identity.public)
    assert f"- {SITE}  {ours}  named in the policy, this site" in shown
    assert ours in " ".join(invoke(sites, "status").output.split())


def test_a_site_with_too_many_units_is_told_so_before_anybody_approves(sites: VaultSites) -> None:
    """A steward's answer must not tell, so here is where people learn why nothing would come of it."""
    manifest, digest = open_manifest(sites.signed)
    assert manifest.config.privacy != "none"
    privacy = msgspec.structs.replace(manifest.config.privacy, largest_site=5)
    config = msgspec.structs.replace(manifest.config, privacy=privacy)
    small = draft_manifest(
        config,
        base_digest=manifest.base_digest,
        adapter_digest=manifest.adapter_digest,
        dimension=manifest.dimension,
        coordinator=COORDINATOR.public,
        roster=manifest.roster,
        code_version=manifest.code_version,
    )
    (sites.root / "small.manifest").write_bytes(sign_manifest(small, COORDINATOR))
    done = invoke(sites, "approve", str(sites.root / "small.manifest"), "--yes")
    assert "this institution has more than 5 privacy units" in str(done.exception)
    assert "FORBIDS" in done.output
    assert not sites.open(SITE).approvals.is_approved(open_manifest(sign_manifest(small, COORDINATOR))[1])
    assert invoke(sites, "approve", digest.hex(), "--yes").exit_code != 0  # not known here
    assert invoke(sites, "approve", str(sites.root / "run.manifest"), "--yes").exit_code == 0


def test_units_are_counted_as_a_run_would_train_on_them(sites: VaultSites) -> None:
    site = sites.open(SITE)
    with open_vault(site.config.vault, access="write") as vault:
        vault.add(
            [
                new_record("more", 1, subject_id="a"),
                new_record("more", 2, subject_id="a"),
                new_record("more", 3, subject_id="a", split="holdout"),
                new_record("more", 4, subject_id="b", split="holdout"),
                new_record("more", 5, subject_id="c", expires=today()),
            ]
        )
    counts = {unit: count_units(site.config.vault, unit, day=today(), expected=None) for unit in get_args(Unit)}
    plan = EncodingPlan(resolution=32, horizontal_flips=False)
    with open_vault(site.config.vault) as vault:
        shard = encode_vault(open_base(sites.root / "base"), vault, plan, today=today())
    assert counts == {"image": len(shard.images), "subject": len(shard.subjects)} == {"image": 8, "subject": 4}


def test_approve_says_that_a_running_steward_goes_by_the_policy_as_it_was(sites: VaultSites) -> None:
    """It said "allows" by the file, while the steward refused by what it had read when it was started."""
    policy = sites.root / SITE / "policy.toml"
    new = policy.read_text()
    policy.write_text(new.replace("epsilon_per_run = 4.0", "epsilon_per_run = 0.5"))
    with sites.serving(SITE):
        policy.write_text(new)
        said = invoke(sites, "approve", str(sites.root / "run.manifest"), answer="n\n").output
        assert "This site's policy allows the run." in said
        assert "BUT the running steward still goes by the policy as it was at 20" in said
        assert "Until then it refuses the run:\n- ε = " in said
        assert "still goes by the policy" in " ".join(invoke(sites, "status").output.split())
        (looked,) = [each for each in look_at(steward_checks(sites.settings(SITE))) if each.name == "running steward"]
        assert not looked.passed
        assert "still goes by" in looked.got
        noted = sites.root / SITE / "run" / "steward.policy"
        assert stat.S_IMODE(noted.stat().st_mode) == 0o600
        noted.write_bytes(b"{")
        assert "restart it" in str(invoke(sites, "approve", str(sites.root / "run.manifest")).exception)
    # what a steward left that runs no more is nobody's policy
    assert "BUT" not in invoke(sites, "approve", str(sites.root / "run.manifest"), answer="n\n").output
    with sites.serving(SITE):
        assert "BUT" not in invoke(sites, "approve", str(sites.root / "run.manifest"), answer="n\n").output
        assert "still goes by" not in " ".join(invoke(sites, "status").output.split())
        assert all(each.passed for each in look_at(steward_checks(sites.settings(SITE))) if each.name != "disk")


def test_a_new_site_has_an_empty_vault(tmp_path: Path) -> None:
    make_site(tmp_path / "site", "st-vincent")
    with open_vault(read_site(tmp_path / "site" / "site.toml").vault) as vault:
        assert vault.infos() == ()


def init(folder: Path, *more: str) -> Any:
    return CliRunner().invoke(app, ["init", str(folder), "--name", "st-vincent", *more])


def test_init_locks_the_vault_by_a_passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "site"
    for weak in (None, "short"):
        monkeypatch.delenv("VAULT_WORDS", raising=False)
        if weak:
            monkeypatch.setenv("VAULT_WORDS", weak)
        assert init(folder, "--passphrase-env", "VAULT_WORDS").exit_code != 0
        assert not folder.exists()
    monkeypatch.setenv("VAULT_WORDS", "seven random words on paper")
    assert init(folder, "--passphrase-env", "VAULT_WORDS").exit_code == 0
    assert not (folder / "vault.key").exists()
    open_vault(read_site(folder / "site.toml").vault).close()
    monkeypatch.setenv("VAULT_WORDS", "seven other words on paper")
    with pytest.raises(WrongMasterKey):
        open_vault(read_site(folder / "site.toml").vault)


def test_a_steward_keeps_its_passphrase_out_of_its_environment_and_opens_its_vault_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VAULT_WORDS", "seven random words on paper")
    assert init(tmp_path / "site", "--passphrase-env", "VAULT_WORDS").exit_code == 0
    site = tmp_path / "site" / "site.toml"
    write_tiny_base(tmp_path / "site" / "base", Family.SD1)
    compose_steward(open_site(site))
    assert "VAULT_WORDS" not in os.environ
    monkeypatch.setenv("VAULT_WORDS", "seven random words on paper")
    held = hold_vault(read_site(site).vault)
    assert "VAULT_WORDS" not in os.environ
    assert "seven" not in repr(held)
    for _ in range(2):
        open_vault(held).close()
    with pytest.raises(ConfigError, match="VAULT_WORDS"):
        open_vault(read_site(site).vault)


def test_init_takes_one_key(tmp_path: Path) -> None:
    assert init(tmp_path / "site", "--passphrase-env", "A", "--keyring", "b").exit_code != 0
    assert not (tmp_path / "site").exists()


def test_a_base_that_does_not_fit_is_refused_before_it_or_a_picture_is_read(sites: VaultSites, tmp_path: Path) -> None:
    base = open_base(write_tiny_base(tmp_path / "base", Family.SD1))
    with pytest.raises(NotEnoughMemory, match="MiB"):
        check_memory(base, device="cpu", limit_mib=100)
    assert check_memory(base, device="cpu", limit_mib=None).wanted > 512 * MIB

    class Untouched:
        def count_units(self, *_: object) -> int:
            raise AssertionError("pictures were counted")

        def encoded(self, *_: object, **__: object) -> Any:
            raise AssertionError("pictures were read")

    own = read_site(sites.root / SITE / "site.toml")
    small = msgspec.structs.replace(own, base=base.directory, device="cpu", memory_limit_mib=100)
    room = LoadedBase(site=small, records=Untouched())

    asked = msgspec.structs.replace(open_manifest(sites.signed)[0], base_digest=base.digest)
    with pytest.raises(NotEnoughMemory):
        room.prepare(asked)
    assert not room.loaded
