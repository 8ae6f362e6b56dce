"""What an intake leaves on paper: the receipt, the contact sheet, and what the command line prints."""

from __future__ import annotations

import json
import os
import re
import stat
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from typer.testing import CliRunner

from client.cli import app
from client.intake import workers
from client.intake.outcomes import (
    SHEET_PICTURES,
    Accepted,
    Duplicate,
    Example,
    IntakeReport,
    Reason,
    Refused,
    line,
    render_contact_sheet,
    write_contact_sheet,
)
from client.intake.receipt import Receipt, Room, make_receipt, verify_receipt
from client.intake.rules import LookedAt
from client.site.settings import read_site
from client.steward.process import socket_place
from client.steward.socket import held
from client.vault.master_key import KeyFile
from client.vault.vault import Vault
from common.audit_log import read_entries, verify_log
from common.crypto.identity_file import read_identity_file
from common.crypto.primitives import Identity, Label
from common.errors import BadSignature, ConfigError, DarkroomError, DataError
from tests.client.bad_inputs import picture
from tests.client.dicom_objects import PATIENT, dicom_bytes
from tests.client.intakes import IDENTITY, rules_of

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
EVIL = '"><script>alert(1)</script><img src=http://evil/ onerror=x>\u202e'


def report() -> IntakeReport:
    found = IntakeReport(state_before="a:0:b", state_after="a:1:c")
    found.note(Example(name="one.png", outcome=Accepted(), caption_before="secret", caption_after="[name]"))
    found.note(Example(name="two.png", outcome=Refused(Reason.DAMAGED, "OSError while decoding")))
    found.note(Example(name="three.png", outcome=Duplicate(of="one.png", distance=2, is_exact=False)))
    found.caption_rules.update({"name": 3})
    found.splits.update({"train": 1})
    return found


def written(tmp_path: Path) -> bytes:
    Room.take(tmp_path / "receipts/one.json").fill(make_receipt(report(), rules_of({}), IDENTITY, now=NOW))
    return (tmp_path / "receipts/one.json").read_bytes()


