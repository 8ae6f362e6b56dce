"""Consent and opting out fail closed: what is not understood is never taken for a yes."""

from __future__ import annotations

import json
import unicodedata
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from client.cli import app
from client.intake.metadata import KEYS, unused_keys
from client.intake.subjects import OptOut
from common.errors import ConfigError, DataError
from tests.client.bad_inputs import picture
from tests.client.dicom_objects import PATIENT, dicom_bytes
from tests.client.intakes import Site, outcomes

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site.make(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / "in" / f"{number}.png").write_bytes(picture(number))
    return tmp_path / "in"


def write(path: Path, *rows: dict[str, Any] | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))


NEAR = {
    "consent": ["Consent", "CONSENT", " consent", "consent ", "consents", "consented", "has_consent", "consnet"],
    "file_name": ["File_Name", "file-name", "filename", "file name", "fle_name"],
    "subject_id": [
        "Subject_ID",
        "subject-id",
        "subjectId",
        "subject",
        "patient_id",
        "PatientID",
        "person",
        "sbject_id",
    ],
    "expires": ["Expires", "expiry", "expiration_date", "valid_until", "expire"],
    "text": ["Text", "texts", "txt", "te\u200bxt"],
    "caption": ["Caption", "captions", "capton"],
    "label": ["labels", "LABEL"],
}
ALSO_OF_CONSENT = ["opt_out", "optout", "opted-out", "withdrawn", "consent_given", "Einwilligung", "c\u00f3nsent"]


