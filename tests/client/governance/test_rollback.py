"""Older copies of a ledger or a vault, put back beside the audit log that says what they held."""

from __future__ import annotations

import shutil
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from client.cli import app
from client.governance.ledger import Event
from client.governance.ledger_store import chain_of, connection, read_rows
from client.governance.rollback import (
    CHARGED,
    CHARGED_CHAIN,
    CHARGED_ROW,
    PREPARED,
    VAULT,
    LedgerRolledBack,
    Noted,
    Use,
    check_use,
    read_noted,
)
from client.operations.care import BooksCheck
from client.operations.compose import compose_steward
from client.operations.new_site import make_site
from client.site.open_site import OpenSite, open_site
from client.site.vault_access import open_vault
from client.vault.errors import ForeignVault, VaultMissing, VaultRolledBack
from client.vault.records import VaultState
from common.audit_log import AuditLog, read_entries
from common.errors import AuditLogError, ClockWentBack, LedgerError
from common.secagg.messages import Step
from tests.client.governance.test_policy import TOML
from tests.client.vaults import record

if TYPE_CHECKING:
    from pathlib import Path

    from common.audit_log import Detail

RUN = "ab" * 32


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site that contributed four times, the last time without living to write it down."""
    folder = tmp_path / "site"
    make_site(folder, "st-vincent")
    (folder / "policy.toml").write_text(TOML)
    for number in range(4):
        charge(folder, number, logged=number < 3)
    return folder


def opened(folder: Path) -> OpenSite:
    return open_site(folder / "site.toml")


def charge(folder: Path, number: int, *, logged: bool = True) -> None:
    made = opened(folder)
    account = made.policy.account(made.config.collection, private=True)
    event = Event(relation="add_remove_one", noise_multiplier=2.0 + number, sampling_rate=0.1)
    receipt = made.ledger.charge(account, run=RUN, step=Step(number, 0), event=event)
    if logged:
        note(folder, CHARGED, {CHARGED_ROW: receipt.row, CHARGED_CHAIN: receipt.chain.hex()})


def note(folder: Path, kind: str, details: dict[str, Detail]) -> None:
    identity = opened(folder).identity
    AuditLog(path=folder / "audit.log", identity=identity).append(kind, details)


def copy_ledger(folder: Path) -> Path:
    kept = folder / "older"
    kept.mkdir()
    for path in folder.glob("ledger.sqlite*"):
        shutil.copy(path, kept)
    return kept


def put_back(folder: Path, kept: Path) -> None:
    for path in folder.glob("ledger.sqlite*"):
        path.unlink()
    for path in kept.iterdir():
        shutil.copy(path, folder)


def grow(folder: Path, *numbers: int) -> str:
    """Add pictures as an intake does; the state that it notes."""
    made = opened(folder)
    with open_vault(made.config.vault, access="write", expected=made.noted.vault) as vault:
        vault.add([record(number) for number in numbers])
        state = vault.state().text()
    note(folder, "ingested", {VAULT: state})
    return state


def test_the_row_in_the_log_stands_for_all_rows_before_it(site: Path) -> None:
    with connection(site / "ledger.sqlite", busy_seconds=1) as store:
        rows = read_rows(store)
    noted = opened(site).noted
    assert (len(rows), noted.row) == (4, 3)  # a charge that a crash kept out of the log is no fault
    assert noted.chain == chain_of(rows[:3])
    assert len({noted.chain, *(chain_of(rows[:count]) for count in (0, 1, 2, 4))}) == 5


def test_an_older_ledger_is_refused_by_every_command(site: Path) -> None:
    kept = copy_ledger(site)
    charge(site, 4)
    put_back(site, kept)  # it is whole in itself; only the log tells
    for words in (["status"], ["approvals"], ["steward"], ["erase"], ["expire"], ["withdraw", "abcd"]):
        done = CliRunner().invoke(app, [*words, "--config", str(site / "site.toml")], input="x\n")
        assert isinstance(done.exception, LedgerRolledBack), (words, done.exception)
        assert "holds 4 contributions, and the audit log says that 5" in str(done.exception)


def test_an_older_ledger_that_was_added_to_is_refused(site: Path, tmp_path: Path) -> None:
    kept = copy_ledger(site)
    charge(site, 4)
    log = (site / "audit.log").read_bytes()
    put_back(site, kept)
    (site / "audit.log").write_bytes(b"")  # so that the copy can be charged again
    for number in (5, 6):
        charge(site, number, logged=False)
    (site / "audit.log").write_bytes(log)
    with pytest.raises(LedgerRolledBack, match="not those"):
        opened(site)
    assert tmp_path


def test_a_new_ledger_is_refused(site: Path) -> None:
    make_site(site.parent / "new", "st-vincent")
    for path in site.glob("ledger.sqlite*"):
        path.unlink()
    shutil.copy(site.parent / "new" / "ledger.sqlite", site)
    with pytest.raises(LedgerRolledBack):
        opened(site)


def test_a_log_that_is_missing_or_was_cut_is_told(site: Path) -> None:
    lines = (site / "audit.log").read_bytes().splitlines(keepends=True)
    (site / "audit.log").write_bytes(b"".join(lines[1:]))
    with pytest.raises(AuditLogError):
        opened(site)
    (site / "audit.log").unlink()
    config = ["--config", str(site / "site.toml")]
    for words in (
        ["ingest", str(site)],
        ["ingest", str(site), "--commit", "--yes"],
        ["expire", "--commit", "--yes"],
        ["accept-vault", "--yes"],
        ["accept-clock", "--yes"],
        ["rotate-key", "--key-file", "new.key"],
        ["steward"],
    ):
        done = CliRunner().invoke(app, [*words, *config])
        assert isinstance(done.exception, AuditLogError), (words, done.output, done.exception)
    assert not (site / "audit.log").exists()


def test_an_older_vault_is_refused_wherever_it_is_opened(site: Path, tmp_path: Path) -> None:
    grow(site, 1, 2)
    shutil.copytree(site / "vault", tmp_path / "older")
    grow(site, 3)
    shutil.rmtree(site / "vault")
    shutil.copytree(tmp_path / "older", site / "vault")
    config = ["--config", str(site / "site.toml")]
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "x.txt").write_text("x")
    for words in (
        ["erase"],
        ["erase", "--commit", "--yes"],
        ["expire", "--commit", "--yes"],
        ["ingest", str(folder)],
        ["ingest", str(folder), "--commit", "--yes"],
    ):
        done = CliRunner().invoke(app, [*words, *config], input="patient 1\n")
        assert isinstance(done.exception, VaultRolledBack), (words, done.output, done.exception)
    assert "cannot be opened: the vault was never in the state" in " ".join(
        CliRunner().invoke(app, ["status", *config], terminal_width=1000, env={"COLUMNS": "1000"}).output.split()
    )


def test_another_vault_and_none_are_refused(site: Path) -> None:
    grow(site, 1)
    make_site(site.parent / "new", "st-vincent")
    shutil.rmtree(site / "vault")
    config = ["--config", str(site / "site.toml")]
    for words in (["ingest", str(site)], ["ingest", str(site), "--commit", "--yes"]):
        done = CliRunner().invoke(app, [*words, *config])
        assert isinstance(done.exception, VaultMissing), (words, done.output, done.exception)
    shutil.copytree(site.parent / "new" / "vault", site / "vault")
    shutil.copy(site.parent / "new" / "vault.key", site)
    done = CliRunner().invoke(app, ["expire", "--commit", "--yes", *config])
    assert isinstance(done.exception, ForeignVault), (done.output, done.exception)


def test_a_steward_refuses_an_older_vault_at_its_start(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.training.loaded_base.LoadedBase.open_base", lambda *_: None)
    grow(site, 1)
    compose_steward(opened(site))
    shutil.copytree(site / "vault", tmp_path / "older")
    grow(site, 2)
    shutil.rmtree(site / "vault")
    shutil.copytree(tmp_path / "older", site / "vault")
    with pytest.raises(VaultRolledBack):
        compose_steward(opened(site))


def test_a_restored_vault_is_gone_on_with_if_an_operator_says_so(site: Path, tmp_path: Path) -> None:
    grow(site, 1)
    shutil.copytree(site / "vault", tmp_path / "older")
    grow(site, 2)
    shutil.rmtree(site / "vault")
    shutil.copytree(tmp_path / "older", site / "vault")
    config = ["--config", str(site / "site.toml")]
    told = CliRunner().invoke(app, ["accept-vault", *config], input="n\n")
    assert "nothing was changed" in told.output
    assert isinstance(CliRunner().invoke(app, ["expire", *config]).exception, VaultRolledBack)
    told = CliRunner().invoke(app, ["accept-vault", *config], input="y\n")
    assert "is back" in told.output
    assert CliRunner().invoke(app, ["expire", *config]).exit_code == 0
    grow(site, 3)
    assert [entry.kind for entry in read_entries(site / "audit.log")][-2:] == ["vault_accepted", "ingested"]


def test_a_clock_that_was_wrong_is_told_by_an_operator(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "client.governance.ledger.CLOCK_TOLERANCE", -timedelta(days=1)
    )  # as if the last entry were of tomorrow
    with pytest.raises(ClockWentBack, match="accept-clock"):
        charge(site, 4)
    config = ["--config", str(site / "site.toml")]
    assert "nothing was changed" in CliRunner().invoke(app, ["accept-clock", *config], input="n\n").output
    monkeypatch.undo()
    assert CliRunner().invoke(app, ["accept-clock", "--yes", *config]).exit_code == 0
    charge(site, 4)
    assert [entry.kind for entry in read_entries(site / "audit.log")][-2:] == ["clock_accepted", CHARGED]


def test_a_serving_steward_sees_a_ledger_that_was_put_back(site: Path) -> None:
    kept, now = copy_ledger(site), [0.0]
    charge(site, 4)
    books = BooksCheck(site=opened(site), every=60.0, clock=lambda: now[0])
    now[0] = 61.0
    books.look()
    assert books.in_order
    put_back(site, kept)
    now[0] = 122.0
    books.look()
    assert not books.in_order


def test_a_renamed_collection_is_refused(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.training.loaded_base.LoadedBase.open_base", lambda *_: None)
    state = grow(site, 1)
    note(site, PREPARED, {"run": RUN, VAULT: state, "population": "st-vincent/subject", "unit": "subject"})
    compose_steward(opened(site))
    settings = site / "site.toml"
    settings.write_text(settings.read_text().replace('"st-vincent/subject"', '"st-vincent/patients"'))
    with pytest.raises(LedgerError, match='write collection = "st-vincent/subject"'):
        compose_steward(opened(site))


USED = Use(vault="00" * 16, collection="ward", unit="subject")


@pytest.mark.parametrize(
    ("before", "now", "word"),
    [
        (USED, USED, ""),
        (USED, Use(vault="00" * 16, collection="ward", unit="image"), ""),
        (USED, Use(vault="11" * 16, collection="other", unit="subject"), ""),
        (USED, Use(vault="00" * 16, collection="other", unit="subject"), "charged as ward"),
        (Use(vault="00" * 16, collection="ward", unit="image"), USED, "single pictures"),
        (Use(vault="11" * 16, collection="ward", unit="image"), USED, "single pictures"),
    ],
)
def test_what_pictures_are_charged_as(before: Use, now: Use, word: str) -> None:
    noted = Noted(uses=frozenset({before}))
    if not word:
        check_use(noted, now)
        return
    with pytest.raises(LedgerError, match=word):
        check_use(noted, now)


def test_what_others_may_read_in_the_log_does_not_count_pictures(site: Path) -> None:
    """Two vaults of one and of a thousand changes are named in equally many letters, none of which counts."""
    few = grow(site, 1)
    for number in range(2, 40):
        last = grow(site, number)
    assert len(few) == len(last)
    assert VaultState.parse(few).vault == VaultState.parse(last).vault
    assert set(vars_of(VaultState.parse(last))) == {"vault", "digest"}
    assert all(isinstance(entry.details.get(VAULT, ""), str) for entry in read_entries(site / "audit.log"))


def vars_of(state: Any) -> tuple[str, ...]:
    return tuple(state.__slots__)


def test_a_log_of_somebody_else_is_not_believed(site: Path) -> None:
    with pytest.raises(AuditLogError):
        read_noted(site / "audit.log", bytes(32))
    assert read_noted(site / "audit.log", opened(site).identity.public).row == 3