def test_a_receipt_says_what_happened_and_no_content(tmp_path: Path) -> None:
    data = written(tmp_path)
    receipt = verify_receipt(data, IDENTITY.public)
    assert {(count.what, count.why): count.number for count in receipt.outcomes} == {
        ("accepted", ""): 1,
        ("refused", "damaged or truncated"): 1,
        ("duplicate", "nearly equal, of another file"): 1,
    }
    assert [(count.what, count.number) for count in receipt.caption_rules] == [("name", 3)]
    assert (receipt.vault_before, receipt.vault_after) == ("a:0:b", "a:1:c")
    assert receipt.rules["DICOM profile"] == "dicomfields_2026c"
    assert "Pillow" in receipt.rules
    for word in (b"secret", b"one.png", b"two.png", b"while decoding"):
        assert word not in data
    assert stat.S_IMODE((tmp_path / "receipts/one.json").stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        Room.take(tmp_path / "receipts/one.json").fill(receipt)


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in nested JSON that holds a plain value."""
    if isinstance(value, dict):
        return [each for key in value for each in paths(value[key], (*at, key))]
    if isinstance(value, list):
        return [each for key, item in enumerate(value) for each in paths(item, (*at, key))]
    return [at]


def test_a_receipt_that_was_altered_anywhere_is_refused(tmp_path: Path) -> None:
    data = written(tmp_path)
    places = paths(json.loads(data))
    assert len(places) > 20
    for place in places:
        changed = json.loads(data)
        inner = changed
        for key in place[:-1]:
            inner = inner[key]
        value = inner[place[-1]]
        inner[place[-1]] = value + 1 if isinstance(value, int) else f"{value[:-1]}{'1' if value[-1:] == '0' else '0'}"
        with pytest.raises((BadSignature, DataError)):
            verify_receipt(json.dumps(changed).encode(), IDENTITY.public)


def test_the_digest_of_a_receipt_tells_no_counts() -> None:
    """It stands in the audit log, beside all else that a receipt holds: equal intakes must not have equal digests."""
    one, other = (make_receipt(report(), rules_of({}), IDENTITY, now=NOW) for _ in range(2))
    assert one.digest() != other.digest()
    assert msgspec.structs.replace(one, salt="", signature="") == msgspec.structs.replace(other, salt="", signature="")


def test_another_key_or_purpose_is_refused(tmp_path: Path) -> None:
    data = written(tmp_path)
    other = Identity.generate()
    with pytest.raises(BadSignature):
        verify_receipt(data, other.public)
    renamed = data.replace(IDENTITY.public.hex().encode(), other.public.hex().encode())
    with pytest.raises(BadSignature):
        verify_receipt(renamed, other.public)
    for junk in (b"", b"{}", b"[" * 100_000, b"\xff", data[:-20], data + b"x"):
        with pytest.raises(DataError):
            verify_receipt(junk, IDENTITY.public)


def test_a_receipt_names_who_signed_it(tmp_path: Path) -> None:
    """Signed by the right key, yet naming another: no honest site makes that."""
    found = msgspec.json.decode(written(tmp_path), type=Receipt)
    other = msgspec.structs.replace(found, signer="00" * 32)
    signature = IDENTITY.sign(Label.INTAKE_RECEIPT, other.content()).hex()
    with pytest.raises(BadSignature):
        verify_receipt(msgspec.json.encode(msgspec.structs.replace(other, signature=signature)), IDENTITY.public)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in {"src", "href"}]
        assert not [name for name, _ in attrs if name.startswith("on")]


def test_the_sheet_escapes_everything_and_loads_nothing() -> None:
    found = report()
    found.note(
        Example(name=EVIL, outcome=Refused(Reason.DAMAGED, EVIL), caption_before=EVIL, caption_after=EVIL, before=b"x")
    )
    page = render_contact_sheet(found, now=NOW)
    seen = Tags()
    seen.feed(page)
    assert "script" not in seen.tags
    assert all(link.startswith("data:image/jpeg;base64,") for link in seen.links)
    assert "default-src 'none'" in page
    assert "secret" in page
    assert "[name]" in page


def test_a_line_that_is_copied_from_the_sheet_lets_the_picture_in(tmp_path: Path) -> None:
    name, content = "two  blanks.png", bytes(32)
    example = Example(name=name, outcome=Refused(Reason.BURNED_IN_TEXT, LookedAt().way_in(name, content)))
    found = report()
    found.note(example)
    page = render_contact_sheet(found, now=NOW)
    shown = next(text for text in re.findall("<bdi>(.*?)</bdi>", page) if content.hex() in text)
    style = re.search(r"bdi {(.*?)}", page)
    assert style is not None
    if "pre-wrap" not in style[1]:  # a browser shows, and copies, one blank
        shown = " ".join(shown.split())
    looked = tmp_path / "looked_at.txt"
    looked.write_text(shown.partition("names: ")[2])
    assert LookedAt.read(looked).covers(name, content)


def test_sheet_and_list_tell_the_same_of_a_file() -> None:
    for outcome, told in (
        (Duplicate(of="one.png", distance=0, is_exact=True), "of one.png"),
        (Duplicate(of="", distance=0, is_exact=True), ""),
        (Duplicate(of="one.png", distance=2, is_exact=False), "of one.png, 2 of 64 bits of shape apart"),
        (Duplicate(of="", distance=2, is_exact=False), "2 of 64 bits of shape apart"),
        (Refused(Reason.TOO_SMALL, "3 by 3"), "3 by 3"),
        (Refused(Reason.NO_CONSENT), ""),
    ):
        found = IntakeReport()
        found.note(Example(name="x.png", outcome=outcome))
        cell = re.search(r"<br><bdi>(.*?)</bdi>", render_contact_sheet(found, now=NOW))
        assert ("" if cell is None else cell[1]) == told
        assert line(found.examples[0]).endswith(f"x.png ({told})" if told else "x.png")


def test_the_sheet_is_its_owners_and_follows_no_link(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("as it was")
    sheet = tmp_path / "sheet.html"
    sheet.symlink_to(target)
    write_contact_sheet(report(), sheet, now=NOW)
    assert target.read_text() == "as it was"
    assert not sheet.is_symlink()
    assert stat.S_IMODE(sheet.stat().st_mode) == 0o600
    write_contact_sheet(report(), sheet, now=NOW)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sheet.html", "target"]
    surrogate = IntakeReport()
    surrogate.note(Example(name="\udcff", outcome=Accepted()))
    write_contact_sheet(surrogate, sheet, now=NOW)


def test_the_sheet_has_an_end() -> None:
    found = IntakeReport()
    for number in range(SHEET_PICTURES + 50):
        found.note(Example(name=f"{number}", outcome=Accepted()))
    assert len(found.examples) == SHEET_PICTURES
    assert found.kept == SHEET_PICTURES + 50


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A site without a vault yet, and a folder with an ordinary picture, a damaged one and a scan."""
    made = CliRunner().invoke(app, ["init", str(tmp_path / "site"), "--name", "clinic"])
    assert made.exit_code == 0, made.output
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(picture(1))
    (tmp_path / "in/a.txt").write_text("of jane@x.org")
    (tmp_path / "in/b.png").write_bytes(b"damaged")
    (tmp_path / "in/c.dcm").write_bytes(dicom_bytes(1))
    return tmp_path


def run(place: Path, *options: str) -> Any:
    arguments = ["ingest", str(place / "in"), "--workers", "1", "--config", str(place / "site/site.toml"), *options]
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})


