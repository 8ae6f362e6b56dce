"""Nothing is lost without a word: rows, captions, names of files, and records that an intake added before it ended."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import stat
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from client.cli import app
from client.intake import ingest as ingest_module
from client.intake.outcomes import Example, Reason, Refused, line
from client.intake.receipt import Room, verify_receipt
from client.vault.master_key import KeyFile
from client.vault.vault import Vault
from common.audit_log import read_entries, verify_log
from common.config import read_toml
from common.crypto.identity_file import read_identity_file
from common.errors import ConfigError, VaultError
from simulations.cli import app as simulations
from tests.client.bad_inputs import picture
from tests.client.dicom_objects import dicom_bytes
from tests.client.intakes import Site, outcomes

if TYPE_CHECKING:
    from client.intake.receipt import Receipt


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site.make(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def paint(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(number))


def test_a_row_of_too_many_or_too_few_cells_is_refused(site: Site, folder: Path) -> None:
    paint(folder, "0.png", "1.png", "2.png")
    rows = ["file_name,text,subject_id", "0.png,a man, standing,p1", "1.png,a cat", '2.png,"a cat, sitting",p3']
    (folder / "metadata.csv").write_text("\n".join(rows))
    found = outcomes(site.take(folder))
    assert (found["metadata.csv line 2"], found["metadata.csv line 3"]) == ("refused: BAD_ROW", "refused: BAD_ROW")
    assert site.captions() == {"2.png": "a cat, sitting"}


@pytest.mark.parametrize("beside", ["0.caption", "0.CAPTION", "0.TXT", "0.Txt", "0.JPG.txt", "0.jpg.Caption", "0.txt"])
@pytest.mark.parametrize("row", [None, {}, {"text": ""}, {"text": None}])
def test_captions_beside_pictures_are_read(site: Site, folder: Path, beside: str, row: dict[str, Any] | None) -> None:
    paint(folder, "d/0.JPG")
    (folder / "d" / beside).write_text("a dog")
    if row is not None:
        (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "d/0.JPG", **row}))
    report = site.take(folder)
    assert site.captions() == {"d/0.JPG": "a dog"}
    assert report.left_out == 0


def test_captions_that_are_not_used_are_told_of(site: Site, folder: Path) -> None:
    paint(folder, "0.png", "1.png", "2.png", "3.png")
    for name, text in {"0.txt": "one", "0.caption": "two", "1.txt": "of no row", "alone.txt": "x"}.items():
        (folder / name).write_text(text)
    (folder / "elsewhere").write_text("x")
    (folder / "2.txt").symlink_to(folder / "elsewhere")
    (folder / "metadata.jsonl").write_text(
        "\n".join(json.dumps({"file_name": f"{n}.png", **({"text": "row"} if n == 1 else {})}) for n in range(4))
    )
    report = site.take(folder, rules={"files": {"unlisted": "keep"}})
    found = outcomes(report)
    assert (found["0.png"], found["2.png"]) == ("refused: BAD_CAPTION", "refused: BAD_CAPTION")
    assert found["alone.txt"] == "refused: NO_PICTURE"
    assert site.captions() == {"1.png": "row", "3.png": ""}
    assert "1 captions beside pictures were not read: their rows say something else" in report.notes


@pytest.mark.parametrize(
    ("on_disk", "in_row"),
    [
        (unicodedata.normalize("NFD", "R\u00f6ntgen_\u00e9.png"), "R\u00f6ntgen_\u00e9.png"),
        ("R\u00f6ntgen.png", unicodedata.normalize("NFD", "R\u00f6ntgen.png")),
        ("a/1.png", "a\\1.png"),
        ("a/b/1.png", ".\\a\\b\\1.png"),
    ],
)
def test_a_file_is_found_however_its_name_is_spelt(site: Site, folder: Path, on_disk: str, in_row: str) -> None:
    paint(folder, on_disk)
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": in_row, "text": "x"}))
    assert outcomes(site.take(folder)) == {on_disk: "accepted"}


def test_a_name_in_another_letter_case_is_asked_about(site: Site, folder: Path) -> None:
    paint(folder, "a.PNG")
    (folder / "metadata.jsonl").write_text('{"file_name": "A.png"}')
    (missing, _) = site.take(folder).examples
    assert isinstance(missing.outcome, Refused)
    assert missing.outcome.reason is Reason.MISSING
    assert "did you mean 'a.PNG'" in missing.outcome.detail


def test_rules_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"\xef\xbb\xbf[files]\r\nmax_side = 16\r\n")
    assert read_toml(tmp_path / "a.toml") == {"files": {"max_side": 16}}
    (tmp_path / "a.toml").write_bytes("[files]".encode("utf-16"))
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_toml(tmp_path / "a.toml")


def test_a_hold_out_that_takes_most_pictures_is_told_of(site: Site, folder: Path) -> None:
    sizes = [20, *([1] * 19)]
    rows = [{"file_name": f"{s}-{n}.png", "subject_id": f"p{s}"} for s, many in enumerate(sizes) for n in range(many)]
    paint(folder, *(row["file_name"] for row in rows))
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for share in (0.0, 0.15, 0.5):
        report = site.take(folder, commit=False, rules={"subjects": {"holdout": share}})
        held, kept = report.splits["holdout"], report.splits.total()
        said = [note for note in report.notes if "held out and never trained with" in note]
        assert bool(said) == (held > 1.5 * share * kept)
        assert not said or said[0].startswith(f"{held} of {kept} pictures")


def test_a_list_names_every_file_and_no_name_writes_a_line() -> None:
    shown = line(Example(name="a\nb\u202e.png", outcome=Refused(Reason.DAMAGED, "cut\toff")))
    assert shown == "refused: damaged or truncated: a\\nb\\u202e.png (cut\\toff)"


# ------------------------------------------------------------------------------------------- the command, cut off


@pytest.fixture
def place(tmp_path: Path) -> Path:
    made = CliRunner().invoke(app, ["init", str(tmp_path / "site"), "--name", "clinic"])
    assert made.exit_code == 0, made.output
    paint(tmp_path / "in", *(f"{number}.png" for number in range(5)))
    (tmp_path / "in/bad.png").write_bytes(b"damaged")
    (tmp_path / "in/scan.dcm").write_bytes(dicom_bytes(1, BurnedInAnnotation="YES"))
    return tmp_path


def words(place: Path, *more: str) -> list[str]:
    config = str(place / "site/site.toml")
    return ["ingest", str(place / "in"), "--workers", "1", "--config", config, *more]


def commit(place: Path) -> Any:
    return CliRunner().invoke(app, words(place, "--commit", "--yes"), env={"COLUMNS": "200"})


def receipts(place: Path) -> list[Receipt]:
    owner = read_identity_file(place / "site/identity.key").public
    found = [verify_receipt(path.read_bytes(), owner) for path in (place / "site/receipts").glob("*.json")]
    verify_log(place / "site/audit.log", owner)
    noted = [entry.details["receipt"] for entry in read_entries(place / "site/audit.log") if entry.kind == "ingested"]
    assert sorted(noted) == sorted(receipt.digest().hex() for receipt in found)
    return sorted(found, key=lambda receipt: noted.index(receipt.digest().hex()))


def under_receipts(place: Path) -> tuple[int, int]:
    """Records under receipts, and in the vault; receipts follow one another without a gap."""
    found = receipts(place)
    for one, other in itertools.pairwise(found):
        assert one.vault_after == other.vault_before
    with Vault.open(place / "site/vault", KeyFile(place / "site/vault.key")) as vault:
        inside = len(vault.infos())
        assert not found or found[-1].vault_after == vault.state().text()
    return sum(count.number for receipt in found for count in receipt.records), inside


SCRIPT = """
import os, sys
from client.intake import ingest
from client.vault.vault import Vault
from client.cli import main
ingest.BATCH_RECORDS = 1
add, calls = Vault.add, []
def counted(vault, records):
    found = add(vault, records)
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), int(os.environ["DARKROOM_TEST_SIGNAL"]))
    return found
