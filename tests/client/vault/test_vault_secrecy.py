"""Somebody who has every file of the directory, and no key; or, after an erasure, with the key."""

from __future__ import annotations

import base64
import io
import random
import shutil
import sqlite3
import zlib
from contextlib import closing
from datetime import date
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from client.vault.errors import UnknownSubject, VaultDamaged
from client.vault.sealing import Purpose, VaultKeys, padded_size
from client.vault.vault import Vault
from tests.client.vaults import filled, key_file, record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from client.vault.records import NewRecord

TEXTS = ("CanaryCaption mediastinum", "CanaryLabel", "CanaryFile.dcm", "CanarySubject 4711", "CanaryRun", "CanaryKind")
LATENT = np.random.default_rng(5).standard_normal(4096).astype(np.float16).tobytes()
EXACT, PERCEPTUAL = bytes(range(100, 132)), 0xFEEDFACECAFEBEEF


def canary_record() -> NewRecord:
    pixels = np.random.default_rng(11).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    caption, label, name, subject, *_ = TEXTS
    return record(
        11,
        subject,
        image=stream.getvalue(),
        caption=caption,
        label=label,
        source_name=name,
        exact_hash=EXACT,
        perceptual_hash=PERCEPTUAL,
        split="holdout",
        expires=date(2031, 7, 14),
    )


def needles() -> Iterator[bytes]:
    """What must not be found: each text, and pieces of each byte string, in the forms that programs keep them in."""
    wanted = canary_record()
    pixels = np.asarray(Image.open(io.BytesIO(wanted.image))).tobytes()
    numbers = (PERCEPTUAL.to_bytes(8, "big"), PERCEPTUAL.to_bytes(8, "little"), str(PERCEPTUAL).encode())
    pieces = [content[at : at + 24] for content in (wanted.image, pixels, LATENT) for at in (0, 1000, 4000)]
    for plain in (*(text.encode() for text in TEXTS), EXACT, *numbers, *pieces, b"2031-07-14", b"holdout"):
        yield plain
        yield plain.hex().encode()
        yield plain.hex().upper().encode()
        yield from (base64.b64encode(b"\0" * shift + plain)[4:-4] for shift in range(3))
        yield from (base64.urlsafe_b64encode(b"\0" * shift + plain)[4:-4] for shift in range(3))
        yield zlib.compress(plain)[2:-4]
    for text in TEXTS:
        yield from (text.lower().encode(), text.upper().encode(), text.encode("utf-16-le"), text.encode("utf-16-be"))
        yield text.encode()[::-1]


def found(directory: Path) -> list[bytes]:
    files = [each for each in directory.rglob("*") if each.is_file()]
    contents = [each.read_bytes() for each in files] + [str(each.relative_to(directory)).encode() for each in files]
    return [needle for needle in needles() if any(needle in content for content in contents)]


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(canary_record().image + LATENT)
    (tmp_path / "coded").write_bytes(base64.b64encode(b"ab" + TEXTS[0].encode()) + EXACT.hex().encode())
    (tmp_path / "wide").write_text(TEXTS[3], "utf-16")
    hits = found(tmp_path)
    assert len(hits) >= 8
    assert canary_record().image[:24] in hits


def test_nothing_is_in_clear_at_any_time(tmp_path: Path) -> None:
    directory, wanted = tmp_path / "vault", canary_record()
    with Vault.create(directory, key_file(tmp_path)) as vault:
        (record_id,) = vault.add([wanted])
        vault.put_derived(TEXTS[5], {record_id: LATENT})
        vault.note_run(TEXTS[4])
        assert (directory / "index.sqlite3-wal").stat().st_size > 0
        assert found(directory) == []
        vault.put_derived(TEXTS[5], {record_id: LATENT})
        vault.read(record_id)
        list(vault.hashes())
        assert found(directory) == []
        vault.rotate(key_file(tmp_path, "new"))
        assert found(directory) == []
        vault.add([record(1, TEXTS[3])])
        vault.plan_erasure(TEXTS[3])
        vault.erase_subject(TEXTS[3])
        assert found(directory) == []
    assert found(directory) == []


def test_equal_pictures_and_subjects_do_not_look_equal(tmp_path: Path) -> None:
    with (
        Vault.create(tmp_path / "one", key_file(tmp_path)) as one,
        Vault.create(tmp_path / "two", key_file(tmp_path)) as two,
    ):
        for vault in (one, two):
            vault.add([canary_record(), canary_record()])
    columns = "exact_tag, wrapped, facts, blob", "tag, wrapped, sealed"
    rows = []
    for name in ("one", "two"):
        with closing(sqlite3.connect(tmp_path / name / "index.sqlite3")) as store:
            rows.append(
                {
                    cell
                    for select, table in zip(columns, ("records", "subjects"), strict=True)
                    for row in store.execute(f"SELECT {select} FROM {table}")
                    for cell in row
                }
            )
    assert not rows[0] & rows[1]
    blobs = [each.read_bytes() for name in ("one", "two") for each in (tmp_path / name / "blobs").iterdir()]
    pieces = [blob[at : at + 16] for blob in blobs for at in range(0, len(blob) - 16, 16)]
    assert len(set(pieces)) == len(pieces)


def test_sealed_files_do_not_compress(tmp_path: Path) -> None:
    with Vault.create(tmp_path / "vault", key_file(tmp_path)) as vault:
        vault.add([record(0, image=b"\x89PNG\r\n\x1a\n" + bytes(1 << 16))])
    (blob,) = (tmp_path / "vault" / "blobs").iterdir()
    content = blob.read_bytes()
    assert len(zlib.compress(content, 9)) > 0.99 * len(content)


