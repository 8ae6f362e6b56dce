"""Any sequence of operations leaves in the vault what it leaves in a plain dictionary."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from client.vault.errors import UnknownRecord, UnknownSubject
from client.vault.vault import Vault
from tests.client.vaults import key_file, record

if TYPE_CHECKING:
    from client.vault.records import NewRecord, RecordId, VaultState

SUBJECTS = st.sampled_from(["a", "b", "c", "ünï"])
DAY_ZERO = date(2030, 1, 1)


@dataclass
class Model:
    records: dict[RecordId, NewRecord] = field(default_factory=dict)
    derived: dict[tuple[RecordId, str], bytes] = field(default_factory=dict)
    runs: dict[str, set[RecordId]] = field(default_factory=dict)

    def forget(self, gone: set[RecordId]) -> None:
        self.records = {each: kept for each, kept in self.records.items() if each not in gone}
        self.derived = {each: kept for each, kept in self.derived.items() if each[0] not in gone}


@st.composite
def new_records(draw: st.DrawFn) -> NewRecord:
    days = draw(st.none() | st.integers(0, 5))
    return record(
        draw(st.integers(0, 30)),
        draw(SUBJECTS),
        caption=draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=20)),
        split=draw(st.sampled_from(["train", "holdout"])),
        expires=None if days is None else DAY_ZERO + timedelta(days),
    )


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.model, self.keys, self.states = Model(), 0, list[Any]()

    @initialize()
    def create(self) -> None:
        self.vault = Vault.create(self.root / "vault", key_file(self.root, "0"))

    @rule(records=st.lists(new_records(), max_size=4))
    def add(self, records: list[NewRecord]) -> None:
        self.model.records |= dict(zip(self.vault.add(records), records, strict=True))

    @precondition(lambda self: self.model.records)
    @rule(data=st.data(), kind=st.sampled_from(["x", "y"]), content=st.binary(max_size=600))
    def put_derived(self, data: st.DataObject, kind: str, content: bytes) -> None:
        chosen = data.draw(st.lists(st.sampled_from(list(self.model.records)), unique=True, max_size=3))
        self.vault.put_derived(kind, dict.fromkeys(chosen, content))
        self.model.derived |= dict.fromkeys([(each, kind) for each in chosen], content)

    @rule(run=st.sampled_from(["one", "two"]))
    def note_run(self, run: str) -> None:
        self.vault.note_run(run)
        trained = {each for each, kept in self.model.records.items() if kept.split == "train"}
        self.model.runs[run] = self.model.runs.get(run, set()) | trained

    @rule(subject=SUBJECTS)
    def erase_subject(self, subject: str) -> None:
        gone = {each for each, kept in self.model.records.items() if kept.subject_id == subject}
        if not gone:
            with pytest.raises(UnknownSubject):
                self.vault.erase_subject(subject)
            return
        plan = self.vault.erase_subject(subject).plan
        assert (plan.subjects, plan.records) == (1, len(gone))
        assert plan.derived == sum(each[0] in gone for each in self.model.derived)
        assert set(plan.runs) == {run for run, used in self.model.runs.items() if used & gone}
        self.model.forget(gone)

    @rule(days=st.integers(0, 5))
    def erase_expired(self, days: int) -> None:
        today = DAY_ZERO + timedelta(days)
        gone = {each for each, kept in self.model.records.items() if kept.expires and kept.expires <= today}
        assert self.vault.plan_expiry(today).records == len(gone)
        assert self.vault.erase_expired(today).plan.records == len(gone)
        self.model.forget(gone)

    @rule()
    def rotate(self) -> None:
        self.keys += 1
        self.vault.rotate(key_file(self.root, str(self.keys)))

    @rule(data=st.data())
    def reopen(self, data: st.DataObject) -> None:
        self.states.append(self.vault.state())
        noted: VaultState = data.draw(st.sampled_from(self.states))
        self.vault.close()
        key = key_file(self.root, str(self.keys))
        self.vault = Vault.open(self.root / "vault", key, access="write", expected=noted)

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "vault"):
            return
        assert [info.record_id for info in self.vault.infos()] == list(self.model.records)
        assert [each.exact for each in self.vault.hashes()] == [r.exact_hash for r in self.model.records.values()]
        for record_id, wanted in self.model.records.items():
            got = self.vault.read(record_id)
            assert (got.image, got.caption, got.subject_id) == (wanted.image, wanted.caption, wanted.subject_id)
            assert (got.info.split, got.info.expires) == (wanted.split, wanted.expires)
            for kind in ("x", "y"):
                assert self.vault.derived(record_id, kind) == self.model.derived.get((record_id, kind))
        subjects = {kept.subject_id for kept in self.model.records.values()}
        assert {each for each in ("a", "b", "c", "ünï") if self.vault.find_subject(each) is not None} == subjects
        files = len(list((self.root / "vault" / "blobs").iterdir()))
        assert files == len(self.model.records) + len(self.model.derived)
        for subject, record_id in {kept.subject_id: each for each, kept in self.model.records.items()}.items():
            assert self.vault.read(record_id).info.subject == self.vault.find_subject(subject)

    def teardown(self) -> None:
        if hasattr(self, "vault"):
            self.vault.close()
            with (
                pytest.raises(UnknownRecord),
                Vault.open(self.root / "vault", key_file(self.root, str(self.keys))) as vault,
            ):
                vault.read("0" * 32)  # type: ignore[arg-type] # whatever the state, what is unknown is refused
        shutil.rmtree(self.root)


TestVault = Machine.TestCase
TestVault.settings = settings(
    max_examples=15,
    stateful_step_count=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
