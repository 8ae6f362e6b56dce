from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import closing
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import pytest

from client.vault.blobs import writing
from client.vault.errors import (
    ForeignVault,
    UnknownRecord,
    UnknownSubject,
    VaultBusy,
    VaultDamaged,
    VaultMissing,
    VaultRolledBack,
    VaultUnavailable,
    WrongMasterKey,
    WrongVaultVersion,
)
from client.vault.index import RecordRow
from client.vault.records import RecordId, VaultState
from client.vault.sealing import Purpose, record_key
from client.vault.vault import Vault
from common.errors import DataError, VaultError
from tests.client.vaults import damaged, filled, key_file, record

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from client.vault.access import Interior


def test_what_goes_in_comes_out_after_reopening(tmp_path: Path) -> None:
    records = [
        record(0, "a", caption="", label="", source_name=""),
        record(1, "b", caption="ünïcode 写真", split="holdout", expires=date(2031, 2, 3)),
        record(2, " a ", perceptual_hash=(1 << 64) - 1),
    ]
    with Vault.create(tmp_path / "vault", key_file(tmp_path)) as vault:
        ids = vault.add(records)
    with Vault.open(tmp_path / "vault", key_file(tmp_path)) as vault:
        for record_id, wanted in zip(ids, records, strict=True):
            got = vault.read(record_id)
            assert (got.image, got.caption, got.label) == (wanted.image, wanted.caption, wanted.label)
            assert (got.subject_id, got.source_name) == (wanted.subject_id.strip(), wanted.source_name)
            assert (got.info.split, got.info.expires) == (wanted.split, wanted.expires)
        assert [info.record_id for info in vault.infos()] == list(ids)
        assert [info.record_id for info in vault.infos("holdout")] == [ids[1]]
        assert vault.infos()[0].subject == vault.infos()[2].subject == vault.find_subject("a")
        assert vault.captions([ids[1], ids[0]]) == ("ünïcode 写真", "")
        assert [(each.exact, each.perceptual) for each in vault.hashes()] == [
            (each.exact_hash, each.perceptual_hash) for each in records
        ]
        assert sorted(vault.subject_ids()) == ["a", "b"]
        assert vault.find_subject("c") is None
        assert damaged(vault) == ()


def test_another_unicode_form_is_the_same_subject(tmp_path: Path) -> None:
    with Vault.create(tmp_path / "vault", key_file(tmp_path)) as vault:
        vault.add([record(0, "Zo\u00eb"), record(1, " Zoe\u0308")])
        assert vault.erase_subject("Zoe\u0308 ").plan.records == 2
        assert vault.infos() == ()


def test_derived_items_are_kept_by_kind_and_replaced(tmp_path: Path) -> None:
    with filled(tmp_path) as vault:
        first, second, third, *_ = (info.record_id for info in vault.infos())
        assert vault.derived(first, "latents") == b"latent of " + first.encode()
        assert vault.derived(first, "caption") == b"embedding of " + first.encode()
        assert vault.derived(third, "latents") is None
        files = len(list((tmp_path / "vault" / "blobs").iterdir()))
        vault.put_derived("latents", {second: b"newer"})
        vault.put_derived("latents", {})
        assert vault.derived(second, "latents") == b"newer"
        assert len(list((tmp_path / "vault" / "blobs").iterdir())) == files


def test_nothing_is_added_with_one_unknown_record(tmp_path: Path) -> None:
    with filled(tmp_path) as vault:
        third = vault.infos()[2].record_id
        before, files = vault.state(), set((tmp_path / "vault" / "blobs").iterdir())
        for unknown in (RecordId("0" * 32), RecordId("no such id")):
            with pytest.raises(UnknownRecord):
                vault.put_derived("latents", {third: b"x", unknown: b"y"})
            with pytest.raises(UnknownRecord):
                vault.read(unknown)
            with pytest.raises(UnknownRecord):
                vault.captions([unknown])
        assert vault.derived(third, "latents") is None
        assert vault.state() == before
        assert set((tmp_path / "vault" / "blobs").iterdir()) == files


