"""Somebody who may write anything into the directory, and has no key."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Final

import pytest

from client.vault.errors import VaultDamaged, VaultRolledBack, WrongMasterKey
from client.vault.index import TABLES, DerivedRow
from client.vault.vault import Vault
from common.errors import VaultError
from tests.client.vaults import damaged, filled, key_file, record

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from client.vault.records import RecordId

FIRST, SECOND = 0, 1
REGIONS: Final = (0, 11, 12, 40, 300, -17, -16, -1)
"""Nonce, ciphertext, tag."""


def sql(directory: Path, *statements: str, values: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    with closing(sqlite3.connect(directory / "index.sqlite3", isolation_level=None)) as store:
        for statement in statements:
            found = store.execute(statement, values).fetchall()
    return found


def read_everything(directory: Path, key_folder: Path, name: str = "key") -> None:
    with Vault.open(directory, key_file(key_folder, name)) as vault:
        for info in vault.infos():
            vault.read(info.record_id)
            vault.derived(info.record_id, "latents")
            vault.derived(info.record_id, "caption")


@pytest.fixture
def ids(tmp_path: Path) -> tuple[RecordId, ...]:
    with filled(tmp_path) as vault:
        return tuple(info.record_id for info in vault.infos())


def blob_of(directory: Path, record_id: RecordId) -> Path:
    ((name,),) = sql(directory, f"SELECT lower(hex(blob)) FROM records WHERE record_id = x'{record_id}'")
    return directory / "blobs" / str(name)


def test_two_files_exchanged(tmp_path: Path, ids: tuple[RecordId, ...]) -> None:
    # of one subject, so that only the record tells them apart
    one, other = (blob_of(tmp_path / "vault", ids[each]) for each in (0, 3))
    a, b = one.read_bytes(), other.read_bytes()
    one.write_bytes(b)
    other.write_bytes(a)
    with Vault.open(tmp_path / "vault", key_file(tmp_path)) as vault:
        for each in (0, 3):
            with pytest.raises(VaultDamaged):
                vault.read(ids[each])
        assert damaged(vault) == (ids[0], ids[3])
        assert vault.read(ids[1]).caption == "caption 1"  # the others can be had


@pytest.mark.parametrize("position", REGIONS)
def test_a_flipped_bit_in_a_file(tmp_path: Path, ids: tuple[RecordId, ...], position: int) -> None:
    file = blob_of(tmp_path / "vault", ids[2])
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)
    with Vault.open(tmp_path / "vault", key_file(tmp_path)) as vault, pytest.raises(VaultDamaged):
        vault.read(ids[2])


@pytest.mark.parametrize(
    "change",
    [
        lambda _: b"",
        lambda data: data[:11],
        lambda data: data[:27],
        lambda data: data[:28],
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data + b"\0",
        lambda data: data + data,
    ],
    ids=["empty", "nonce", "tag", "no text", "last byte", "half", "longer", "twice"],
)
def test_a_file_of_another_length(tmp_path: Path, ids: tuple[RecordId, ...], change: Callable[[bytes], bytes]) -> None:
    file = blob_of(tmp_path / "vault", ids[2])
    file.write_bytes(change(file.read_bytes()))
    with Vault.open(tmp_path / "vault", key_file(tmp_path)) as vault, pytest.raises(VaultDamaged):
        vault.read(ids[2])


def test_a_file_gone(tmp_path: Path, ids: tuple[RecordId, ...]) -> None:
    blob_of(tmp_path / "vault", ids[2]).unlink()
    ((name,),) = sql(tmp_path / "vault", f"SELECT lower(hex(blob)) FROM derived WHERE record_id = x'{ids[0]}' LIMIT 1")
    (tmp_path / "vault" / "blobs" / str(name)).unlink()
    with Vault.open(tmp_path / "vault", key_file(tmp_path), access="write") as vault:
        with pytest.raises(VaultDamaged, match="gone"):
            vault.read(ids[2])
        with pytest.raises(VaultDamaged, match="gone"):
            [vault.derived(ids[0], kind) for kind in ("latents", "caption")]
        vault.erase_subject("patient 2")  # what is damaged can still be erased
        assert damaged(vault) == ()


def test_an_older_version_of_a_derived_item(tmp_path: Path, ids: tuple[RecordId, ...]) -> None:
    directory = tmp_path / "vault"
    old = {each.name: each.read_bytes() for each in (directory / "blobs").iterdir()}
    (row,) = sql(directory, f"SELECT * FROM derived WHERE record_id = x'{ids[0]}' LIMIT 1")
    with Vault.open(directory, key_file(tmp_path), access="write") as vault:
        for kind in ("latents", "caption"):
            vault.put_derived(kind, {ids[0]: b"newer"})
    present = sql(directory, f"SELECT lower(hex(blob)) FROM derived WHERE record_id = x'{ids[0]}'")
    backup = tmp_path / "backup"
    shutil.copytree(directory, backup)
    for (name,) in present:  # the old content under the new name
        (directory / "blobs" / str(name)).write_bytes(old[row[2].hex()])
    with Vault.open(directory, key_file(tmp_path)) as vault, pytest.raises(VaultDamaged):
        [vault.derived(ids[0], kind) for kind in ("latents", "caption")]
    # the old row with the old file
    (backup / "blobs" / row[2].hex()).write_bytes(old[row[2].hex()])
    sql(backup, "UPDATE derived SET blob = ? WHERE record_id = ? AND kind_tag = ?", values=(row[2], row[0], row[1]))
    with pytest.raises(VaultDamaged, match="exchanged"):
        Vault.open(backup, key_file(tmp_path))


def test_a_record_of_another_vault_with_the_same_master_key(tmp_path: Path, ids: tuple[RecordId, ...]) -> None:
    with filled(tmp_path, name="other") as vault:
        foreign = vault.infos()[0].record_id
    shutil.copy(blob_of(tmp_path / "other", foreign), blob_of(tmp_path / "vault", ids[0]))
    with Vault.open(tmp_path / "vault", key_file(tmp_path)) as vault, pytest.raises(VaultDamaged):
        vault.read(ids[0])
    file = blob_of(tmp_path / "other", foreign)
    shutil.copy(file, tmp_path / "vault" / "blobs" / file.name)
    (row,) = sql(tmp_path / "other", "SELECT * FROM records LIMIT 1")
    sql(tmp_path / "vault", "INSERT INTO records VALUES (99, ?, ?, ?, ?, ?, ?)", values=row[1:])
    with pytest.raises(VaultDamaged):
        Vault.open(tmp_path / "vault", key_file(tmp_path))


@pytest.mark.parametrize("table", TABLES.values())
def test_a_row_taken_out(tmp_path: Path, ids: tuple[RecordId, ...], table: str) -> None:
    assert ids
    sql(tmp_path / "vault", f"DELETE FROM {table} WHERE rowid = (SELECT max(rowid) FROM {table})")
    with pytest.raises(VaultDamaged, match="taken out"):
        Vault.open(tmp_path / "vault", key_file(tmp_path))


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO subjects SELECT 77, x'00', wrapped, sealed FROM subjects LIMIT 1",
        "INSERT INTO records SELECT 77, x'00', subject, exact_tag, wrapped, facts, x'00' FROM records LIMIT 1",
        "INSERT INTO derived SELECT record_id, x'00', x'00' FROM derived LIMIT 1",
        "INSERT INTO runs SELECT x'00', high_water, sealed FROM runs LIMIT 1",
        "INSERT INTO past SELECT 77, digest FROM past LIMIT 1",
    ],
)
def test_a_row_twice(tmp_path: Path, ids: tuple[RecordId, ...], statement: str) -> None:
    assert ids
    sql(tmp_path / "vault", statement)
    with pytest.raises(VaultDamaged, match="added"):
        Vault.open(tmp_path / "vault", key_file(tmp_path))


@pytest.mark.parametrize(("table", "column"), [(t, c) for kind, t in TABLES.items() for c in kind._fields])
def test_a_column_changed(tmp_path: Path, ids: tuple[RecordId, ...], table: str, column: str) -> None:
    assert ids
    directory = tmp_path / "vault"
    (kind,) = sql(directory, f"SELECT typeof({column}), {column} FROM {table} LIMIT 1")
    other = kind[1] + 1000 if isinstance(kind[1], int) else bytes([kind[1][0] ^ 1]) + kind[1][1:]
    sql(directory, f"UPDATE {table} SET {column} = ? WHERE {column} = ?", values=(other, kind[1]))
    with pytest.raises(VaultDamaged, match="exchanged"):
        Vault.open(directory, key_file(tmp_path))


@pytest.mark.parametrize("column", ["facts", "wrapped", "subject", "exact_tag"])
def test_columns_of_two_records_exchanged(tmp_path: Path, ids: tuple[RecordId, ...], column: str) -> None:
    directory = tmp_path / "vault"
    (a,), (b,) = (sql(directory, f"SELECT {column} FROM records WHERE record_id = x'{ids[e]}'") for e in (0, 1))
    sql(directory, f"UPDATE records SET {column} = ? WHERE record_id = x'{ids[0]}'", values=b)
    sql(directory, f"UPDATE records SET {column} = ? WHERE record_id = x'{ids[1]}'", values=a)
    with pytest.raises(VaultDamaged, match="exchanged"):
        Vault.open(directory, key_file(tmp_path))


@pytest.mark.parametrize("column", ["facts", "wrapped", "subject", "blob"])
def test_each_piece_is_bound_to_its_record_even_without_the_commitment(
    tmp_path: Path, ids: tuple[RecordId, ...], column: str
) -> None:
    """Exchanged under an open vault: not counted again, and refused by its own seal."""
    directory = tmp_path / "vault"
    with Vault.open(directory, key_file(tmp_path)) as vault:
        vault.read(ids[0])
        (other,) = sql(directory, f"SELECT {column} FROM records WHERE record_id = x'{ids[0]}'")
        if column == "blob":  # no two rows may name one file
            sql(directory, f"UPDATE records SET blob = x'00' WHERE record_id = x'{ids[0]}'")
        sql(directory, f"UPDATE records SET {column} = ? WHERE record_id = x'{ids[1]}'", values=other)
        with pytest.raises(VaultDamaged):
            vault.read(ids[1])


@pytest.mark.parametrize("column", ["slot", "wrapped", "state", "vault"])
def test_the_header_changed(tmp_path: Path, ids: tuple[RecordId, ...], column: str) -> None:
    assert ids
    ((value,),) = sql(tmp_path / "vault", f"SELECT {column} FROM header")
    sql(tmp_path / "vault", f"UPDATE header SET {column} = ?", values=(value[:-1] + bytes([value[-1] ^ 1]),))
    with pytest.raises((VaultDamaged, WrongMasterKey)):
        Vault.open(tmp_path / "vault", key_file(tmp_path))


def test_the_header_gone(tmp_path: Path, ids: tuple[RecordId, ...]) -> None:
    assert ids
    sql(tmp_path / "vault", "DELETE FROM header")
    with pytest.raises(VaultDamaged, match="header is gone"):
        Vault.open(tmp_path / "vault", key_file(tmp_path))


@pytest.mark.parametrize("columns", ["state", "slot, wrapped", "slot, wrapped, state"])
def test_an_old_header_put_back(tmp_path: Path, ids: tuple[RecordId, ...], columns: str) -> None:
    """Neither does a change come undone, nor does a key that was withdrawn open the vault."""
    assert ids
    directory = tmp_path / "vault"
    (old,) = sql(directory, f"SELECT {columns} FROM header")
    with Vault.open(directory, key_file(tmp_path), access="write") as vault:
        vault.rotate(key_file(tmp_path, "new"))
    marks = ", ".join(f"{column} = ?" for column in columns.split(", "))
    sql(directory, f"UPDATE header SET {marks}", values=old)
    for name in ("key", "new"):
        with pytest.raises((VaultDamaged, WrongMasterKey)):
            Vault.open(directory, key_file(tmp_path, name))


def test_a_lock_put_back_by_who_knows_the_old_passphrase(tmp_path: Path) -> None:
    """The old and the new lock of one vault key, had rotation kept it: the state says which lock is meant."""
    with filled(tmp_path) as vault:
        interior = vault._interior
        header = interior.index.header()
        with interior.writing(), interior.commitment.changing():
            interior.index.set_header(header._replace(slot=header.slot + b" "))
        with interior.index.transaction():
            interior.index.set_header(interior.index.header()._replace(slot=header.slot))
    with pytest.raises(VaultDamaged, match="older one put back"):
        Vault.open(tmp_path / "vault", key_file(tmp_path))


def test_the_whole_directory_rolled_back(tmp_path: Path, ids: tuple[RecordId, ...]) -> None:
    directory, old = tmp_path / "vault", tmp_path / "old"
    shutil.copytree(directory, old)
    with Vault.open(directory, key_file(tmp_path), access="write") as vault:
        vault.erase_subject("patient 0")
        noted = vault.state()
    Vault.open(old, key_file(tmp_path)).close()  # it is whole in itself; only what was noted outside tells
    with pytest.raises(VaultRolledBack, match="older copy"):
        Vault.open(old, key_file(tmp_path), expected=noted)
    with Vault.open(old, key_file(tmp_path), access="write") as vault:  # and it grew past what was noted
        vault.add([record(90)])
        vault.add([record(91)])
    with pytest.raises(VaultRolledBack, match="grew out of one"):
        Vault.open(old, key_file(tmp_path), expected=noted)
    assert ids


def test_an_old_index_beside_newer_files_is_not_opened_and_nothing_is_swept(
    tmp_path: Path, ids: tuple[RecordId, ...]
) -> None:
    assert ids
    directory = tmp_path / "vault"
    shutil.copy(directory / "index.sqlite3", tmp_path / "old")
    with Vault.open(directory, key_file(tmp_path), access="write") as vault:
        vault.note_run("run two")
        vault.add([record(92)])
    files = set((directory / "blobs").iterdir())
    shutil.copy(tmp_path / "old", directory / "index.sqlite3")
    with pytest.raises(VaultRolledBack, match="files of change"):
        Vault.open(directory, key_file(tmp_path), access="write")
    assert set((directory / "blobs").iterdir()) == files


def test_an_index_exchanged_while_open_is_counted_again_after_a_change(
    tmp_path: Path, ids: tuple[RecordId, ...]
) -> None:
    directory = tmp_path / "vault"
    with Vault.open(directory, key_file(tmp_path)) as reader:
        reader.read(ids[5])
        with Vault.open(directory, key_file(tmp_path), access="write") as writer:
            writer.add([record(93)])
        sql(directory, "DELETE FROM derived")
        with pytest.raises(VaultDamaged, match="taken out"):
            reader.read(ids[5])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"not a database at all" * 500),
        lambda file: file.write_bytes(file.read_bytes()[:5000]),
        lambda file: file.write_bytes(file.read_bytes()[:8192] + b"\xff" * 4096 + file.read_bytes()[12288:]),
    ],
    ids=["empty", "text", "cut", "bad page"],
)
def test_a_damaged_index(tmp_path: Path, ids: tuple[RecordId, ...], spoil: Callable[[Path], object]) -> None:
    assert ids
    spoil(tmp_path / "vault" / "index.sqlite3")
    with pytest.raises(VaultDamaged):
        read_everything(tmp_path / "vault", tmp_path)


def test_files_that_are_not_the_vaults_do_no_harm(tmp_path: Path, ids: tuple[RecordId, ...]) -> None:
    stray = tmp_path / "vault" / "blobs" / "notes.txt"
    stray.write_text("kept")
    orphan = tmp_path / "vault" / "blobs" / ("00" * 24)
    orphan.write_bytes(b"swept")
    with Vault.open(tmp_path / "vault", key_file(tmp_path), access="write") as vault:
        assert len(vault.infos()) == len(ids)
    assert stray.exists()
    assert not orphan.exists()


def test_no_blobs_folder(tmp_path: Path, ids: tuple[RecordId, ...]) -> None:
    assert ids
    shutil.rmtree(tmp_path / "vault" / "blobs")
    with pytest.raises(VaultError, match="restore"):
        Vault.open(tmp_path / "vault", key_file(tmp_path))


def test_every_table_is_committed_to() -> None:
    assert DerivedRow in TABLES
    assert len(TABLES) == 5