@pytest.mark.parametrize(
    ("meant", "key"),
    [(meant, key) for meant, keys in NEAR.items() for key in keys] + [("consent", key) for key in ALSO_OF_CONSENT],
)
def test_a_key_near_one_that_counts_is_refused_and_told(meant: str, key: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
        unused_keys(["file_name" if meant != "file_name" else "text", key])


def test_other_keys_are_not_used_and_told(site: Site, folder: Path) -> None:
    harmless = ["width", "height", "source", "license", "split", "tags", "md5", "patient_age", "title"]
    assert unused_keys([*KEYS, *harmless]) == tuple(harmless)
    write(folder / "metadata.jsonl", *({"file_name": f"{n}.png", "width": 64} for n in range(3)))
    report = site.take(folder, commit=False)
    assert report.kept == 3
    assert "keys of the metadata that are not used: width (3)" in report.notes


@pytest.mark.parametrize("unlisted", ["refuse", "keep"])
@pytest.mark.parametrize("row", [{"Consent": False}, {"consented": False}, {"consent": "perhaps"}, {"consent": 2}])
def test_a_row_that_cannot_be_used_never_lets_its_file_in(
    site: Site, folder: Path, row: dict[str, Any], unlisted: str
) -> None:
    write(folder / "metadata.jsonl", {"file_name": "0.png", **row}, {"file_name": "1.png"})
    found = outcomes(site.take(folder, rules={"files": {"unlisted": unlisted}}))
    assert found["metadata.jsonl line 1"] == "refused: BAD_ROW"
    assert found["0.png"] == "refused: UNLISTED"
    assert found["1.png"] == "accepted"
    assert found["2.png"] == ("accepted" if unlisted == "keep" else "refused: UNLISTED")


@pytest.mark.parametrize("row", ["not json", '{"file_name": "0.PNG", "consent": false}', '{"consent": false}'])
def test_a_row_that_may_be_of_any_file_refuses_those_without_a_row(site: Site, folder: Path, row: str) -> None:
    write(folder / "metadata.jsonl", row, {"file_name": "1.png"})
    found = outcomes(site.take(folder, rules={"files": {"unlisted": "keep"}}))
    assert (found["0.png"], found["1.png"], found["2.png"]) == ("refused: UNLISTED", "accepted", "refused: UNLISTED")


@pytest.mark.parametrize("second", [{"consent": False}, {"Consent": False}, {"expires": "2999-01-01"}])
def test_two_rows_that_disagree_refuse_the_file(site: Site, folder: Path, second: dict[str, Any]) -> None:
    write(folder / "metadata.jsonl", {"file_name": "0.png"}, {"file_name": "0.png", **second}, {"file_name": "1.png"})
    found = outcomes(site.take(folder))
    assert found["0.png"] == "refused: REPEATED_ROW"
    assert found["1.png"] == "accepted"


def test_a_key_given_twice_is_refused(site: Site, folder: Path) -> None:
    write(folder / "metadata.jsonl", '{"file_name": "0.png", "consent": false, "consent": true}')
    assert "accepted" not in outcomes(site.take(folder)).values()


@pytest.mark.parametrize(
    ("value", "outcome"),
    [
        *((value, "accepted") for value in (True, "true", "YES", " yes ", "y", 1, "1")),
        *(
            (value, "refused: NO_CONSENT")
            for value in (False, "no", "No", "false", 0, "0", "", " ", None, "n/a", "N/A", "none", "unknown", "-")
        ),
        *((value, None) for value in ("maybe", "ja", "\uff59\uff45\uff53", 2, 1.0, [], {}, "until tomorrow")),
    ],
)
@pytest.mark.parametrize("rule", ["optional", "required"])
def test_what_is_not_a_known_yes_is_no_consent(
    site: Site, folder: Path, rule: str, value: object, outcome: str | None
) -> None:
    write(folder / "metadata.jsonl", {"file_name": "0.png", "consent": value})
    found = outcomes(site.take(folder, commit=False, rules={"subjects": {"consent": rule}}))
    assert found["0.png"] == (outcome or "refused: UNLISTED")


@pytest.mark.parametrize(
    ("cell", "outcome"), [("yes", "accepted"), ("", "refused: NO_CONSENT"), ("no", "refused: NO_CONSENT")]
)
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_an_empty_cell_is_no_consent(site: Site, folder: Path, separator: str, cell: str, outcome: str) -> None:
    rows = [["file_name", "consent", "text"], ["0.png", cell, "a"]]
    write(folder / "metadata.csv", *(separator.join(row) for row in rows))
    assert outcomes(site.take(folder, commit=False))["0.png"] == outcome


@pytest.mark.parametrize(
    "header", ["file_name,Text,Subject_ID,Consent", "file_name, consent", "file_name,consent,consent"]
)
def test_a_table_with_a_column_near_one_that_counts_is_refused_as_a_whole(
    site: Site, folder: Path, header: str
) -> None:
    write(folder / "metadata.csv", header, "0.png" + ",no" * header.count(","))
    with pytest.raises(DataError, match=r"its first line: .*(did you mean 'consent'|is given 2 times)"):
        site.take(folder)


NO = {"file_name": "0.png", "consent": False}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Metadata.jsonl", json.dumps(NO)),
        ("METADATA.JSONL", json.dumps(NO)),
        ("metadata.json", json.dumps([NO])),
        ("Metadata.JSON", "\ufeff" + json.dumps([NO], indent=1)),
        ("Metadata.csv", "file_name,consent\n0.png,no"),
        ("metadata.csv", "file_name;consent\r\n0.png;no\r\n"),
    ],
)
@pytest.mark.parametrize("below", ["", "train", "a/b"])
def test_metadata_is_read_wherever_it_lies(site: Site, tmp_path: Path, below: str, name: str, text: str) -> None:
    place = tmp_path / "in" / below
    place.mkdir(parents=True)
    for number in range(2):
        (place / f"{number}.png").write_bytes(picture(number))
    (place / name).write_text(text)
    found = outcomes(site.take(tmp_path / "in"))
    shown = f"{below}/" if below else ""
    assert found == {f"{shown}0.png": "refused: NO_CONSENT", f"{shown}1.png": "refused: UNLISTED"}


