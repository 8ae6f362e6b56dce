"""The intake as a whole: who is kept, on which side, under which name; and that it can be stopped anywhere."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import signal
import subprocess
import sys
import unicodedata
from collections import Counter
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from client.intake import ingest as ingest_module
from client.intake import workers as workers_module
from client.intake.deidentify import CleanFile, CleanPicture, clean_file
from client.intake.outcomes import Reason, Refused
from client.intake.rules import IntakeRules
from client.intake.subjects import IntakeKey, OptOut
from client.intake.workers import WorkerPool
from client.vault.master_key import KeyFile
from client.vault.vault import Vault
from common.crypto.primitives import Identity
from common.errors import ConfigError, DataError, EmptyFolder
from tests.client.bad_inputs import picture, pixels
from tests.client.dicom_objects import PATIENT, dicom_bytes
from tests.client.intakes import IDENTITY, TODAY, Site, outcomes

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = IntakeKey.of(IDENTITY)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site.make(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def fill(folder: Path, rows: list[dict[str, Any]], *, first: int = 0) -> None:
    """One picture a row, and the metadata."""
    for number, row in enumerate(rows):
        path = folder / row["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(first + number))
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps({"text": "", **row}) for row in rows))


def people(count: int, each: int = 1) -> list[dict[str, Any]]:
    return [{"file_name": f"{n}-{k}.png", "subject_id": f"p{n}"} for n in range(count) for k in range(each)]


def test_a_dry_run_changes_nothing_and_says_what_a_commit_does(site: Site, folder: Path) -> None:
    fill(folder, people(4))
    state = site.vault.state()
    dry = site.take(folder, commit=False)
    assert site.vault.state() == state
    assert dry.examples[0].before.startswith(b"\xff\xd8")
    wet = site.take(folder)
    assert (wet.outcomes, wet.splits) == (dry.outcomes, dry.splits)
    assert not any(example.before or example.after for example in wet.examples)
    assert len(site.vault.infos()) == 4
    assert (wet.state_before, wet.state_after) == (state.text(), site.vault.state().text())


def test_what_is_stored_is_what_was_meant(site: Site, folder: Path) -> None:
    row = {
        "file_name": "a/b.png",
        "text": "of a@b.org",
        "subject_id": " p1 ",
        "label": "axial",
        "expires": "2030-01-01",
    }
    fill(folder, [row])
    site.take(folder)
    (record,) = site.records()
    assert (record.caption, record.subject_id, record.label) == ("of [email]", "p1", "axial")
    assert (record.source_name, record.info.expires) == ("a/b.png", date(2030, 1, 1))
    assert site.vault.find_subject("p1") is not None


def test_ingesting_again_adds_nothing(site: Site, folder: Path) -> None:
    fill(folder, people(5))
    site.take(folder)
    state = site.vault.state()
    again = site.take(folder)
    assert again.kept == 0
    assert set(outcomes(again).values()) == {"duplicate"}
    assert site.vault.state() == state


def test_near_duplicates_of_the_vault_are_dropped_or_kept(site: Site, folder: Path, tmp_path: Path) -> None:
    fill(folder, people(2))
    site.take(folder)
    copies = tmp_path / "copies"
    copies.mkdir()
    for n in range(2):
        Image.fromarray(pixels(n)).save(copies / f"{n}.jpg", quality=92)
    assert set(outcomes(site.take(copies, commit=False)).values()) == {"duplicate"}
    assert site.take(copies, rules={"pixels": {"near_duplicates": "keep"}}).kept == 2


def test_slices_of_one_subject_stay_and_of_two_do_not(site: Site, folder: Path) -> None:
    """Over several batches and two intakes: a subject is the same one before and after it is in the vault."""
    base, other = pixels(1, 256, 256).astype(float), pixels(2, 256, 256).astype(float)
    rows = []
    for subject in ("one", "two"):
        for number in range(6):
            image = np.clip(base + 0.1 * number * (other - other.mean()) + (subject == "two"), 0, 255).astype(np.uint8)
            Image.fromarray(image).save(folder / f"{subject}{number}.png")
            rows.append(json.dumps({"file_name": f"{subject}{number}.png", "subject_id": subject}))
    metadata, found = folder / "metadata.jsonl", []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ingest_module, "BATCH_RECORDS", 1)
        for chosen in (rows[:3], rows):
            metadata.write_text("\n".join(chosen))
            found.append(outcomes(site.take(folder)))
    first, second = found
    assert {first[f"one{number}.png"] for number in range(3)} == {"accepted"}
    assert {second[f"one{number}.png"] for number in range(3, 6)} == {"accepted"}
    assert {second[f"two{number}.png"] for number in range(6)} == {"duplicate"}


def test_sidecars_and_csv_give_captions(site: Site, folder: Path) -> None:
    (folder / "a.png").write_bytes(picture(1))
    (folder / "b.png").write_bytes(picture(2))
    (folder / "a.txt").write_bytes("\ufeffa caf\u00e9".encode())
    (folder / "b.png.txt").write_text("b")
    (folder / "c.png").write_bytes(picture(3))
    (folder / "c.txt").write_bytes(b"\xff not UTF-8")
    found = site.take(folder)
    assert outcomes(found)["c.png"] == "refused: BAD_CAPTION"
    assert site.captions() == {"a.png": "a caf\u00e9", "b.png": "b"}
    other = folder.parent / "csv"
    other.mkdir()
    for n in range(4):
        (other / f"{n}.png").write_bytes(picture(10 + n))
    lines = [b"file_name,text,subject_id", b'0.png,"one, two\r\nthree",p', b"1.png,=1+1,p", b"2.png,\xff,p", b"3.png"]
    (other / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    found = site.take(other)
    assert site.captions() | {"a.png": "", "b.png": ""} == {
        "a.png": "", "b.png": "", "0.png": "one, two three", "1.png": "=1+1",
    }  # fmt: skip
    assert outcomes(found)["2.png"] == "refused: UNLISTED"
    assert outcomes(found)["metadata.csv line 5"] == "refused: BAD_ROW"
    assert outcomes(found)["metadata.csv line 6"] == "refused: BAD_ROW"
    assert outcomes(found)["3.png"] == "refused: UNLISTED"


@pytest.mark.parametrize("text", ["file_name", "file_name,text\n" + "x" * 200_000, 'file_name,text\na.png,"unclosed'])
def test_odd_tables(site: Site, folder: Path, text: str) -> None:
    (folder / "a.png").write_bytes(picture(1))
    (folder / "metadata.csv").write_text(text)
    for unlisted in ("refuse", "keep"):
        assert outcomes(site.take(folder, commit=False, rules={"files": {"unlisted": unlisted}}))["a.png"] == (
            "accepted" if (text, unlisted) == ("file_name", "keep") else "refused: UNLISTED"
        )


@pytest.mark.parametrize("text", ["", "text\nabc", '"unclosed', "\0\n\0", "file_name,text,text\na.png,x,y"])
def test_tables_without_columns_are_refused_as_a_whole(site: Site, folder: Path, text: str) -> None:
    (folder / "a.png").write_bytes(picture(1))
    (folder / "metadata.csv").write_text(text)
    with pytest.raises(DataError, match="its first line"):
        site.take(folder)


def test_two_metadata_files_and_no_folder(site: Site, folder: Path) -> None:
    with pytest.raises(EmptyFolder):
        site.take(folder)
    with pytest.raises(DataError, match="no such folder"):
        site.take(folder / "none")
    for name in ("metadata.jsonl", "metadata.csv"):
        (folder / name).write_text("")
    with pytest.raises(DataError, match="keep one"):
        site.take(folder)


def test_consent_can_be_required(site: Site, folder: Path) -> None:
    said: list[tuple[dict[str, Any], str]] = [
        ({"consent": True}, "accepted"),
        ({"consent": "yes"}, "accepted"),
        ({"consent": f"until {TODAY}"}, "accepted"),
        ({"consent": "until 2026-05-31"}, "refused: EXPIRED"),
        ({"consent": True, "expires": "2026-06-01"}, "refused: EXPIRED"),
        ({"consent": "no"}, "refused: NO_CONSENT"),
        ({}, "refused: NO_CONSENT"),
    ]
    fill(folder, [{"file_name": f"{n}.png", **fields} for n, (fields, _) in enumerate(said)])
    found = outcomes(site.take(folder, rules={"subjects": {"consent": "required"}}))
    assert list(found.values()) == [outcome for _, outcome in said]
    assert date(2026, 6, 2) in {info.expires for info in site.vault.infos()}


def test_who_may_not_be_used_is_not_even_opened(site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(folder, [{"file_name": "a.png", "consent": False}])
    monkeypatch.setattr(workers_module, "clean_file", lambda *_, **__: pytest.fail("opened"))
    assert outcomes(site.take(folder)) == {"a.png": "refused: NO_CONSENT"}


def test_opting_out(site: Site, folder: Path, tmp_path: Path) -> None:
    fill(folder, [{"file_name": f"{n}.png", "subject_id": f"p{n}"} for n in range(4)])
    (folder / "scan.dcm").write_bytes(dicom_bytes(1))
    site.take(folder, rules={"files": {"unlisted": "keep"}})
    fill(folder, [{"file_name": f"{n}.png", "subject_id": f"p{n}"} for n in range(4)], first=20)
    (folder / "scan.dcm").write_bytes(dicom_bytes(2))
    digest = hashlib.sha256((folder / "3.png").read_bytes()).hexdigest()
    (tmp_path / "out.txt").write_text(f"# opted out\np1\n p2 \n{PATIENT}\n{digest.upper()}\n")
    rules = {"files": {"unlisted": "keep"}, "subjects": {"opt_out": str(tmp_path / "out.txt")}}
    report = site.take(folder, rules=rules)
    assert Counter(outcomes(report).values()) == {"accepted": 1, "refused: OPTED_OUT": 4}
    assert outcomes(report)["0.png"] == "accepted"
    assert report.opted_out_inside == 3
    with pytest.raises(ConfigError):
        site.take(folder, rules={"subjects": {"opt_out": str(tmp_path / "none")}})


@pytest.mark.parametrize("written", ["Doe-77", "DOE-77", "doe-77 ", "WARD/doe-77"])
def test_opting_out_covers_other_ways_of_writing(written: str) -> None:
    assert OptOut.of(["dOE-77"]).covers((written,), b"")
    assert not OptOut.of(["doe-7"]).covers((written,), b"")


def test_opting_out_covers_a_patient_whatever_the_issuer() -> None:
    listed = OptOut.of(["123"])
    assert listed.covers(("WARD/123",), b"")
    assert not listed.covers(("WARD/1234",), b"")


def test_whose_a_picture_is(site: Site, folder: Path) -> None:
    for number, name in enumerate(("top.png", "ward/a.png", "ward/deep/b.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(number))
    (folder / "scan.dcm").write_bytes(dicom_bytes(1))
    (folder / "scan2.dcm").write_bytes(dicom_bytes(2))
    found = outcomes(site.take(folder, rules={"subjects": {"default": "folder"}}))
    assert found["top.png"] == "refused: NO_SUBJECT"
    subjects = {record.source_name: record.subject_id for record in site.records()}
    assert subjects["ward/a.png"] == subjects["ward/deep/b.png"] == "ward"
    assert subjects["scan.dcm"] == subjects["scan2.dcm"] == KEY.pseudonym(PATIENT)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.text(min_size=1), st.text(min_size=1))
def test_pseudonyms(one: str, other: str) -> None:
    first, second = KEY.pseudonym(one), KEY.pseudonym(other)
    assert len(first) == len("patient-") + 32
    assert (first == second) == (normal(one) == normal(other))
    assert IntakeKey.of(Identity.generate()).pseudonym(one) != first


def test_spellings_of_one_number_are_one_patient() -> None:
    assert KEY.pseudonym(" P\u00e9 ") == KEY.pseudonym("Pe\u0301")


def normal(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


def test_a_pseudonym_does_not_change() -> None:
    """By hand from RFC 5869 and RFC 2104: another value would split every patient from their earlier pictures."""

    def mac(key: bytes, data: bytes) -> bytes:
        return hmac.digest(key, data, "sha256")

    def framed(*parts: bytes) -> bytes:
        return b"".join(len(part).to_bytes(8, "big") + part for part in parts)

    key = mac(mac(b"darkroom/intake-key/1", bytes(range(32))), b"\x01")
    expected = mac(key, framed(b"darkroom/intake-pseudonym/1", b"123")).hex()[:32]
    assert KEY.pseudonym("123") == f"patient-{expected}" == "patient-167fd3f08a88b6d6e97730243f2cf5ac"


@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.text(min_size=1), st.floats(0, 0.5))
def test_a_side_depends_on_key_and_subject(subject: str, share: float) -> None:
    side = KEY.split(subject, holdout=share)
    assert side == KEY.split(f" {subject} ", holdout=share)
    assert KEY.split(subject, holdout=0) == "train"
    if side == "holdout":
        assert KEY.split(subject, holdout=0.5) == "holdout"


def test_the_share_held_out() -> None:
    held = sum(KEY.split(f"subject {n}", holdout=0.15) == "holdout" for n in range(20_000))
    assert abs(held / 20_000 - 0.15) < 5 * np.sqrt(0.15 * 0.85 / 20_000)


def test_a_subject_keeps_its_side_even_if_the_share_changes(site: Site, folder: Path, tmp_path: Path) -> None:
    fill(folder, people(40, each=2))
    site.take(folder, rules={"subjects": {"holdout": 0.5}})
    sides = {info.subject: info.split for info in site.vault.infos()}
    assert set(sides.values()) == {"train", "holdout"}
    assert len({(info.subject, info.split) for info in site.vault.infos()}) == 40
    later = tmp_path / "later"
    later.mkdir()
    fill(later, people(40), first=500)
    site.take(later, rules={"subjects": {"holdout": 0.0}})
    assert len(site.vault.infos()) == 120
    assert {(info.subject, info.split) for info in site.vault.infos()} == set(sides.items())


def test_text_is_refused_unless_it_is_accepted(site: Site, folder: Path) -> None:
    (folder / "scan.dcm").write_bytes(dicom_bytes(1, BurnedInAnnotation="YES"))
    assert outcomes(site.take(folder)) == {"scan.dcm": "refused: BURNED_IN_TEXT"}
    assert outcomes(site.take(folder, rules={"pixels": {"text": "keep"}})) == {"scan.dcm": "converted"}


@pytest.mark.parametrize("size", [1, 3, 64])
def test_batches_hold_everything(site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(ingest_module, "BATCH_RECORDS", size)
    fill(folder, people(7))
    assert site.take(folder).kept == len(site.vault.infos()) == 7


@pytest.mark.parametrize("kill_at", range(4))
def test_stopped_at_any_batch_it_goes_on(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int
) -> None:
    monkeypatch.setattr(ingest_module, "BATCH_RECORDS", 2)
    fill(folder, people(7))
    calls, add = [0], Vault.add

    def failing(vault: Vault, records: Any) -> Any:
        calls[0] += 1
        if calls[0] > kill_at:
            raise KeyboardInterrupt
        return add(vault, records)

    monkeypatch.setattr(Vault, "add", failing)
    with pytest.raises(KeyboardInterrupt):
        site.take(folder)
    monkeypatch.setattr(Vault, "add", add)
    before = len(site.vault.infos())
    assert before == min(2 * kill_at, 7)
    report = site.take(folder)
    assert report.kept == 7 - before
    assert len(site.vault.infos()) == len({record.source_name for record in site.records()}) == 7


def test_killed_for_real_it_goes_on(site: Site, folder: Path, tmp_path: Path) -> None:
    """SIGKILL after each transaction, in a process of its own, until the folder is in."""
    fill(folder, people(6))
    site.vault.close()
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from client.intake import ingest\n"
        "from client.vault.vault import Vault\n"
        "from tests.client.intakes import Site\n"
        "from client.vault.master_key import KeyFile\n"
        "ingest.BATCH_RECORDS = 2\n"
        "root = Path(sys.argv[1])\n"
        "add = Vault.add\n"
        "def once(vault, records):\n"
        "    add(vault, records)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "Vault.add = once\n"
        "Site(root, Vault.open(root / 'vault', KeyFile(root / 'key'), access='write')).take(root / 'in')\n"
    )
    counts = []
    for _ in range(4):
        ended = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)], check=False, env=environment(), timeout=120
        )
        with Vault.open(tmp_path / "vault", KeyFile(tmp_path / "key")) as vault:
            counts.append((ended.returncode, len(vault.infos()), len(vault.subject_ids())))
    kill = -signal.SIGKILL
    assert counts == [(kill, 2, 2), (kill, 4, 4), (kill, 6, 6), (0, 6, 6)]


def environment() -> dict[str, str]:
    root = str(Path(ingest_module.__file__).parents[2])
    return os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang() -> None:
    signal.pause()


def talk_nonsense() -> bytes:
    return b"\x80\x04nonsense"


def slip_in_metadata() -> bytes:
    """A well-formed answer whose picture still carries something: what a taken-over decoder might send."""
    found = CleanPicture(
        png=picture(1, dpi=(72, 72)), exact=b"", perceptual=0, thumbnail=b"", changes=frozenset(), has_text=False
    )
    return msgspec.msgpack.encode(workers_module.Answer(file=CleanFile(pictures=(found,), file_digest=b"")))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (crash, Reason.CRASHED),
        (hang, Reason.TIMED_OUT),
        (talk_nonsense, Reason.CRASHED),
        (slip_in_metadata, Reason.CRASHED),
    ],
)
def test_a_worker_that_fails_costs_one_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[], bytes | None], reason: Reason
) -> None:
    """The fault is in the worker's process; the others' files, and the order, stay as they are."""
    monkeypatch.setattr(workers_module, "serve", Faulty(fault))
    waits = reason is Reason.TIMED_OUT  # the others are given time enough for a busy machine
    monkeypatch.setattr(workers_module, "START_SECONDS", 15.0 if waits else 120.0)
    names = ["0.png", "bad.png", "1.png", "2.png", "3.png"]
    for number, name in enumerate(names):
        (folder / name).write_bytes(picture(number))
    rules = IntakeRules()
    rules = type(rules)(files=type(rules.files)(seconds=2.0 if waits else 60.0))
    with WorkerPool(2, rules, previews=False) as pool:
        found = list(pool.clean(folder / name for name in names))
    assert [isinstance(each, Refused) for each in found] == [False, True, False, False, False]
    assert isinstance(found[1], Refused)
    assert found[1].reason is reason


class Faulty:
    """A worker that does what is wanted for one file's name."""

    def __init__(self, fault: Callable[[], bytes | None]) -> None:
        self.fault = fault

    def __call__(self, pipe: Any, rules: IntakeRules, *, previews: bool) -> None:
        while True:
            try:
                path = Path(os.fsdecode(pipe.recv_bytes()))
            except EOFError:
                return
            if path.name == "bad.png":
                pipe.send_bytes(self.fault() or b"")
                continue
            answer = workers_module.Answer(file=clean_file(path, rules, previews=previews))
            pipe.send_bytes(msgspec.msgpack.encode(answer))


def test_workers_keep_the_order_and_stop(folder: Path) -> None:
    paths = []
    for number in range(23):
        side = 700 if number % 5 == 0 else 40
        paths.append(folder / f"{number}.bmp")
        Image.fromarray(pixels(number, side, side)).save(paths[-1])
    rules = IntakeRules()
    with WorkerPool(3, rules, previews=False) as pool:
        together = list(pool.clean(iter(paths)))
        processes = [worker.process for worker in pool._running]
    assert not any(process.is_alive() for process in processes)
    assert together == list(WorkerPool(0, rules, previews=False).clean(paths))
