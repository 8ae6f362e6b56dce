"""Three sites hold a release of their own run against their books; liars of every kind are found out."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from msgspec import UNSET
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from client.cli import app as client_app
from client.operations.countersigning import countersign, examine
from common.audit_log import AuditLog, read_entries
from common.crypto.primitives import Identity, Secret
from common.errors import ApprovalError, UnknownInstitution
from common.manifest.manifest import open_manifest
from common.privacy.run_plan import private_plan
from common.release.check import Expected, check_release, read_words
from common.release.model_card import model_card
from common.release.statement import LogHead, ReleaseError, file_bytes, sign_word, stated_privacy
from server.cli import app as server_app
from server.release.release import make_release
from tests.simulations.released import FinishedRun, copied, finished_run, restated
from tests.simulations.vault_sites import NAMES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from client.site.open_site import OpenSite
    from common.release.folder import ReleaseFolder

FOREIGN = Identity(Secret(b"f" * 32))
SITE = NAMES[1]


@dataclass(frozen=True)
class World:
    run: FinishedRun
    plain: ReleaseFolder
    """Not signed by any site."""
    signed: ReleaseFolder
    """Signed by all of them."""

    def site(self, name: str = SITE) -> OpenSite:
        return self.run.sites.open(name)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    run = finished_run(root / "run")
    plain = run.release(root / "plain")
    signed = copied(plain, root / "signed")
    for name in NAMES:
        site = run.sites.open(name)
        countersign(signed, site, examine(signed, site))
    return World(run, plain, signed)


@pytest.fixture
def signed(world: World, tmp_path: Path) -> ReleaseFolder:
    return copied(world.signed, tmp_path / "release")


@pytest.fixture
def plain(world: World, tmp_path: Path) -> ReleaseFolder:
    return copied(world.plain, tmp_path / "release")


def faults(folder: ReleaseFolder, **expected: Any) -> str:
    return "\n".join(check_release(folder, Expected(**expected)).faults)


def test_all_sites_sign_and_everybody_can_check(world: World) -> None:
    found = check_release(world.signed, Expected())
    assert (found.faults, found.unsigned) == ((), ())
    assert found.signed == tuple(f"{name}.json" for name in NAMES)
    assert found.manifest is not None
    words, _ = read_words(world.signed, found.release, found.manifest)
    assert [(word.institution, word.attempts) for word in words] == [(name, 2) for name in NAMES]


def test_the_sites_own_accountant_agrees_with_the_statement(world: World) -> None:
    found = examine(world.plain, world.site())
    stated = found.release.privacy.sent.server
    assert stated is not None
    assert found.epsilon == pytest.approx(stated, rel=1e-3)
    assert found.epsilon <= stated * (1 + 1e-9)
    assert found.notes == ("that the adapter is the outcome of the last round, which this site was never sent",)


def test_both_command_lines_check_and_exit_with_an_error(world: World, signed: ReleaseFolder) -> None:
    for app in (client_app, server_app):
        done = CliRunner().invoke(app, ["release", "verify", str(signed.root)])
        assert done.exit_code == 0, done.output
        assert "in order: every file" in done.output
        key = open_manifest(world.run.left.signed)[0].coordinator
        given = ["release", "verify", str(signed.root), "--coordinator", key, "--signatures", "3"]
        assert CliRunner().invoke(app, given).exit_code == 0
    (signed.root / "README.md").write_text("better than it is")
    for app in (client_app, server_app):
        done = CliRunner().invoke(app, ["release", "verify", str(signed.root)])
        assert isinstance(done.exception, ReleaseError)
        assert "README.md" in str(done.exception)


def test_the_command_asks_and_only_a_yes_signs(world: World, plain: ReleaseFolder) -> None:
    command = ["countersign", str(plain.root), "--config", str(world.run.sites.root / SITE / "site.toml")]
    for answer in ("n\n", "\n", ""):
        assert CliRunner().invoke(client_app, command, input=answer).exit_code == 1
        assert not list(plain.signatures.iterdir())
    done = CliRunner().invoke(client_app, command, input="y\n")
    assert done.exit_code == 0
    assert "this site contributed 2 times" in done.output
    assert [path.name for path in plain.signatures.iterdir()] == [f"{SITE}.json"]
    assert CliRunner().invoke(client_app, [*command, "--yes"]).exit_code == 0  # again does no harm


def test_with_a_private_roster_words_carry_numbers_only(world: World, tmp_path: Path) -> None:
    folder = world.run.release(tmp_path / "private", roster="private")
    for name in NAMES:
        countersign(folder, world.site(name), examine(folder, world.site(name)))
    assert faults(folder, manifest=world.run.left.signed) == ""
    assert "without the run's manifest" in faults(folder)
    assert sorted(path.name for path in folder.signatures.iterdir()) == [f"institution-000{n}.json" for n in (1, 2, 3)]
    content = b"".join(path.read_bytes() for path in folder.signatures.iterdir())
    assert not [name for name in NAMES if name.encode() in content]


# --- files


def append(name: str) -> Callable[[Path], object]:
    return lambda root: (root / name).write_bytes((root / name).read_bytes() + b" ")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (append("README.md"), "README.md: sha256"),
        (append("pytorch_lora_weights.safetensors"), "pytorch_lora_weights.safetensors: sha256"),
        (append("test.safetensors"), "test.safetensors: sha256"),
        (append("run.manifest"), "run.manifest: sha256"),
        (append("adapter_spec.json"), "adapter_spec.json: sha256"),
        (lambda root: (root / "test.safetensors").unlink(), "test.safetensors: cannot be read"),
        (lambda root: (root / "extra.py").write_text("print()"), "extra.py: is not part of the release"),
        (lambda root: (root / ".hidden").mkdir(), ".hidden: is not part of the release"),
        (lambda root: shutil.move(root / "README.md", root / "readme.md"), "readme.md: is not part"),
        (lambda root: (root / "README.md").replace(root / "test.safetensors"), "test.safetensors: sha256"),
    ],
)
def test_a_file_that_is_altered_swapped_missing_or_extra_is_named(
    signed: ReleaseFolder, damage: Callable[[Path], object], said: str
) -> None:
    damage(signed.root)
    assert said in faults(signed)


def test_a_link_or_pipe_is_no_file_even_with_the_right_content(signed: ReleaseFolder, tmp_path: Path) -> None:
    card = signed.root / "README.md"
    card.rename(tmp_path / "elsewhere")
    card.symlink_to(tmp_path / "elsewhere")
    assert "README.md: cannot be read" in faults(signed)
    card.unlink()
    os.mkfifo(card)
    assert "README.md: cannot be read" in faults(signed)


def test_an_adapter_for_other_programs_that_is_another_one_is_found(signed: ReleaseFolder) -> None:
    path = signed.root / "test.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("lora_up.weight"))
    tensors[name] = tensors[name] + 1
    save_file(tensors, path)
    restated(signed)
    assert "test.safetensors: holds another adapter" in faults(signed)


def test_a_card_that_promises_more_is_found(signed: ReleaseFolder) -> None:
    path = signed.root / "README.md"
    path.write_text(path.read_text().replace("| whoever gets the adapter", "| nobody who gets the adapter"))
    restated(signed)
    assert "README.md: is not the card that release.json gives" in faults(signed)


def test_another_runs_manifest_inside_is_found(world: World, signed: ReleaseFolder) -> None:
    other = finished_manifest(world)
    (signed.root / "run.manifest").write_bytes(other)
    restated(signed)
    assert "the manifest says" in faults(signed)
    assert "run.manifest: is not the manifest" in faults(signed, manifest=world.run.left.signed)


def finished_manifest(world: World) -> bytes:
    """The same run under another number, signed by the same coordinator."""
    from common.manifest.manifest import sign_manifest  # noqa: PLC0415 - one test's need

    manifest, _ = open_manifest(world.run.left.signed)
    return sign_manifest(msgspec.structs.replace(manifest, run="ab" * 16), world.run.left.identity)


# --- the statement, signed again by a coordinator who lies


def lie(world: World, **changes: Any) -> Any:
    return msgspec.structs.replace(world.plain.release().privacy, **changes)


def lower(world: World, which: str, against: str) -> Any:
    privacy = world.plain.release().privacy
    stated = getattr(privacy, which)
    return lie(world, **{which: msgspec.structs.replace(stated, **{against: getattr(stated, against) * 0.999})})


@pytest.mark.parametrize("which", ["sent", "planned"])
@pytest.mark.parametrize("against", ["server", "institutions", "public", "fallback"])
def test_an_epsilon_that_is_too_small_is_found(world: World, signed: ReleaseFolder, which: str, against: str) -> None:
    restated(signed, privacy=lower(world, which, against))
    assert f"privacy.{which}.{against}: ε = " in faults(signed)


def test_an_epsilon_that_is_larger_is_no_fault_of_the_figures(world: World, plain: ReleaseFolder) -> None:
    sent = world.plain.release().privacy.sent
    restated(plain, privacy=lie(world, sent=msgspec.structs.replace(sent, fallback=None)))
    (plain.root / "README.md").write_text(model_card(plain.release(), NAMES))
    restated(plain)
    assert faults(plain, signatures=0) == ""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "other"}, "wanted the files"),
        ({"manifest": "00" * 32}, "manifest: 00"),
        ({"base": "sha256:" + "00" * 32}, "specification is not the one"),
        ({"family": "sd2"}, "specification is not the one"),
        ({"adapter_spec": "sha256:" + "00" * 32}, "specification is not the one"),
        ({"adapter": "sha256:" + "00" * 32}, "the adapter is sha256"),
        ({"dimension": 1}, "specification is not the one"),
        ({"rounds": 3}, "rounds: 3; the manifest has 2"),
        ({"rounds_planned": 3}, "rounds_planned: 3"),
        ({"code_version": "9"}, "code_version: 9"),
        ({"roster": "private"}, "wanted the files"),
        ({"logs": (LogHead(place=3, head="00" * 32),)}, "not in the roster"),
        ({"logs": (LogHead(place=1, head="00" * 32),) * 2}, "each institution once"),
        ({"institutions": 300}, "institutions: 300; the manifest says 3"),
        ({"version": 1}, "none in version 1"),
        ({"version": 1, "card": UNSET, "institutions": UNSET}, "is of version 1"),
        ({"files": ()}, "cannot be read"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_statement_that_does_not_fit_manifest_or_files_is_found(
    world: World, signed: ReleaseFolder, changes: dict[str, Any], said: str
) -> None:
    restated(signed, **changes)
    try:
        found = faults(signed, manifest=world.run.left.signed)
    except ReleaseError as error:
        found = str(error)
    assert said in found


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"unit": "subject"}, "privacy.unit"),
        ({"delta": 1e-9}, "privacy.delta"),
        ({"relation": "replacing one unit"}, "privacy.relation"),
        ({"secure_aggregation": False}, "privacy.secure_aggregation"),
    ],
)
def test_other_terms_of_privacy_are_found(
    world: World, signed: ReleaseFolder, changes: dict[str, Any], said: str
) -> None:
    restated(signed, privacy=lie(world, **changes))
    assert said in faults(signed)


def for_attempts(world: World, attempts: int) -> Any:
    """Consistent figures for a number of attempts that were not so many."""
    plan = private_plan(open_manifest(world.run.left.signed)[0].config)
    assert plan is not None
    return stated_privacy(plan.report(attempts), plan.report(plan.attempts))


def test_fewer_attempts_than_rounds_or_more_than_planned_are_found(world: World, signed: ReleaseFolder) -> None:
    restated(signed, privacy=for_attempts(world, 1))
    assert "fewer than the 2 rounds" in faults(signed)
    restated(signed, privacy=for_attempts(world, 4))
    assert "sized for 3" in faults(signed)


def test_another_coordinators_statement_is_found(world: World, signed: ReleaseFolder) -> None:
    restated(signed, signer=FOREIGN, coordinator=FOREIGN.public.hex())
    assert "the manifest says" in faults(signed)
    told = faults(signed, coordinator=world.plain.release().coordinator)
    assert "signed by another coordinator than the one whose key was given" in told
    restated(signed, signer=FOREIGN, coordinator=world.plain.release().coordinator)
    with pytest.raises(ReleaseError, match="not signed"):
        faults(signed)


# --- signatures


def test_a_missing_signature_is_named_and_fewer_can_be_asked_for(signed: ReleaseFolder) -> None:
    (signed.signatures / f"{SITE}.json").unlink()
    assert f"2 institutions signed, 3 are wanted; missing: {SITE}.json" in faults(signed)
    assert faults(signed, signatures=2) == ""
    shutil.rmtree(signed.signatures)
    assert "0 institutions signed" in faults(signed)
    assert faults(signed, signatures=0) == ""


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "cannot be read"),
        (lambda path: path.write_bytes(b"x" * 9999), "more than"),
        (lambda path: shutil.copy(path.parent / f"{NAMES[0]}.json", path), "not signed with the key"),
        (lambda path: path.rename(path.parent / "mallory.json"), "of nobody in the run's roster"),
        (lambda path: path.with_name("coordinator.json").write_text("{}"), "of nobody in the run's roster"),
        (lambda path: (path.rename(path.parents[2] / "w"), path.symlink_to(path.parents[2] / "w")), "cannot be read"),
    ],
    ids=["cut", "large", "anothers", "stranger", "stray", "link"],
)
def test_a_word_that_is_damaged_or_anothers_is_found(
    signed: ReleaseFolder, damage: Callable[[Path], object], said: str
) -> None:
    damage(signed.signatures / f"{SITE}.json")
    assert said in faults(signed)


def test_a_foreign_signer_is_found(world: World, signed: ReleaseFolder) -> None:
    path = signed.signatures / f"{SITE}.json"
    manifest, _ = open_manifest(world.run.left.signed)
    words, _ = read_words(signed, signed.release(), manifest)
    path.write_bytes(file_bytes(sign_word(words[1], FOREIGN)))
    assert "not signed with the key" in faults(signed)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"release": "00" * 32}, "is about release 00"),
        ({"place": 0}, "of another institution"),
        ({"institution": "ash"}, "of another institution"),
        ({"attempts": 3}, "contributed 3 times"),
    ],
)
def test_a_word_of_the_right_key_on_something_else_is_found(
    world: World, signed: ReleaseFolder, changes: dict[str, Any], said: str
) -> None:
    manifest, _ = open_manifest(world.run.left.signed)
    words, _ = read_words(signed, signed.release(), manifest)
    word = sign_word(msgspec.structs.replace(words[1], **changes), world.site().identity)
    (signed.signatures / f"{SITE}.json").write_bytes(file_bytes(word))
    assert said in faults(signed)


def test_a_word_on_an_earlier_release_of_the_run_does_not_count(signed: ReleaseFolder) -> None:
    restated(signed, time="2026-03-02T12:00:00+00:00")
    assert faults(signed).count("is about release") == 3


def test_a_link_in_place_of_the_folder_of_signatures_is_not_followed(
    world: World, plain: ReleaseFolder, tmp_path: Path
) -> None:
    plain.signatures.rmdir()
    (tmp_path / "elsewhere").mkdir()
    plain.signatures.symlink_to(tmp_path / "elsewhere")
    found = examine(plain, world.site())
    assert any("signatures" in fault for fault in found.faults)
    with pytest.raises(ReleaseError, match="not signed"):
        countersign(plain, world.site(), found)
    assert list((tmp_path / "elsewhere").iterdir()) == []


# --- what a site knows by itself


def refused(folder: ReleaseFolder, site: OpenSite) -> str:
    found = examine(folder, site)
    assert found.faults
    with pytest.raises(ReleaseError, match="not signed"):
        countersign(folder, site, found)
    assert not folder.signatures.exists() or not list(folder.signatures.iterdir())
    return "\n".join(found.faults)


def test_attempts_that_this_site_knows_of_cannot_be_left_out(tmp_path: Path) -> None:
    # one round, two attempts: the coordinator says one, with the figures of one
    run = finished_run(tmp_path / "run", rounds=1)
    world = World(run, run.release(tmp_path / "plain"), run.release(tmp_path / "signed"))
    ledger, manifest = world.site().ledger, open_manifest(run.left.signed)[0]
    (row,) = _rows(world.site())
    folder = copied(world.plain, tmp_path / "copy")
    assert examine(folder, world.site()).faults == ()
    _charge_again(ledger, world.site(), manifest)
    assert "attempts: 1; this site alone contributed 2 times" in refused(folder, world.site())
    assert "this site's own accountant says" in refused(folder, world.site())
    assert row.round == 0


def test_attempts_before_and_beside_those_that_this_site_was_asked_for_count(
    world: World, plain: ReleaseFolder, tmp_path: Path
) -> None:
    """In rounds 1 and 2 it took part; of 1 there was a second attempt, so three were sent, and here two are stated."""
    site, log = world.site(), tmp_path / "audit.log"
    shutil.copy(site.config.audit_log, log)
    details = {"run": plain.release().manifest, "round": 1, "attempt": 1}
    AuditLog(path=log, identity=site.identity).append("charged", details)
    other = replace(site, config=msgspec.structs.replace(site.config, audit_log=log))
    told = refused(plain, other)
    assert "attempts: 2; by the rounds and attempts that this site was asked for, at least 3" in told


def _rows(site: OpenSite) -> list[Any]:
    from client.governance.ledger_store import connection, read_rows  # noqa: PLC0415 - one test's need

    with connection(site.ledger.path, busy_seconds=5) as store:
        return read_rows(store)


def _charge_again(ledger: Any, site: OpenSite, manifest: Any) -> None:
    from client.governance.policy import contribution_event  # noqa: PLC0415 - one test's need
    from common.secagg.messages import Step  # noqa: PLC0415 - as above

    account = site.policy.account(site.config.collection, private=True)
    run = _rows(site)[0].run
    ledger.charge(account, run=run, step=Step(0, 5), event=contribution_event(manifest, site.policy, cohort=3))


def test_a_release_below_the_sites_own_epsilon_is_refused(world: World, plain: ReleaseFolder) -> None:
    restated(plain, privacy=lower(world, "sent", "server"))
    assert "this site's own accountant says" in refused(plain, world.site())


def test_an_adapter_or_file_that_was_swapped_is_refused(world: World, plain: ReleaseFolder) -> None:
    append("README.md")(plain.root)
    assert "README.md" in refused(plain, world.site())


def test_a_run_that_was_never_approved_here_is_refused(world: World, plain: ReleaseFolder) -> None:
    restated(plain, manifest="00" * 32)
    with pytest.raises(ApprovalError, match="never approved at this site"):
        examine(plain, world.site())


def test_a_run_whose_approval_was_taken_back_is_refused(world: World, plain: ReleaseFolder, tmp_path: Path) -> None:
    shutil.copytree(world.run.sites.root / SITE, tmp_path / "site")
    site = replace(world.site(), approvals=replace(world.site().approvals, folder=tmp_path / "site" / "approvals"))
    site.approvals.withdraw(bytes.fromhex(plain.release().manifest))
    assert "not approved at this site, or no longer" in refused(plain, site)


def test_a_coordinator_whom_the_policy_no_longer_names_is_refused(world: World, plain: ReleaseFolder) -> None:
    policy = msgspec.structs.replace(world.site().policy, coordinators=(FOREIGN.public.hex(),))
    assert "is not in this site's policy.coordinators" in refused(plain, replace(world.site(), policy=policy))


def test_a_site_that_is_not_in_the_roster_does_not_sign(world: World, plain: ReleaseFolder) -> None:
    with pytest.raises(UnknownInstitution):
        examine(plain, replace(world.site(), identity=FOREIGN))


def test_a_head_that_is_not_in_this_sites_history_is_refused(world: World, plain: ReleaseFolder) -> None:
    restated(plain, logs=tuple(LogHead(place=place, head="00" * 32) for place in range(3)))
    assert "not in this history" in refused(plain, world.site())


def test_a_release_without_this_sites_head_is_noted(world: World, plain: ReleaseFolder) -> None:
    restated(plain, logs=())
    assert any("audit log" in note for note in examine(plain, world.site()).notes)


def test_an_adapter_that_the_site_was_sent_is_compared(world: World, tmp_path: Path) -> None:
    # a release after round 1: what that round gave is what every site was sent in round 2
    left = replace(world.run.left, directory=tmp_path / "left")
    shutil.copytree(world.run.left.directory, left.directory)
    (left.directory / "checkpoints" / "round-0000002.safetensors").unlink()
    make_release(left, world.run.plan(tmp_path / "one", rounds="done"))
    one = replace(world.plain, root=tmp_path / "one")
    found = examine(one, world.site())
    assert (found.faults, found.notes) == ((), ())
    # the final adapter, under the same statement, was not the first round's
    for name in ("pytorch_lora_weights.safetensors", "test.safetensors"):
        shutil.copy(world.plain.root / name, one.root / name)
    restated(one, adapter=world.plain.release().adapter)
    assert "after round 1 this site was sent sha256" in refused(one, world.site())


def test_a_folder_that_changes_between_look_and_signature_is_not_signed(world: World, plain: ReleaseFolder) -> None:
    found, statement = examine(plain, world.site()), (plain.root / "release.json").read_bytes()
    restated(plain, time="2026-03-02T12:00:00+00:00")
    with pytest.raises(ReleaseError, match="changed while"):
        countersign(plain, world.site(), found)
    (plain.root / "release.json").write_bytes(statement)
    append("README.md")(plain.root)
    with pytest.raises(ReleaseError, match="changed while"):
        countersign(plain, world.site(), found)
    restated(plain)
    with pytest.raises(ReleaseError, match="changed while"):
        countersign(plain, world.site(), found)
    assert not list(plain.signatures.iterdir())


def test_another_file_in_the_words_place_is_not_overwritten(world: World, plain: ReleaseFolder, tmp_path: Path) -> None:
    found = examine(plain, world.site())
    path = plain.signatures / f"{SITE}.json"
    path.write_text("{}")
    with pytest.raises(ReleaseError):
        countersign(plain, world.site(), found)
    assert path.read_text() == "{}"
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ReleaseError):
        countersign(plain, world.site(), found)
    assert not (tmp_path / "elsewhere").exists()


# --- what a site keeps, and tells when a subject is erased


def test_the_record_is_kept_before_the_word_leaves(
    world: World, plain: ReleaseFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("full")

    found = examine(plain, world.site())
    with monkeypatch.context() as patched:
        patched.setattr("client.governance.signed_releases.ReleaseBook.note", full)
        with pytest.raises(OSError, match="full"):
            countersign(plain, world.site(), found)
    assert not list(plain.signatures.iterdir())


def test_erasing_names_the_releases_with_their_epsilon_and_notes_them(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", rounds=1)
    first = run.release(tmp_path / "first")
    second = restated(copied(first, tmp_path / "second"), time="2026-04-01T12:00:00+00:00")
    site = run.sites.open(SITE)
    for folder in (second, first):
        countersign(folder, site, examine(folder, site))
    command = ["erase", "--config", str(run.sites.root / SITE / "site.toml")]
    subject = f"CanarySubject-{SITE}-0\n"
    done = CliRunner().invoke(client_app, command, input=subject)
    assert done.exit_code == 0, done.output
    release = first.release()
    lines = [line for line in done.output.splitlines() if "released as" in line]
    assert [release.time[:10] in line for line in lines] == [True, False]
    assert all(release.adapter in line for line in lines)
    public = release.privacy.sent.public
    assert public is not None
    told = float(lines[0].partition("at most ε = ")[2].split()[0])
    assert public <= told < 1.01 * public
    assert CliRunner().invoke(client_app, [*command, "--commit", "--yes"], input=subject).exit_code == 0
    noted = [each for each in read_entries(run.sites.root / SITE / "audit.log") if each.kind in {"erasing", "erased"}]
    digests = f"{release.digest().hex()},{second.release().digest().hex()}"
    assert [each.details["releases"] for each in noted] == [digests, digests]
    assert "CanarySubject" not in (run.sites.root / SITE / "audit.log").read_text()


def test_a_site_that_signed_nothing_says_so_and_a_damaged_record_stops_no_erasing(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", rounds=1)
    command = ["erase", "--config", str(run.sites.root / SITE / "site.toml")]
    subject = f"CanarySubject-{SITE}-0\n"
    assert "this site signed no release of it" in CliRunner().invoke(client_app, command, input=subject).output
    folder, site = run.release(tmp_path / "release"), run.sites.open(SITE)
    countersign(folder, site, examine(folder, site))
    (record,) = (run.sites.root / SITE / "releases").glob("*.json")
    record.write_bytes(record.read_bytes().replace(b'"attempts": 1', b'"attempts": 2'))
    assert "CANNOT BE TOLD" in CliRunner().invoke(client_app, command, input=subject).output
    assert CliRunner().invoke(client_app, [*command, "--commit", "--yes"], input=subject).exit_code == 0
    (erased,) = [each for each in read_entries(run.sites.root / SITE / "audit.log") if each.kind == "erased"]
    assert erased.details["releases"] == "unreadable"


@pytest.mark.parametrize("damage", ["word", "foreign", "renamed"])
def test_a_damaged_record_is_an_error_and_no_empty_answer(world: World, tmp_path: Path, damage: str) -> None:
    run = world.plain.release().manifest
    book = replace(world.site().releases, folder=tmp_path / "releases")
    shutil.copytree(world.site().releases.folder, book.folder)
    word = next(book.folder.glob("*.word"))
    match damage:
        case "word":
            word.unlink()
        case "foreign":
            plain = json.loads(word.read_text())
            word.write_text(json.dumps(plain | {"attempts": 1}))
        case "renamed":
            for path in (word, word.with_suffix(".json")):
                path.rename(path.with_stem("00" * 32))
    with pytest.raises(ReleaseError):
        book.releases(run=run)