Vault.add = counted
if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_an_intake_every_record_is_under_a_receipt(place: Path, number: signal.Signals) -> None:
    (place / "cut.py").write_text(SCRIPT)
    root = str(Path(ingest_module.__file__).parents[2])
    ended = subprocess.run(
        [sys.executable, str(place / "cut.py"), *words(place, "--commit", "--yes")],
        env=os.environ | {"PYTHONPATH": root, "DARKROOM_TEST_SIGNAL": str(int(number)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    is_killed = number is signal.SIGKILL
    assert ended.returncode == (-signal.SIGKILL if is_killed else 128 + number), ended.stderr
    if not is_killed:
        assert "stopped: 2 pictures were added; receipt: " in ended.stdout
        assert "run the same command again" in ended.stdout
        assert "Traceback" not in ended.stderr
        assert under_receipts(place) == (2, 2)
    again = commit(place)
    assert again.exit_code == 0, again.output
    assert ("an earlier intake was cut off after 2 pictures; their receipt: " in again.output) == is_killed
    assert under_receipts(place) == (5, 5)
    assert [sum(count.number for count in receipt.records) for receipt in receipts(place)] == [2, 3]


def test_a_receipt_of_an_intake_that_was_cut_off_counts_what_was_added(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_module, "BATCH_RECORDS", 2)
    add, calls = Vault.add, []

    def failing(vault: Vault, records: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise VaultError("the disk is full")
        return add(vault, records)

    monkeypatch.setattr(Vault, "add", failing)
    ended = commit(place)
    assert isinstance(ended.exception, VaultError)
    assert "stopped: 2 pictures were added; receipt: " in ended.output
    (receipt,) = receipts(place)
    assert {(count.what, count.number) for count in receipt.outcomes} == {("accepted", 2)}
    assert sum(count.number for count in receipt.records) == 2


def test_an_interrupt_right_after_a_batch_counts_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add = Vault.add

    def interrupted(vault: Vault, records: Any) -> Any:
        add(vault, records)
        raise KeyboardInterrupt

    monkeypatch.setattr(Vault, "add", interrupted)
    assert commit(place).exit_code == 130
    (receipt,) = receipts(place)
    assert sum(count.number for count in receipt.records) == 5


def test_a_disk_that_is_full_at_the_receipt_loses_no_record(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill = Room.fill

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Room, "fill", full)
    ended = commit(place)
    assert isinstance(ended.exception, ConfigError)
    assert "5 pictures were added" in str(ended.exception)
    assert receipts(place) == []
    looked = CliRunner().invoke(app, words(place))
    assert "the last intake left no receipt" in looked.output
    monkeypatch.setattr(Room, "fill", fill)
    again = commit(place)
    assert "cut off after 5 pictures" in again.output
    assert again.exit_code == 3  # nothing new
    assert under_receipts(place) == (5, 5)


def test_a_disk_that_is_full_from_the_start_adds_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    ended = commit(place)
    assert isinstance(ended.exception, ConfigError)
    assert "nothing was added" in str(ended.exception)
    with Vault.open(place / "site/vault", KeyFile(place / "site/vault.key")) as vault:
        assert vault.infos() == ()


def test_a_receipt_that_the_log_was_not_told_of_is_not_written_twice(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("client.operations.intake_papers._Desk._note", torn)
        assert commit(place).exit_code == 130
    assert len(list((place / "site/receipts").glob("*.json"))) == 1
    commit(place)
    assert under_receipts(place) == (5, 5)
    assert len(receipts(place)) == 2


def test_every_file_that_is_left_out_is_named_for_its_owner_alone(place: Path) -> None:
    ended = commit(place)
    assert ended.exit_code == 0, ended.output
    (path,) = (place / "site/receipts").glob("*.left-out.txt")
    assert f"by name: {path}" in ended.output.replace("\n", "")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.split(" (")[0] for each in path.read_text().splitlines()] == [
        "refused: not a picture: bad.png",
        "refused: text in the picture: scan.dcm",
    ]
    looked = CliRunner().invoke(app, words(place, "--list", str(place / "list.txt")))
    assert len((place / "list.txt").read_text().splitlines()) == 7
    assert looked.exit_code == 3


def test_the_exit_code_says_when_nothing_was_taken(place: Path) -> None:
    assert CliRunner().invoke(app, words(place)).exit_code == 0
    assert CliRunner().invoke(app, words(place, "--commit"), input="n\n").exit_code == 3
    assert commit(place).exit_code == 0
    again = commit(place)
    assert again.exit_code == 3
    assert "Nothing was added to the vault" in again.output
    assert "no file was taken" in again.output
    assert "Added to the vault" not in again.output
    assert CliRunner().invoke(app, words(place)).exit_code == 3


# ------------------------------------------------------------------------------------------------ check and ingest


def test_a_simulations_check_takes_what_ingest_takes_of_pictures(site: Site, folder: Path) -> None:
    rows = {"a.png": {}, "b.png": {"text": None}, "c.png": {"consent": False}, "e.tif": {}, "f.png": {}}
    paint(folder, *(name for name in rows if name.endswith("png")))
    (folder / "d.dcm").write_bytes(dicom_bytes(1))
    (folder / "e.tif").write_bytes(picture(9, mode="CMYK", kind="TIFF"))
    (folder / "a.txt").write_text("beside")
    csv = ["file_name;consent", *(f"{name};{'no' if 'consent' in row else 'yes'}" for name, row in rows.items())]
    for name, text in (
        ("metadata.jsonl", "\n".join(json.dumps({"file_name": name, **row}) for name, row in rows.items())),
        ("Metadata.csv", "\n".join(csv)),
        (None, ""),
    ):
        if name:
            (folder / name).write_text(text)
        else:
            (folder / "c.png").unlink()
        taken = site.take(folder, commit=False)
        ended = CliRunner().invoke(simulations, ["check", str(folder)], env={"COLUMNS": "200"})
        assert ended.exit_code == 0, (ended.output, ended.exception)
        assert taken.kept == (4 if name else 5)
        assert "4 pictures of 4 subjects can be used\n3 of them have no caption" in ended.output
        assert ("no picture by its name: d.dcm" in ended.output) == (name is None)
        assert ("no consent or expired: c.png" in ended.output) == bool(name)
        if name:
            (folder / name).unlink()
