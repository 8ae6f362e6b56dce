"""Erasing and expiring in real vaults, by command and by a steward that serves; status and condition beside it."""

from __future__ import annotations

import shutil
import threading
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from client.cli import app
from client.operations import compose
from client.operations.care import BooksCheck, Retention
from client.operations.status import site_status
from client.site.open_site import link_to_steward
from client.site.vault_access import open_noted, open_vault
from client.training import vault_latents
from client.training.vault_latents import VaultRecords
from client.vault.errors import UnknownSubject, VaultRolledBack
from client.vault.records import today
from common.adapter.model import open_base
from common.audit_log import AuditLog, read_entries, verify_log
from common.errors import LedgerError, VaultError
from common.manifest.manifest import open_manifest
from common.wire.messages import Accepted, Propose, encode
from common.wire.replies import decode_reply
from tests.simulations.vault_sites import NAMES, VaultSites, make_vault_sites, new_record

if TYPE_CHECKING:
    from datetime import date

SITE = NAMES[0]
SUBJECT = f"CanarySubject-{SITE}-0"
"""Of two pictures."""


@pytest.fixture
def sites(tmp_path_factory: pytest.TempPathFactory) -> VaultSites:
    return make_vault_sites(tmp_path_factory.mktemp("v"), rounds=1)


def invoke(sites: VaultSites, *words: str) -> Any:
    asked = f"{SUBJECT}\n"  # by ``erase``
    return CliRunner().invoke(app, [*words, "--config", str(sites.root / SITE / "site.toml")], input=asked)


def command(sites: VaultSites, *words: str) -> str:
    done = invoke(sites, *words)
    assert done.exit_code == 0, (done.output, done.exception)
    return str(done.output)


def blobs(sites: VaultSites) -> set[str]:
    return {each.name for each in (sites.root / SITE / "vault" / "blobs").iterdir()}


def kinds(sites: VaultSites) -> list[str]:
    return [entry.kind for entry in read_entries(sites.root / SITE / "audit.log")]


def test_erasing_a_subject_after_a_run(sites: VaultSites) -> None:
    with sites.serving():
        sites.lead()
    run = open_manifest(sites.signed)[1].hex()
    before, log = blobs(sites), (sites.root / SITE / "audit.log").read_bytes()
    told = command(sites, "erase")
    assert "subjects to forget: 1" in told
    assert "pictures to destroy: 2" in told
    # two pictures' latents, their two captions, and the empty caption, which is kept with the first
    assert "encoded pictures and captions to destroy: 5" in told
    assert f"used in run {run}: ε = " in told
    assert "at δ = 0.001" in told
    assert (blobs(sites), (sites.root / SITE / "audit.log").read_bytes()) == (before, log)

    command(sites, "erase", "--commit", "--yes")
    assert len(before - blobs(sites)) == 2 + 5
    with open_vault(sites.settings(SITE).vault) as vault:
        assert len(vault.infos()) == 4
        with pytest.raises(UnknownSubject):
            vault.plan_erasure(SUBJECT)
    *_, begun, done = read_entries(sites.root / SITE / "audit.log")
    assert (begun.kind, done.kind) == ("erasing", "erased")
    assert done.details["runs"] == run
    assert SUBJECT not in (sites.root / SITE / "audit.log").read_text()
    verify_log(sites.root / SITE / "audit.log", sites.open(SITE).identity.public)
    assert "4 pictures of 2 subjects" in command(sites, "status")