def test_adding_nothing_changes_nothing(tmp_path: Path) -> None:
    with filled(tmp_path) as vault:
        before = vault.state()
        assert vault.add([]) == ()
        assert vault.state() == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": b"\xff\xd8\xff jpeg"}, "PNG"),
        ({"exact_hash": bytes(31)}, "32 bytes"),
        ({"perceptual_hash": 1 << 64}, "64 bits"),
        ({"perceptual_hash": -1}, "64 bits"),
        ({"subject_id": " \n"}, "blank"),
        ({"caption": "x" * (1 << 16 | 1)}, "at most 65536 bytes"),
        ({"label": "\ud800"}, "label.*surrogate"),
    ],
)
def test_records_that_could_not_be_kept_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        record(0, **changes)


def test_records_print_nothing(tmp_path: Path) -> None:
    wanted = record(7, "Canary Subject", caption="canary caption", label="canary label", source_name="canary.dcm")
    with Vault.create(tmp_path / "vault", key_file(tmp_path)) as vault:
        (record_id,) = vault.add([wanted])
        shown = f"{wanted!r} {vault.read(record_id)!r} {next(iter(vault.hashes()))!r} {vault!r} {vault.infos()!r}"
    assert "canary" not in shown.lower()
    assert str(wanted.perceptual_hash) not in shown


def test_plan_and_erasure_agree_and_name_the_runs(tmp_path: Path) -> None:
    with filled(tmp_path) as vault:
        plan = vault.plan_erasure("patient 1")
        assert (plan.subjects, plan.records, plan.derived, plan.runs) == (1, 2, 2, ("run one",))
        gone = [info.record_id for info in vault.infos() if info.subject == vault.find_subject("patient 1")]
        sizes = sum(each.stat().st_size for each in (tmp_path / "vault" / "blobs").iterdir())
        erased = vault.erase_subject("patient 1")
        assert erased.plan == plan
        assert erased.state == vault.state()
        assert sizes - sum(each.stat().st_size for each in (tmp_path / "vault" / "blobs").iterdir()) == plan.bytes_freed
        assert len(vault.infos()) == 4
        for record_id in gone:
            with pytest.raises(UnknownRecord):
                vault.read(record_id)
            with pytest.raises(UnknownRecord):
                vault.derived(record_id, "latents")
        for ask in (vault.plan_erasure, vault.erase_subject):
            with pytest.raises(UnknownSubject):
                ask("patient 1")


def test_runs_are_those_that_may_have_used_the_subject(tmp_path: Path) -> None:
    with Vault.create(tmp_path / "vault", key_file(tmp_path)) as vault:
        times = iter(datetime(2030, 1, day, tzinfo=UTC) for day in (3, 2, 1, 9))
        vault._now = lambda: next(times)
        vault.add([record(0, "early")])
        vault.note_run("later noted")
        vault.add([record(1, "held out", split="holdout")])
        vault.add([record(2, "late")])
        vault.note_run("earlier")
        state = vault.state()
        vault.note_run("earlier")
        assert vault.state() == state  # noting again what is noted changes nothing
        assert vault.plan_erasure("early").runs == ("earlier", "later noted")
        assert vault.plan_erasure("late").runs == ("earlier",)
        assert vault.plan_erasure("held out").runs == ()
        vault.note_run("later noted")  # it goes on, with what was added since
        assert vault.plan_erasure("late").runs == ("earlier", "later noted")


def test_a_subject_that_comes_back_is_a_new_one(tmp_path: Path) -> None:
    with filled(tmp_path, count=3) as vault:
        old = vault.find_subject("patient 2")
        vault.erase_subject("patient 2")
        vault.add([record(9, "patient 2")])
        assert vault.find_subject("patient 2") not in {old, None}
        assert vault.plan_erasure("patient 2").runs == ()  # the run trained on what is gone


def test_expiry_takes_records_and_subjects_of_which_nothing_is_left(tmp_path: Path) -> None:
    with Vault.create(tmp_path / "vault", key_file(tmp_path)) as vault:
        day = date(2030, 5, 1)
        vault.add(
            [
                record(0, "one", expires=day),
                record(1, "two", expires=day),
                record(2, "two", expires=date(2030, 5, 2)),
                record(3, "three"),
            ]
        )
        assert vault.plan_expiry(date(2030, 4, 30)).records == 0
        before = vault.state()
        assert vault.erase_expired(date(2030, 4, 30)).plan.records == 0
        assert vault.state() == before
        plan = vault.plan_expiry(day)
        assert (plan.subjects, plan.records) == (1, 2)
        assert vault.erase_expired(day).plan == plan
        assert [vault.read(info.record_id).caption for info in vault.infos()] == ["caption 2", "caption 3"]
        assert vault.find_subject("one") is None
        assert vault.find_subject("two") is not None