def test_sizes_show_little() -> None:
    for size in (0, 1, 100, 512):
        assert padded_size(size) == 512
    rng = np.random.default_rng(1)
    for size in (*range(513, 3000), *(int(each) for each in rng.integers(3000, 1 << 30, 500))):
        assert size <= padded_size(size) <= 1.12 * size
        assert padded_size(padded_size(size)) == padded_size(size)
    # all pictures between 256 KiB and 512 KiB have one of 32 sizes
    assert len({padded_size(size) for size in range(1 << 18, 1 << 19, 97)}) <= 33


def test_a_short_caption_and_a_long_one_take_the_same_room(tmp_path: Path) -> None:
    with Vault.create(tmp_path / "vault", key_file(tmp_path)) as vault:
        vault.add([record(0, caption="x"), record(1, caption="y" * 300)])
    with closing(sqlite3.connect(tmp_path / "vault" / "index.sqlite3")) as store:
        assert len(set(store.execute("SELECT length(facts) FROM records"))) == 1
        assert len(set(store.execute("SELECT length(sealed) FROM subjects"))) == 1


def test_after_an_erasure_the_master_key_opens_no_copy_of_the_files(tmp_path: Path) -> None:
    directory = tmp_path / "vault"
    with filled(tmp_path) as vault:
        gone = [info.record_id for info in vault.infos() if info.subject == vault.find_subject("patient 0")]
        rows = {each: vault._interior.record(each)[0] for each in gone}
        shutil.copytree(directory / "blobs", tmp_path / "copies")
        before = {each.name for each in (directory / "blobs").iterdir()}
        vault.erase_subject("patient 0")
        lost = before - {each.name for each in (directory / "blobs").iterdir()}
        assert lost > {row.blob.hex() for row in rows.values()}
        assert len(lost) == 4  # two pictures, and two items of the first
    with Vault.open(directory, key_file(tmp_path)) as vault:
        keys, present = vault._interior.keys, vault._interior.subject_keys()
        left = [vault._interior.record(info.record_id)[1] for info in vault.infos()]
        with pytest.raises(UnknownSubject):
            vault.plan_erasure("patient 0")
        for row in rows.values():
            sealed = (tmp_path / "copies" / row.blob.hex()).read_bytes()
            for key in (*left, *present.values(), keys._wrap, keys._tags, keys._rows):
                with pytest.raises(VaultDamaged):
                    keys.open(key, Purpose.PICTURE, sealed, row.record_id, row.blob)


def wrapped_keys(directory: Path) -> set[bytes]:
    with closing(sqlite3.connect(directory / "index.sqlite3")) as store:
        return {
            row[0] for table in ("subjects", "records") for row in store.execute(f"SELECT wrapped FROM {table}")
        } | {store.execute("SELECT wrapped FROM header").fetchone()[0]}


def anywhere(directory: Path, wanted: set[bytes]) -> set[bytes]:
    contents = [each.read_bytes() for each in directory.rglob("*") if each.is_file()]
    # the middle of a wrapped key: no part of it may be left either
    return {key for key in wanted if any(key[16:40] in content for content in contents)}


@pytest.mark.parametrize("seed", range(4))
def test_wrapped_keys_of_what_was_erased_are_in_no_file(tmp_path: Path, seed: int) -> None:
    """Rows are added, erased and moved between pages in many orders, for SQLite leaves copies when it moves cells."""
    rng, directory = random.Random(seed), tmp_path / "vault"  # noqa: S311 - repeatable
    everything: set[bytes] = set()
    with Vault.create(directory, key_file(tmp_path)) as vault:
        alive: list[str] = []
        for step in range(12):
            batch = [f"patient {step}.{each}" for each in range(rng.randrange(1, 25))]
            vault.add([record(step, subject, caption="x" * rng.randrange(900)) for subject in batch])
            alive += batch
            everything |= wrapped_keys(directory)
            for subject in rng.sample(alive, rng.randrange(0, len(alive) // 2 + 1)):
                if rng.random() < 0.3:
                    vault.erase_subject(subject)
                    alive.remove(subject)
            assert anywhere(directory, everything) >= wrapped_keys(directory)  # the search finds what is there
        subject = rng.choice(alive)
        vault.erase_subject(subject)
        assert anywhere(directory, everything - wrapped_keys(directory)) == set()
    assert anywhere(directory, everything - wrapped_keys(directory)) == set()


def test_the_old_lock_is_in_no_file_after_a_rotation(tmp_path: Path) -> None:
    with filled(tmp_path) as vault:
        old = wrapped_keys(tmp_path / "vault")
        vault.rotate(key_file(tmp_path, "new"))
        assert anywhere(tmp_path / "vault", old) == set()


def test_expired_records_lose_their_keys_while_their_subject_stays(tmp_path: Path) -> None:
    with Vault.create(tmp_path / "vault", key_file(tmp_path)) as vault:
        gone, kept = vault.add([record(0, "p", expires=date(2030, 1, 1)), record(1, "p")])
        lost = vault._interior.record(gone)[0]
        vault.erase_expired(date(2030, 1, 1))
        assert anywhere(tmp_path / "vault", {lost.wrapped}) == set()
        assert vault.read(kept).caption == "caption 1"


def test_keys_do_not_print(tmp_path: Path) -> None:
    with filled(tmp_path) as vault:
        keys: VaultKeys = vault._interior.keys
        shown = f"{vault!r}{keys!r}{vault._interior!r}"
        secrets = (keys._wrap, keys._tags, keys._rows, *vault._interior.subject_keys().values())
        assert not any(each.reveal().hex() in shown or str(each.reveal()) in shown for each in secrets)
