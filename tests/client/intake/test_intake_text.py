"""Pictures in which text was found: refused, unless a person has looked at this very file."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING

import pytest
from PIL import Image, ImageDraw, ImageFont

from client.intake.ingest import Intake
from client.intake.outcomes import Reason, Refused
from client.intake.subjects import IntakeKey
from common.errors import ConfigError
from tests.client.bad_inputs import pixels
from tests.client.dicom_objects import dicom_bytes
from tests.client.intakes import IDENTITY, TODAY, outcomes, rules_of

if TYPE_CHECKING:
    from pathlib import Path

    from client.intake.outcomes import IntakeReport


def with_text(seed: int, text: str) -> bytes:
    image = Image.fromarray(pixels(seed, 256, 256) // 2)
    ImageDraw.Draw(image).text((20, 100), text, fill="white", font=ImageFont.load_default(24))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    (folder / "b").mkdir(parents=True)
    (folder / "a 1.png").write_bytes(with_text(1, "SIGNED 1911"))
    (folder / "b/a 1.png").write_bytes(with_text(2, "DOE JANE 4711"))
    (folder / "scan.dcm").write_bytes(dicom_bytes(3, BurnedInAnnotation="YES", frames=2))
    return folder


def take(tmp_path: Path, lines: str | None) -> IntakeReport:
    rules = {}
    if lines is not None:
        (tmp_path / "looked-at.txt").write_text(lines)
        rules = {"pixels": {"looked_at": str(tmp_path / "looked-at.txt")}}
    intake = Intake(folder=tmp_path / "in", rules=rules_of(rules), workers=0, today=TODAY)
    return intake.run(IntakeKey.of(IDENTITY))


TEXT = "refused: BURNED_IN_TEXT"


def line(folder: Path, name: str) -> str:
    return f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"


def test_a_file_that_a_person_has_looked_at_is_let_in_and_no_other(folder: Path, tmp_path: Path) -> None:
    everything = {"a 1.png": TEXT, "b/a 1.png": TEXT, "scan.dcm#1": TEXT, "scan.dcm#2": TEXT}
    assert outcomes(take(tmp_path, None)) == everything
    assert outcomes(take(tmp_path, "# none yet\n\n")) == everything
    assert outcomes(take(tmp_path, line(folder, "a 1.png"))) == everything | {"a 1.png": "accepted"}
    found = outcomes(take(tmp_path, line(folder, "scan.dcm").replace("  ", " *")))
    assert found == everything | {"scan.dcm#1": "converted", "scan.dcm#2": "converted"}


@pytest.mark.usefixtures("folder")
def test_a_dry_run_says_the_line(tmp_path: Path) -> None:
    details = {}
    for example in take(tmp_path, None).examples:
        assert isinstance(example.outcome, Refused)
        assert example.outcome.reason is Reason.BURNED_IN_TEXT
        assert example.before  # to be looked at on the contact sheet
        details[example.name.partition("#")[0]] = example.outcome.detail
    lines = [detail.rpartition(": ")[2] for detail in details.values()]
    assert all("pixels.looked_at" in detail for detail in details.values())
    assert set(outcomes(take(tmp_path, "\n".join(lines))).values()) == {"accepted", "converted"}


def test_a_file_that_was_changed_or_moved_is_asked_for_again(folder: Path, tmp_path: Path) -> None:
    looked = line(folder, "a 1.png")
    (folder / "c.png").write_bytes((folder / "a 1.png").read_bytes())
    assert outcomes(take(tmp_path, looked))["c.png"] == TEXT
    (folder / "a 1.png").write_bytes(with_text(1, "DOE JANE 4711"))
    report = take(tmp_path, looked)
    assert outcomes(report)["a 1.png"] == TEXT
    (detail,) = [each.outcome.detail for each in report.examples if each.name == "a 1.png"]  # type: ignore[union-attr]
    assert "changed" in detail


@pytest.mark.parametrize("bad", ["a 1.png", "*", "b/*.png", f"{'0' * 63}  a 1.png", f"{'0' * 64}", f"{'g' * 64}  x"])
@pytest.mark.usefixtures("folder")
def test_a_list_of_another_form_is_refused(bad: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sha256sum"):
        take(tmp_path, bad)
