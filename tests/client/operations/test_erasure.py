"""What erasing tells and writes down, over a stand-in of the vault."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Self

import pytest
from typer.testing import CliRunner

from client.cli import app
from client.governance.ledger import Event
from client.intake.subjects import IntakeKey
from client.operations import erasure
from client.operations.new_site import make_site
from client.site.open_site import open_site
from client.site.vault_access import open_vault
from client.vault.records import Erased, ErasurePlan, VaultState
from common.audit_log import read_entries
from common.secagg.messages import Step
from tests.client.governance.test_policy import TOML
from tests.client.vaults import record

if TYPE_CHECKING:
    from datetime import date
    from pathlib import Path

RUN = "ab" * 32
SUBJECT = "mrs-jane-doe"
USAGE = 2
PLAN = ErasurePlan(subjects=1, records=7, derived=14, bytes_freed=4096, runs=(RUN,))


class StandIn:
    erased: list[object]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def find_subject(self, _: str) -> None:
        pass

    def plan_erasure(self, _: str) -> ErasurePlan:
        return PLAN

    def plan_expiry(self, _: date) -> ErasurePlan:
        return PLAN

    def erase_subject(self, subject: str) -> Erased:
        self.erased.append(subject)
        return Erased(plan=PLAN, state=VaultState(vault=b"v" * 16, digest=b"d" * 32))

    def erase_expired(self, day: date) -> Erased:
        return self.erase_subject(day.isoformat())


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    make_site(tmp_path / "site", "st-vincent")
    (tmp_path / "site" / "policy.toml").write_text(TOML)
    opened = open_site(tmp_path / "site" / "site.toml")
    event = Event(relation="add_remove_one", noise_multiplier=2.0, sampling_rate=0.1)
    account = opened.policy.account(opened.config.collection, private=True)
    opened.ledger.charge(account, run=RUN, step=Step(0, 0), event=event)
    StandIn.erased = []
    monkeypatch.setattr("client.vault.vault.Vault.open", lambda *_, **__: StandIn())
    return tmp_path / "site"


def run(site: Path, *arguments: str, answer: str = "", code: int = 0) -> str:
    done = CliRunner().invoke(app, [*arguments, "--config", str(site / "site.toml")], input=answer)
    assert done.exit_code == code, done.output
    return done.output


@pytest.mark.parametrize("command", [("erase",), ("expire",)])
def test_a_dry_run_tells_and_destroys_nothing(site: Path, command: tuple[str, ...]) -> None:
    asked = f"{SUBJECT}\n" if command == ("erase",) else ""
    text = run(site, *command, answer=asked)
    assert "pictures to destroy: 7" in text
    assert "dry run" in text
    assert not re.search(r"forgotten|destroyed(?!; do it)", text), "nothing that was not done is told as done"
    assert f"used in run {RUN}: ε = " in text
    assert "nothing was destroyed" in text
    assert StandIn.erased == []
    assert "nothing was destroyed" in run(site, *command, "--commit", answer=f"{asked}n\n", code=1)
    assert StandIn.erased == []
    assert not list(read_entries(site / "audit.log"))


@pytest.mark.parametrize("command", [("erase",), ("expire",)])
def test_a_commit_destroys_once_and_leaves_an_entry_without_the_id(site: Path, command: tuple[str, ...]) -> None:
    text = run(site, *command, "--commit", "--yes", answer=f"{SUBJECT}\n")
    assert "done: 1 subjects forgotten, 7 pictures and 14 encoded pictures and captions destroyed" in text
    assert len(StandIn.erased) == 1
    begun, done = read_entries(site / "audit.log")
    assert (begun.kind, done.kind) == {"erase": ("erasing", "erased"), "expire": ("expiring", "expired")}[command[0]]
    assert begun.details["runs"] == done.details["runs"] == RUN
    assert begun.details["pseudonym"] == done.details["pseudonym"]
    assert SUBJECT not in (site / "audit.log").read_text()


def test_what_has_nothing_to_destroy_asks_nothing(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = ErasurePlan(subjects=0, records=0, derived=0, bytes_freed=0, runs=())
    monkeypatch.setattr(StandIn, "plan_expiry", lambda *_: nothing)
    assert run(site, "expire") == "there is nothing to destroy\n"
    assert "cannot be undone" not in run(site, "expire", "--commit")


def test_the_id_is_asked_for_and_a_patients_number_finds_the_pseudonym(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    make_site(folder, "st-vincent")
    (folder / "policy.toml").write_text(TOML)
    site = open_site(folder / "site.toml")
    pseudonym = IntakeKey.of(site.identity).pseudonym("4711")
    with open_vault(site.config.vault, access="write") as vault:
        vault.add([record(1, pseudonym), record(2, "other")])
    text = run(folder, "erase", "--commit", "--yes", answer="4711\n")
    assert "pictures to destroy: 1" in text
    with open_vault(site.config.vault, access="write") as vault:
        assert vault.find_subject(pseudonym) is None
        vault.add([record(3, pseudonym), record(4, "4711")])
    text = run(folder, "erase", "--commit", "--yes", answer="4711\n")
    assert text.count(f"are another subject, {pseudonym}") == 1
    assert "are another subject" not in run(folder, "erase", "--commit", "--yes", answer=f"{pseudonym}\n")
    with open_vault(site.config.vault) as vault:
        assert len(vault.infos()) == 1


def test_an_id_is_never_taken_from_the_command_line() -> None:
    """Every user of the machine sees the arguments of every process."""
    for words in (["erase", "--subject", SUBJECT], ["erase", SUBJECT], ["pseudonym", SUBJECT]):
        assert CliRunner().invoke(app, words).exit_code == USAGE, words


def test_a_list_that_does_not_fit_says_how_many_it_leaves_out() -> None:
    digests = [f"{number:064x}" for number in range(200)]
    names = erasure._listed(digests).split(",")
    assert names[:-1] == digests[: len(names) - 1]
    assert names[-1] == f"and {200 - len(names) + 1} more"
    assert erasure._listed(digests[:3]) == ",".join(digests[:3])