@pytest.mark.parametrize(
    "name",
    [
        "metadata.tsv",
        "metadata.xlsx",
        "metadata.parquet",
        "metadata.txt",
        "metadata (1).csv",
        "metadata_old.jsonl",
        "metdata.csv",
        "train/consent.csv",
        "opt-out.txt",
        "labels.csv",
        "data.jsonl",
    ],
)
def test_what_may_be_metadata_and_is_not_read_stops_the_intake(site: Site, folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("file_name,consent\n0.png,no")
    with pytest.raises(DataError, match="may say who consents, and is not read"):
        site.take(folder)


@pytest.mark.parametrize("rows", [[], [{"file_name": "0.png"}]], ids=["without metadata", "with metadata"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("0.json", '{"caption": "a cat", "consent": false}'),
        ("0.json", '{"caption": "a cat", "Consent_Given" : "no"}'),
        ("labels.json", '[{"file_name": "0.png", "opt_out": true}]'),
        ("below/0.YAML", "caption: a cat\nopted-out: yes\n"),
        ("0.xmp", "<rdf><consent>no</consent></rdf>"),
        ("0.toml", 'withdrawn = "2026-01-01"'),
    ],
)
def test_a_text_whose_keys_speak_of_consent_and_is_not_read_stops_the_intake(
    site: Site, folder: Path, name: str, text: str, rows: list[dict[str, Any]]
) -> None:
    if rows:
        write(folder / "metadata.jsonl", *rows)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    with pytest.raises(DataError, match="may say who consents, and is not read"):
        site.take(folder)
    assert not site.records()


def test_a_text_that_mentions_consent_in_its_words_alone_stops_nothing(site: Site, folder: Path) -> None:
    (folder / "0.json").write_text('{"caption": "two people consenting to a contract", "width": 96}')
    assert outcomes(site.take(folder))["0.png"] == "accepted"


def test_a_text_beside_metadata_is_not_its_caption(site: Site, folder: Path) -> None:
    write(folder / "metadata.jsonl", {"file_name": "0.png"})
    (folder / "metadata.txt").write_text("0.png no")
    with pytest.raises(DataError, match=r"metadata.txt: may say who consents"):
        site.take(folder)


def test_metadata_that_is_a_link_or_no_list_stops_the_intake(site: Site, folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere.jsonl", NO)
    (folder / "metadata.jsonl").symlink_to(tmp_path / "elsewhere.jsonl")
    with pytest.raises(DataError, match="is no file but a link"):
        site.take(folder)
    (folder / "metadata.jsonl").unlink()
    for text in (json.dumps({"images": [NO]}), "[", json.dumps(NO), ""):
        (folder / "metadata.json").write_text(text)
        with pytest.raises(DataError, match="wanted a list"):
            site.take(folder)


def test_metadata_above_the_folder_is_told_of(site: Site, folder: Path) -> None:
    write(folder.parent / "metadata.jsonl", {"file_name": "in/0.png", "consent": False})
    assert any("is not read: it lies above the folder" in note for note in site.take(folder, commit=False).notes)


SAME = [
    ("777", "00777"),
    ("00777", "777"),
    ("P-007", "p7"),
    ("p 7", "P7"),
    ('"AB12"', "ab12"),
    ("\u201eAB12\u201c", "AB12"),
    ("AB12 ", "AB12"),
    ("AB\u200b12", "AB12"),
    ("AB12", "A\u00adB12"),
    ("\ufeffAB12", "AB12"),
    (unicodedata.normalize("NFD", "M\u00fcller"), "M\u00dcLLER"),
    ("\uff21\uff2212", "AB12"),
    ("12345;2026-01-01", "12345"),
    ("AB12;x", "ab12"),
    ("AB12\tDoe, Jane", "AB12"),
    ("'AB12',\"1970-01-01\"", "AB12"),
    ('["AB12"]', "AB12"),
    ("WARD/123", "123"),
    ("a" * 64, "A" * 64),
]


@pytest.mark.parametrize(("listed", "met"), SAME)
def test_an_opt_out_list_matches_whatever_way_it_is_written(listed: str, met: str) -> None:
    found = OptOut.of(["nobody", listed])
    assert found.covers((met,), b"")
    assert found.met == 1
    for other in ("nobod", "778", "AB123", "1", "2026", "07", "Jane2"):
        assert not OptOut.of(["nobody", listed]).covers((other,), b"")


def test_a_table_is_read_by_the_column_that_it_names() -> None:
    found = OptOut.of(["date;Patient ID;note", "2026-01-01;777;x", "2026-01-02;888;5"])
    assert found.covers(("777",), b"")
    assert found.covers(("0888",), b"")
    assert not any(found.covers((other,), b"") for other in ("x", "5", "20260101"))


@pytest.mark.parametrize("line", ["{}", "sha256:{}", "{}  a/b.png", "{} *b.png", "b.png;{}"])
def test_a_digest_is_found_as_programs_write_it(line: str) -> None:
    assert OptOut.of([line.format("ab" * 32)]).covers(("someone",), bytes.fromhex("ab" * 32))
    assert OptOut.of([line.format("AB" * 32)]).covers(("someone",), bytes.fromhex("ab" * 32))


def test_files_in_other_folders_do_not_match() -> None:
    assert not OptOut.of(["train/0.png"]).covers(("test/0.png",), b"")
    assert not OptOut.of(["2026/01/07;x"]).covers(("7",), b"")


def test_a_list_that_matches_nobody_adds_nothing_until_somebody_says_so(site: Site, folder: Path) -> None:
    write(folder / "metadata.jsonl", *({"file_name": f"{n}.png", "subject_id": f"p{n}"} for n in range(3)))
    (folder.parent / "out.txt").write_text("q1\nq2\n")
    rules = {"subjects": {"opt_out": str(folder.parent / "out.txt")}}
    assert any(
        "matches nobody: none of its 2 lines" in note for note in site.take(folder, commit=False, rules=rules).notes
    )
    with pytest.raises(ConfigError, match="--opt-out-matches-nobody"):
        site.take(folder, rules=rules)
    assert site.vault.infos() == ()
    (folder.parent / "out.txt").write_text("q1\nP 0\n")
    report = site.take(folder, rules=rules)
    assert report.kept == 2
    assert "opt-out list: 1 of 2 lines match something here" in report.notes
    (folder.parent / "out.txt").write_text("p-1\n")  # in the vault from before, written otherwise
    assert site.take(folder, rules=rules).opted_out_inside == 1


def test_a_patient_who_is_only_found_in_a_header_is_a_match(site: Site, folder: Path) -> None:
    (folder / "scan.dcm").write_bytes(dicom_bytes(1))
    (folder.parent / "out.txt").write_text(f"{PATIENT.lower()};2026-01-01\n")
    found = outcomes(site.take(folder, rules={"subjects": {"opt_out": str(folder.parent / "out.txt")}}))
    assert found["scan.dcm"] == "refused: OPTED_OUT"
    assert len(site.vault.infos()) == 3


def test_the_command_takes_the_word_for_a_list_that_matches_nobody(folder: Path, tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["init", str(tmp_path / "site"), "--name", "clinic"]).exit_code == 0
    (tmp_path / "ingest.toml").write_text('[subjects]\nopt_out = "out.txt"\n')
    (tmp_path / "out.txt").write_text("")
    words = [
        "ingest",
        str(folder),
        "--config",
        str(tmp_path / "site/site.toml"),
        "--rules",
        str(tmp_path / "ingest.toml"),
    ]
    words += ["--workers", "1", "--commit", "--yes"]
    assert isinstance(CliRunner().invoke(app, words).exception, ConfigError)
    ended = CliRunner().invoke(app, [*words, "--opt-out-matches-nobody"])
    assert ended.exit_code == 0, ended.output


@pytest.mark.parametrize("written", ["P17\u200b", "\u2060P17", "P\u00ad17", " P17 ", "P17\ufe0f"])
def test_characters_that_do_not_show_make_no_second_subject(site: Site, folder: Path, written: str) -> None:
    write(
        folder / "metadata.jsonl",
        {"file_name": "0.png", "subject_id": "P17"},
        {"file_name": "1.png", "subject_id": written},
    )
    site.take(folder)
    assert {record.subject_id for record in site.records()} == {"P17"}
    assert len(site.vault.subject_ids()) == 1


def test_subjects_in_two_letter_cases_are_told_of(site: Site, folder: Path) -> None:
    write(folder / "metadata.jsonl", *({"file_name": f"{n}.png", "subject_id": p} for n, p in enumerate(("P1", "p1"))))
    assert any("several letter cases" in note for note in site.take(folder, commit=False).notes)


NO = "refused: NO_CONSENT"


def test_who_says_no_in_one_row_is_not_taken_by_another_that_says_nothing(site: Site, folder: Path) -> None:
    write(
        folder / "metadata.jsonl",
        {"file_name": "0.png", "text": "", "subject_id": "P1", "consent": False},
        {"file_name": "1.png", "text": "", "subject_id": "p1"},
        {"file_name": "2.png", "text": "", "subject_id": "P2"},
    )
    assert outcomes(site.take(folder)) == {"0.png": NO, "1.png": NO, "2.png": "accepted"}


def test_a_yes_of_its_own_is_the_pictures_own(site: Site, folder: Path) -> None:
    write(
        folder / "metadata.jsonl",
        {"file_name": "0.png", "text": "", "subject_id": "P1", "consent": False},
        {"file_name": "1.png", "text": "", "subject_id": "P1", "consent": True},
        {"file_name": "2.png", "text": "", "subject_id": "P2", "consent": True},
    )
    assert outcomes(site.take(folder)) == {"0.png": NO, "1.png": "accepted", "2.png": "accepted"}