def files(place: Path) -> list[Path]:
    return sorted(path for path in place.rglob("*") if path.is_file())


def opened(place: Path) -> Vault:
    return Vault.open(place / "site/vault", KeyFile(place / "site/vault.key"))


def test_a_dry_run_from_the_command_line(place: Path) -> None:
    before = files(place)
    ended = run(place, "--report", str(place / "sheet.html"))
    assert ended.exit_code == 0, ended.output
    assert "Dry run: nothing was added" in ended.output
    assert "not a picture" in ended.output
    assert "[email]" in ended.output
    assert "jane" not in ended.output
    assert "a.png" not in ended.output
    page = (place / "sheet.html").read_text()
    assert "jane@x.org" in page
    assert "of [email]" in page
    assert page.count("data:image/jpeg") == 4
    assert files(place) == sorted([*before, place / "sheet.html"])


def test_a_dry_run_needs_no_site(place: Path) -> None:
    ended = CliRunner().invoke(app, ["ingest", str(place / "in"), "--config", str(place / "none.toml")])
    assert ended.exit_code == 0, ended.output
    ended = CliRunner().invoke(
        app, ["ingest", str(place / "in"), "--config", str(place / "none.toml"), "--commit", "--yes"]
    )
    assert isinstance(ended.exception, ConfigError)


def test_a_commit_asks_adds_and_leaves_a_receipt_and_an_entry(place: Path) -> None:
    run(place, "--commit")  # nobody answers
    with opened(place) as vault:
        assert vault.infos() == ()
    ended = run(place, "--commit", "--yes")
    assert ended.exit_code == 0, ended.output
    (path,) = (place / "site/receipts").glob("*.json")
    owner = read_identity_file(place / "site/identity.key").public
    receipt = verify_receipt(path.read_bytes(), owner)
    assert isinstance(receipt, Receipt)
    assert sum(count.number for count in receipt.records) == 2
    with opened(place) as vault:
        assert receipt.vault_after == vault.state().text()
        assert len(vault.infos()) == 2
    verify_log(place / "site/audit.log", owner)
    entry = json.loads((place / "site/audit.log").read_text().splitlines()[-1])
    assert entry["kind"] == "ingested"
    assert entry["details"] == {"receipt": receipt.digest().hex(), "vault": receipt.vault_after}
    again = run(place, "--commit", "--yes", "--receipt", str(place / "again.json"))
    assert again.exit_code == 3, again.output  # nothing new
    assert re.search(r"duplicate.*in the vault.*2", again.output)
    assert (place / "again.json").exists()
    assert re.search(r"duplicate.*in the vault.*2", run(place).output)