def test_a_reader_changes_nothing(tmp_path: Path) -> None:
    filled(tmp_path).close()
    with Vault.open(tmp_path / "vault", key_file(tmp_path)) as vault:
        changes = (
            lambda: vault.add([record(50)]),
            lambda: vault.put_derived("x", {vault.infos()[0].record_id: b""}),
            lambda: vault.erase_subject("patient 0"),
            lambda: vault.erase_expired(date(2099, 1, 1)),
            lambda: vault.rotate(key_file(tmp_path)),
            lambda: vault.note_run("run two"),
        )
        for change in changes:
            with pytest.raises(VaultError, match="reading only"):
                change()


def test_a_closed_vault_says_so(tmp_path: Path) -> None:
    vault = filled(tmp_path)
    vault.close()
    vault.close()
    with pytest.raises(VaultError, match="closed"):
        vault.infos()
    with pytest.raises(VaultError, match="closed"):
        vault.add([record(50)])


def test_writers_take_turns_and_readers_see_each_change_whole(tmp_path: Path) -> None:
    filled(tmp_path, count=0).close()
    key, stop, seen = key_file(tmp_path), threading.Event(), set[int]()

    def write(start: int) -> None:
        with Vault.open(tmp_path / "vault", key, access="write") as vault:
            for batch in range(5):
                vault.add([record(start + 3 * batch + each) for each in range(3)])

    def read() -> None:
        with Vault.open(tmp_path / "vault", key) as vault:
            while not stop.is_set():
                infos = vault.infos()
                seen.add(len(infos))
                for info in infos[-3:]:
                    vault.read(info.record_id)

    readers = [threading.Thread(target=read) for _ in range(2)]
    writers = [threading.Thread(target=write, args=(100 * each,)) for each in (1, 2)]
    for thread in (*readers, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in readers:
        thread.join()
    assert all(count % 3 == 0 for count in seen)
    with Vault.open(tmp_path / "vault", key) as vault:
        assert len(vault.infos()) == 30
        assert damaged(vault) == ()


def test_one_vault_serves_many_threads(tmp_path: Path) -> None:
    faults: list[BaseException] = []
    with filled(tmp_path, count=0) as vault:

        def work(start: int) -> None:
            try:
                for each in range(start, start + 5):
                    (record_id,) = vault.add([record(each)])
                    assert vault.read(record_id).caption == f"caption {each}"
            except BaseException as error:  # noqa: BLE001 - shown by the test
                faults.append(error)

        threads = [threading.Thread(target=work, args=(10 * each,)) for each in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert faults == []
        assert len(vault.infos()) == 20


def test_a_second_writer_waits_and_then_gives_up(tmp_path: Path) -> None:
    filled(tmp_path).close()
    with (
        Vault.open(tmp_path / "vault", key_file(tmp_path), access="write", busy_seconds=0.1) as vault,
        writing(tmp_path / "vault" / "lock", busy_seconds=0),
    ):
        with pytest.raises(VaultBusy, match="another process"):
            vault.add([record(60)])
        # opening for writing does not wait: it leaves the sweeping to the next
        Vault.open(tmp_path / "vault", key_file(tmp_path), access="write").close()


def test_a_database_that_another_program_holds_is_busy(tmp_path: Path) -> None:
    filled(tmp_path).close()
    with (
        Vault.open(tmp_path / "vault", key_file(tmp_path), access="write", busy_seconds=0.1) as vault,
        closing(sqlite3.connect(tmp_path / "vault" / "index.sqlite3")) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(VaultBusy):
            vault.add([record(60)])


def test_an_erasure_that_a_reader_keeps_traces_of_is_finished_at_the_next_opening(tmp_path: Path) -> None:
    filled(tmp_path).close()
    index = tmp_path / "vault" / "index.sqlite3"
    with (
        closing(sqlite3.connect(index)) as reader,
        Vault.open(tmp_path / "vault", key_file(tmp_path), access="write", busy_seconds=0.1) as vault,
    ):
        reader.execute("BEGIN")
        (wrapped,) = reader.execute("SELECT wrapped FROM subjects LIMIT 1").fetchone()
        with pytest.raises(VaultBusy, match="reader keeps"):
            vault.erase_subject("patient 0")
        assert vault.find_subject("patient 0") is None  # erased all the same
    with Vault.open(tmp_path / "vault", key_file(tmp_path), access="write"):
        assert not any(wrapped in each.read_bytes() for each in (tmp_path / "vault").iterdir() if each.is_file())


def test_rotation_refuses_the_old_key_and_leaves_the_files(tmp_path: Path) -> None:
    with filled(tmp_path) as vault:
        state = vault.state()
        before = {each.name: each.read_bytes() for each in (tmp_path / "vault" / "blobs").iterdir()}
        contents = [vault.read(info.record_id) for info in vault.infos()]
        with Vault.open(tmp_path / "vault", key_file(tmp_path)) as other:
            vault.rotate(key_file(tmp_path, "new"))
            with pytest.raises(WrongMasterKey, match="locked anew"):
                other.infos()
        vault.add([record(70)])
    assert before.items() <= {each.name: each.read_bytes() for each in (tmp_path / "vault" / "blobs").iterdir()}.items()
    with pytest.raises(WrongMasterKey):
        Vault.open(tmp_path / "vault", key_file(tmp_path))
    with Vault.open(tmp_path / "vault", key_file(tmp_path, "new"), expected=state) as vault:
        assert [vault.read(info.record_id) for info in vault.infos()][:6] == contents
        assert vault.derived(vault.infos()[0].record_id, "latents") is not None
        tag = vault._interior.keys.tag(Purpose.EXACT_HASH, record(3).exact_hash)
        assert len(vault._interior.index.rows(RecordRow, "exact_tag = ?", tag)) == 1
        assert vault.find_subject("patient 1") == contents[1].info.subject
        assert vault.plan_erasure("patient 1").runs == ("run one",)


def test_an_old_key_and_an_old_index_open_nothing_that_was_added_since(tmp_path: Path) -> None:
    with filled(tmp_path) as vault:
        old = vault._interior.keys
        old_subjects = vault._interior.subject_keys()
        vault.rotate(key_file(tmp_path, "new"))
        (added,) = vault.add([record(71, "patient 0")])
        row, _ = vault._interior.record(added)
        (found,) = vault._interior.index.rows(type(row), "record_id = ?", bytes.fromhex(added))
        with pytest.raises(VaultDamaged):
            record_key(old, found, old_subjects[found.subject])


def test_missing_foreign_and_occupied_directories_are_named(tmp_path: Path) -> None:
    key = key_file(tmp_path)
    with pytest.raises(VaultMissing):
        Vault.open(tmp_path / "nowhere", key)
    with pytest.raises(VaultError, match="not empty"):
        Vault.create(tmp_path, key)
    with filled(tmp_path) as vault:
        state = vault.state()
        with pytest.raises(VaultError, match="not empty"):
            Vault.create(tmp_path / "vault", key)
    Vault.create(tmp_path / "other", key).close()
    with pytest.raises(ForeignVault):
        Vault.open(tmp_path / "other", key, expected=state)
    (tmp_path / "file").write_text("")
    with pytest.raises(VaultUnavailable):
        Vault.create(tmp_path / "file", key)


def test_a_creation_that_was_interrupted_is_taken_over(tmp_path: Path) -> None:
    directory = tmp_path / "vault"
    (directory / "blobs").mkdir(parents=True)
    (directory / "index.partial").write_bytes(b"half")
    with Vault.create(directory, key_file(tmp_path)) as vault:
        assert vault.infos() == ()
    assert not (directory / "index.partial").exists()


def test_files_are_their_owners_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        with filled(tmp_path):
            found = [tmp_path / "vault", *(tmp_path / "vault").rglob("*")]
            assert {each.name for each in found} >= {"index.sqlite3", "index.sqlite3-wal", "blobs", "lock"}
            assert [each for each in found if each.stat().st_mode & 0o077] == []
    finally:
        os.umask(old)


def test_another_version_is_named(tmp_path: Path) -> None:
    filled(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / "vault" / "index.sqlite3")) as store:
        store.execute("PRAGMA user_version = 2")
    with pytest.raises(WrongVaultVersion, match="wanted vault version 1, got 2"):
        Vault.open(tmp_path / "vault", key_file(tmp_path))


def test_a_full_disk_is_named_and_nothing_is_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with filled(tmp_path) as vault:
        before = vault.state()
        real, left = os.fsync, [2]

        def full(descriptor: int) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(28, "No space left on device")
            real(descriptor)

        monkeypatch.setattr("client.vault.blobs.os.fsync", full)
        with pytest.raises(VaultUnavailable, match="No space left"):
            vault.add([record(each) for each in range(80, 84)])
        monkeypatch.undo()
        assert vault.state() == before
        assert damaged(vault) == ()
        assert len(list((tmp_path / "vault" / "blobs").iterdir())) == 6 + 4


def test_a_full_index_is_named(tmp_path: Path) -> None:
    with filled(tmp_path) as vault:
        store = vault._interior.index._store
        (pages,) = store.execute("PRAGMA page_count").fetchone()
        store.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(VaultUnavailable, match="disk is full"):
            vault.add([record(each) for each in range(100, 140)])
        assert len(vault.infos()) == 6


def test_states_travel_as_text() -> None:
    state = VaultState(vault=bytes(range(16)), digest=bytes(32))
    assert VaultState.parse(state.text()) == state
    for bad in ("", state.text() + " ", state.text().replace(":", ":12:"), state.text().upper()):
        with pytest.raises(VaultError):
            VaultState.parse(bad)


def test_the_vault_grew_out_of_every_state_it_had(tmp_path: Path) -> None:
    states = []
    with filled(tmp_path) as vault:
        states.append(vault.state())
        vault.rotate(key_file(tmp_path, "new"))
        states.append(vault.state())
        vault.erase_subject("patient 0")
        states.append(vault.state())
    assert len({state.digest for state in states}) == 3
    for state in states:
        Vault.open(tmp_path / "vault", key_file(tmp_path, "new"), expected=state).close()
        other = VaultState(vault=state.vault, digest=bytes(32))
        with pytest.raises(VaultRolledBack):
            Vault.open(tmp_path / "vault", key_file(tmp_path, "new"), expected=other)


def test_what_another_process_takes_away_while_it_is_read_is_unknown_or_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with filled(tmp_path) as writer, Vault.open(tmp_path / "vault", key_file(tmp_path)) as reader:
        first, second, *_ = (info.record_id for info in writer.infos())
        real = type(reader._interior).file_content
        between: list[Callable[[], object]] = [lambda: writer.put_derived("latents", {first: b"newer"})]

        def file_content(inside: Interior, name: bytes) -> bytes | None:
            if inside is reader._interior and between:
                between.pop()()
            return real(inside, name)

        monkeypatch.setattr("client.vault.access.Interior.file_content", file_content)
        assert reader.derived(first, "latents") == b"newer"
        between.append(lambda: writer.erase_subject("patient 0"))
        with pytest.raises(UnknownRecord):
            reader.derived(first, "latents")
        between.append(lambda: writer.erase_subject("patient 1"))
        with pytest.raises(UnknownRecord):
            reader.read(second)


def test_a_device_that_fails_is_named(tmp_path: Path) -> None:
    filled(tmp_path).close()
    directory = tmp_path / "vault"
    with Vault.open(directory, key_file(tmp_path), access="write") as vault:
        first = vault.infos()[0].record_id
        file = directory / "blobs" / vault._interior.record(first)[0].blob.hex()
        file.unlink()
        file.mkdir()  # stands for a file that cannot be read or taken away
        with pytest.raises(VaultUnavailable):
            vault.read(first)
        with pytest.raises(VaultUnavailable, match="without a key are left"):
            vault.erase_subject("patient 0")
        assert vault.find_subject("patient 0") is None
        file.rmdir()
    (directory / "lock").unlink()
    (directory / "lock").mkdir()
    with pytest.raises(VaultUnavailable, match="cannot be written"):
        Vault.open(directory, key_file(tmp_path), access="write")


def test_an_index_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(VaultUnavailable, match="No space left"):
        Vault.create(tmp_path / "vault", key_file(tmp_path))


def test_traces_that_a_death_left_are_wiped_at_the_next_opening_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with filled(tmp_path) as vault:
        monkeypatch.setattr("client.vault.index.Index.scrub", lambda *_args, **_options: None)
        vault.erase_subject("patient 0")  # as if it had died before it wiped
        monkeypatch.undo()
    statements: list[str] = []
    real = sqlite3.connect

    def connect(*args: Any, **options: Any) -> sqlite3.Connection:
        store = real(*args, **options)
        store.set_trace_callback(statements.append)
        return store

    monkeypatch.setattr("client.vault.index.sqlite3.connect", connect)
    for wiped in (1, 1):
        Vault.open(tmp_path / "vault", key_file(tmp_path), access="write").close()
        assert statements.count("VACUUM") == wiped