@pytest.mark.parametrize("words", [("erase",), ("expire",)])
def test_nothing_is_opened_for_writing_while_a_steward_runs(
    sites: VaultSites, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: Any, **named: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():  # the serving steward looks for what expires
            return open_vault(*given, **named)
        raise AssertionError("the vault was opened")

    with sites.serving(SITE):
        with monkeypatch.context() as patched:
            patched.setattr("client.site.vault_access.open_vault", refuse)
            assert "runs already" in str(invoke(sites, *words, "--commit", "--yes").exception)
        command(sites, *words)  # a dry run only reads
        assert kinds(sites) == ["started"]


def test_a_serving_steward_erases_what_expires_and_trains_on_without_it(
    sites: VaultSites, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run's pictures are in memory when the day comes: they are dropped, and the run goes on with the others."""
    tomorrow = today() + timedelta(days=1)
    with open_vault(sites.settings(SITE).vault, access="write") as vault:
        vault.add([new_record(SITE, 100, expires=tomorrow)])
    day, seen = [today()], list[int]()
    watch(monkeypatch, day, seen)
    with sites.serving():
        sites.lead()
        assert seen == [7, 6, 6]
        day[0] = tomorrow
        wait_until(lambda: "expired" in kinds(sites))
        link = link_to_steward(sites.settings(SITE))
        assert not link.health().model_loaded
        assert isinstance(decode_reply(link.answer(encode(Propose(manifest=sites.signed)))), Accepted)
        assert seen == [7, 6, 6, 6]
    assert kinds(sites).count("joined") == 2
    with open_vault(sites.settings(SITE).vault) as vault:
        assert len(vault.infos()) == 6
        assert vault.plan_expiry(tomorrow).records == 0


def test_an_older_vault_is_used_by_no_run_and_no_look(sites: VaultSites, tmp_path: Path) -> None:
    """It was put back while the steward runs: what it holds may have been erased since."""
    site, forgot = sites.open(SITE), list[int]()
    audit = AuditLog(path=sites.root / SITE / "audit.log", identity=site.identity)
    shutil.copytree(site.config.vault.directory, tmp_path / "older")
    with open_vault(site.config.vault, access="write") as vault:
        vault.add([new_record(SITE, 100)])
        audit.append("ingested", {"vault": vault.state().text()})
    shutil.rmtree(site.config.vault.directory)
    shutil.copytree(tmp_path / "older", site.config.vault.directory)
    records = VaultRecords(config=site.config.vault, collection=site.config.collection, audit=audit)
    with pytest.raises(VaultRolledBack):
        records.encoded(base_of(sites), open_manifest(sites.signed)[0], device="cpu")
    with pytest.raises(VaultRolledBack):
        Retention(vault=site.config.vault, audit=audit, releases=site.releases, forget=lambda: forgot.append(1)).look()
    assert forgot == [1]
    assert kinds(sites) == ["ingested"]


def test_a_run_uses_a_vault_under_its_own_name_alone(sites: VaultSites) -> None:
    site = sites.open(SITE)
    audit = AuditLog(path=sites.root / SITE / "audit.log", identity=site.identity)
    manifest = open_manifest(sites.signed)[0]
    given = {"base": base_of(sites), "manifest": manifest, "device": "cpu"}
    VaultRecords(config=site.config.vault, collection="first", audit=audit).encoded(**given)
    with pytest.raises(LedgerError, match="charged as first"):
        VaultRecords(config=site.config.vault, collection="second", audit=audit).encoded(**given)
    assert kinds(sites) == ["prepared"]


def base_of(sites: VaultSites) -> Any:
    return open_base(sites.settings(SITE).base)


def watch(monkeypatch: pytest.MonkeyPatch, day: list[date], seen: list[int]) -> None:
    encode_vault = vault_latents.encode_vault

    def watched(*given: Any, **named: Any) -> Any:
        made = encode_vault(*given, **named)
        seen.append(len(made.shard))
        return made

    monkeypatch.setattr(vault_latents, "encode_vault", watched)
    monkeypatch.setattr(vault_latents, "today", lambda: day[0])
    monkeypatch.setattr(compose, "Retention", lambda **given: Retention(**given, today=lambda: day[0]))


def wait_until(done: Any) -> None:
    pause = threading.Event()
    for _ in range(600):
        if done():
            return
        pause.wait(0.05)
    raise AssertionError("it never came")


def test_expiry_is_looked_at_once_a_day_and_again_if_it_fails(
    sites: VaultSites, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, day, forgot, opened = sites.open(SITE), [today()], list[int](), list[int]()
    audit = AuditLog(path=sites.root / SITE / "audit.log", identity=site.identity)
    with open_vault(site.config.vault, access="write") as vault:
        vault.add([new_record(SITE, 100, expires=day[0] + timedelta(days=2))])
    retention = Retention(
        vault=site.config.vault,
        audit=audit,
        releases=site.releases,
        forget=lambda: forgot.append(1),
        today=lambda: day[0],
    )
    retention.look()

    def counting(*given: Any, **named: Any) -> Any:
        opened.append(1)
        if len(opened) == 1:
            raise VaultError("busy")
        return open_noted(*given, **named)

    monkeypatch.setattr("client.operations.care.open_noted", counting)
    retention.look()
    assert (opened, forgot, kinds(sites)) == ([], [], [])
    day[0] += timedelta(days=2)
    with pytest.raises(VaultError):
        retention.look()
    assert (len(opened), len(forgot)) == (1, 1)  # nobody knows what has expired: nothing in memory may be used
    retention.look()
    retention.look()
    assert (len(opened), len(forgot), kinds(sites)) == (2, 2, ["expiring", "expired"])


@pytest.mark.parametrize("what", ["policy", "audit_log", "ledger"])
def test_books_that_are_no_longer_in_order_show(sites: VaultSites, what: str) -> None:
    site, now = sites.open(SITE), [0.0]
    AuditLog(path=site.config.audit_log, identity=site.identity).append("started", {})
    books = BooksCheck(site=site, every=60.0, clock=lambda: now[0])

    def later() -> bool:
        now[0] += 61.0
        books.look()
        return books.in_order

    assert later()
    path = Path(getattr(site.config, what))
    whole = path.read_bytes()
    damaged = {
        "policy": whole.replace(b"= 4.0", b"= 3.0", 1),
        "audit_log": whole[:-20],
        "ledger": b"x" * len(whole),  # SQLite does without the end of an empty file
    }
    path.write_bytes(damaged[what])
    books.look()
    assert books.in_order  # not yet time
    assert not later()
    path.write_bytes(whole)
    assert later()


def test_status_reads_a_log_whose_last_line_is_being_written(sites: VaultSites) -> None:
    site = sites.open(SITE)
    path = site.config.audit_log
    log = AuditLog(path=path, identity=site.identity)
    log.append("refused", {"code": "malformed"})
    log.append("refused", {"code": "replayed"})
    whole = path.read_bytes()
    for cut in (1, 10, 200):
        path.write_bytes(whole[:-cut])
        status = site_status(site)
        assert (status.entries, status.refusals) == (1, {"malformed": 1})
        assert "malformed 1" in command(sites, "status")
    path.write_bytes(whole)
    assert site_status(site).entries == 2


def test_status_tells_of_a_vault_that_cannot_be_opened(sites: VaultSites) -> None:
    (sites.root / SITE / "vault.key").write_text("00" * 32 + "\n")
    assert "cannot be opened" in command(sites, "status")
