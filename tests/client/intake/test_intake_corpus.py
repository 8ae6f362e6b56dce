"""Many bad inputs at once: each has its own outcome, nothing crashes, nothing is written or read elsewhere."""

from __future__ import annotations

import io
import logging
import zlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from client.intake.receipt import Room, make_receipt
from tests.client.bad_inputs import CANARY, FILES, ROWS, write_files, write_rows
from tests.client.dicom_objects import NAME, PATIENT
from tests.client.intakes import IDENTITY, Site, outcomes, rules_of, word

if TYPE_CHECKING:
    from pathlib import Path

    from client.intake.outcomes import IntakeReport

DICOM_CANARIES = (NAME, PATIENT, "Canary Hospital", "StudyCanary", "ACC-CANARY-9", "CommentCanary", "PrivateCanary")


def chunks(png: bytes) -> list[bytes]:
    """Chunk names of a PNG, read without any library; every checksum must fit and nothing may follow."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, names = 8, []
    while at < len(png):
        size = int.from_bytes(png[at : at + 4], "big")
        body = png[at + 4 : at + 8 + size]
        assert int.from_bytes(png[at + 8 + size : at + 12 + size], "big") == zlib.crc32(body)
        names.append(body[:4])
        at += 12 + size
    return names


def files_below(folder: Path) -> dict[str, bytes | None]:
    found = {}
    for path in sorted(folder.rglob("*")):
        found[str(path.relative_to(folder))] = path.read_bytes() if path.is_file() and not path.is_symlink() else None
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "site/in").mkdir(parents=True)
    return tmp_path / "site/in"


def test_the_corpus_is_large_enough() -> None:
    assert len(FILES) + len(ROWS) >= 110


def test_every_file_has_the_outcome_that_it_should(folder: Path, tmp_path: Path) -> None:
    expected = write_files(folder)
    site = Site.make(tmp_path)
    before = files_below(folder.parent)
    found = outcomes(site.take(folder, rules={"files": {"max_side": 64}}))
    frames = {name: found.pop(name) for name in list(found) if "#" in name}
    assert frames == {f"scan frames.dcm#{number}": "converted" for number in (1, 2, 3)}
    expected.pop("scan frames.dcm")
    assert found == expected
    assert files_below(folder.parent) == before
    assert {path.name for path in tmp_path.iterdir()} == {"site", "vault", "key"}
    for record in site.records():
        assert set(chunks(record.image)) == {b"IHDR", b"IDAT", b"IEND"}
        with Image.open(io.BytesIO(record.image)) as image:
            assert image.mode == "RGB"
            assert not image.info
            assert not dict(image.getexif())
        assert CANARY.encode() not in record.image
        assert not [each for each in DICOM_CANARIES if each.encode() in record.image or each in record.caption]
        assert PATIENT not in record.subject_id


def test_every_row_has_the_outcome_that_it_should(folder: Path, tmp_path: Path) -> None:
    expected = write_rows(folder)
    report = Site.make(tmp_path).take(folder)
    expected[0] = "accepted"  # invisible characters go without being worth a word
    words = [word for name, word in outcomes_in_order(report) if word != "refused: UNLISTED"]
    assert words == expected
    unlisted = {name for name, word in outcomes_in_order(report) if word == "refused: UNLISTED"}
    assert unlisted == {"c.png", "l.png"}


def outcomes_in_order(report: IntakeReport) -> list[tuple[str, str]]:
    return [(example.name, word(example.outcome)) for example in report.examples]


def test_worker_processes_say_the_same(folder: Path, tmp_path: Path) -> None:
    write_files(folder)
    site = Site.make(tmp_path)
    alone = site.take(folder, commit=False)
    together = site.take(folder, commit=False, workers=2)
    assert outcomes(together) == outcomes(alone)
    assert together.outcomes == alone.outcomes


def test_nothing_of_a_file_is_in_receipt_logs_or_vault(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    write_files(folder)
    caplog.set_level(logging.DEBUG)
    for path in list(folder.iterdir()):
        if path.name.startswith("plain"):
            path.with_name(f"{CANARY}{path.name}").with_suffix(".txt").write_text(f"{CANARY} caption")
            path.rename(path.with_name(f"{CANARY}{path.name}"))
    site = Site.make(tmp_path)
    report = site.take(folder)
    site.vault.close()
    Room.take(tmp_path / "receipt.json").fill(make_receipt(report, rules_of({}), IDENTITY, now=datetime.now(UTC)))
    printed = capfd.readouterr()
    written = [path.read_bytes() for path in (tmp_path / "vault").rglob("*") if path.is_file()]
    written += [
        (tmp_path / "receipt.json").read_bytes(),
        caplog.text.encode(),
        printed.out.encode(),
        printed.err.encode(),
    ]
    assert report.kept > 30
    for canary in (CANARY, *DICOM_CANARIES, "scan frames", "turned.jpg", str(folder)):
        assert not [data for data in written if canary.encode() in data], canary