def test_a_receipt_is_verified_on_the_command_line(place: Path) -> None:
    assert run(place, "--commit", "--yes").exit_code == 0
    (path,) = (place / "site/receipts").glob("*.json")
    key = read_identity_file(place / "site/identity.key").public.hex()

    def verify(file: Path, by: str) -> Any:
        return CliRunner().invoke(app, ["receipt", "verify", str(file), "--key", by])

    said = verify(path, key)
    assert said.exit_code == 0, said.output
    assert f"{path}: signed by this key on 20" in said.output
    assert "files: 1 refused, not a picture" in said.output
    assert sum(int(count) for count in re.findall(r"pictures added: (\d+)", said.output)) == 2
    named = json.loads((place / "site/audit.log").read_text().splitlines()[-1])["details"]["receipt"]
    assert named in said.output
    other = place / "other.json"
    other.write_text(path.read_text().replace("not a picture", "not a Picture"))
    assert isinstance(verify(other, key).exception, BadSignature)
    assert isinstance(verify(path, Identity.generate().public.hex()).exception, BadSignature)
    assert isinstance(verify(path, "key").exception, ConfigError)
    other.write_text("{}")
    assert isinstance(verify(other, key).exception, DataError)
    assert isinstance(verify(place / "none.json", key).exception, DataError)


def test_an_intake_without_a_receipt_adds_nothing_and_one_that_is_stopped_is_seen(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "there.json").write_text("kept")
    ended = run(place, "--commit", "--yes", "--receipt", str(place / "there.json"))
    assert isinstance(ended.exception, ConfigError)
    assert (place / "there.json").read_text() == "kept"
    assert not list(read_entries(place / "site/audit.log"))
    monkeypatch.setattr("client.intake.ingest.Intake.run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    run(place, "--commit", "--yes")
    assert [entry.kind for entry in read_entries(place / "site/audit.log")] == ["ingesting"]
    with opened(place) as vault:
        assert vault.infos() == ()


def test_no_decoder_inherits_the_passphrase(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, start = list[str | None](), workers._start

    def watched(*given: Any, **named: Any) -> Any:
        seen.append(os.environ.get("DARKROOM_TEST_WORDS"))
        return start(*given, **named)

    monkeypatch.setattr(workers, "_start", watched)
    words = ["--name", "clinic", "--passphrase-env", "DARKROOM_TEST_WORDS"]
    monkeypatch.setenv("DARKROOM_TEST_WORDS", "correct horse battery staple")
    assert CliRunner().invoke(app, ["init", str(place / "locked"), *words]).exit_code == 0
    config = ["--config", str(place / "locked/site.toml"), "--workers", "1"]
    for options in ([], ["--commit", "--yes"]):
        monkeypatch.setenv("DARKROOM_TEST_WORDS", "correct horse battery staple")
        ended = CliRunner().invoke(app, ["ingest", str(place / "in"), *config, *options])
        assert ended.exit_code == 0, ended.output
    assert seen == [None, None]


def test_a_commit_waits_for_the_steward_to_stop(place: Path) -> None:
    site = read_site(place / "site/site.toml")
    with held(socket_place(site.service)):
        ended = run(place, "--commit", "--yes")
    assert isinstance(ended.exception, DarkroomError)
    with opened(place) as vault:
        assert vault.infos() == ()


def test_a_patient_is_found_again_by_the_pseudonym(place: Path) -> None:
    run(place, "--commit", "--yes")
    asked = CliRunner().invoke(app, ["pseudonym", "--config", str(place / "site/site.toml")], input=f"{PATIENT}\n")
    subject = asked.output.split()[-1]
    with opened(place) as vault:
        assert vault.find_subject(subject) is not None
        assert vault.find_subject(PATIENT) is None


def test_rules_are_printed_and_read(place: Path) -> None:
    printed = CliRunner().invoke(app, ["ingest-rules"])
    (place / "ingest.toml").write_text(printed.output)
    ended = run(place, "--rules", str(place / "ingest.toml"), "--accept-text")
    assert ended.exit_code == 0, ended.output
