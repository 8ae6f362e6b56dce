"""What a new user at a site gets wrong is answered with what to do, and never with something else than it was."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from client.cli import app
from client.drawing.generation import GenerationRequest, generate_pictures
from client.operations.new_site import make_site
from common.command_line import run_command_line
from common.errors import ConfigError, DarkroomError


def said(*words: str, answer: str = "") -> str:
    done = CliRunner().invoke(app, list(words), input=answer)
    assert isinstance(done.exception, DarkroomError), (words, done.output, done.exception)
    return str(done.exception)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words") / "site"
    make_site(folder, "ash")
    return folder


@pytest.mark.parametrize("name", ["", "Ash", "-ash", "a" * 64, "a_b"])
def test_a_name_that_is_none_is_told_the_rule(tmp_path: Path, name: str) -> None:
    assert "wanted a name of 1 to 63 small letters, digits and hyphens" in said(
        "init", str(tmp_path / "site"), "--name", name
    )


def test_a_site_cannot_be_made_below_a_file_and_trying_again_is_no_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told = said("init", str(tmp_path / "file" / "site"), "--name", "ash")
    assert f"{tmp_path / 'file'} is no folder" in told
    assert "try again" not in told


def test_a_dry_run_of_what_would_be_refused_says_so(site: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["init", str(site), "--name", "ash", "--dry-run"])
    assert done.exit_code == 1
    assert "nothing would be" in done.output
    done = CliRunner().invoke(app, ["init", str(tmp_path / "new"), "--name", "ash", "--dry-run"])
    assert (done.exit_code, done.output.splitlines()[-1]) == (0, "nothing was made")


def test_a_passphrase_in_place_of_its_variables_name_is_not_repeated(tmp_path: Path) -> None:
    told = said("init", str(tmp_path / "site"), "--name", "ash", "--passphrase-env", "seven random words on paper")
    assert "name of an environment variable" in told
    assert "seven" not in told


def test_a_contact_that_is_empty_is_told_as_the_option(site: Path) -> None:
    told = said("request", "--name", "ash", "--contact", "", "--directory", str(site))
    assert told == "--contact: wanted 1 to 200 visible characters on one line; got ''"


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("steward",),
        ("approvals",),
        ("approve", "x"),
        ("erase", "--commit"),
        ("rotate-key", "--keyring", "x"),
    ],
)
def test_a_command_beside_no_site_names_the_option(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = said(*words, answer="x\n")
    assert "site.toml: no such file; name the site (--config site/site.toml" in told
    assert "darkroom-client init" in told


def test_what_is_no_base_is_told_as_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    assert "is a file; wanted a diffusers directory" in said("digest", str(tmp_path / "file"))
    assert "missing; wanted a whole diffusers directory" in said("digest", str(tmp_path / "empty"))
    assert "wanted a diffusers directory" in said("digest", "owner/name")


def test_what_is_no_manifest_is_named_with_what_was_wanted(site: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear colleague")
    told = said("approve", str(tmp_path / "letter.txt"), "--config", str(site / "site.toml"))
    assert told.startswith(str(tmp_path / "letter.txt"))
    assert "give the .manifest file that the coordinator sent" in told


def test_a_run_that_nobody_proposed_is_not_counted(site: Path) -> None:
    assert said("withdraw", "abcd", "--config", str(site / "site.toml")).startswith("no run here begins with abcd")


def test_the_vaults_own_key_is_no_new_one(site: Path) -> None:
    config = ("--config", str(site / "site.toml"))
    assert "comes from already" in said("rotate-key", *config, "--key-file", "vault.key")
    assert said("rotate-key", *config).endswith("got none")
    assert said("rotate-key", *config, "--keyring", "a", "--key-file", "b").endswith("got --key-file and --keyring")


def request(tmp_path: Path, **changes: Any) -> GenerationRequest:
    given = {"base": "no/such/base", "adapter": tmp_path / "none", "prompts": ("a",), "out": tmp_path / "out"}
    return GenerationRequest(**{**given, "seed": 0, "steps": 1, "guidance_scale": 1.0, "resolution": None, **changes})


def test_where_no_picture_can_be_written_is_told_before_a_base_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc")):
        with pytest.raises(ConfigError, match=re.escape(f"--out: {out}: no pictures can be written here")):
            next(generate_pictures(request(tmp_path, out=out)))


def test_an_adapter_that_is_not_there_is_told_before_a_base_is_read(tmp_path: Path) -> None:
    with pytest.raises(DarkroomError, match="wanted a directory of a saved adapter"):
        next(generate_pictures(request(tmp_path)))


@pytest.mark.parametrize("command", [("countersign",), ("release", "verify")])
def test_what_is_no_release_is_told_as_that(command: tuple[str, ...], tmp_path: Path, site: Path) -> None:
    config = ("--config", str(site / "site.toml")) if command == ("countersign",) else ()
    for folder in (tmp_path / "nowhere", site):
        told = said(*command, str(folder), *config)
        assert told.startswith(f"{folder}: no release's folder")
        assert "give the whole folder that the coordinator sent" in told


def interrupted(*_: object, **__: object) -> Any:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("broken", "words", "last"),
    [
        (
            "client.drawing.generation.generate_pictures",
            ("generate", "--base", "b", "--adapter", "a", "--prompt", "p"),
            "drawn",
        ),
        ("client.operations.countersigning.examine", ("countersign", "folder"), "nothing was signed"),
        ("client.steward.process.run_until_signal", ("steward",), "nothing was charged"),
        (
            "client.operations.key_rotation.rotate_key",
            ("rotate-key", "--keyring", "x"),
            "names the key that opens the vault",
        ),
    ],
)
def test_ctrl_c_ends_with_a_line_on_what_is_kept(
    broken: str,
    words: tuple[str, ...],
    last: str,
    site: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("quiet_libraries", "print_in_any_terminal", "end_by_sigterm"):  # of a whole process
        monkeypatch.setattr(f"common.command_line.{name}", lambda: None)
    monkeypatch.setattr("client.governance.policy.SitePolicy.unfinished", lambda _: ())
    monkeypatch.setattr(broken, interrupted)
    monkeypatch.chdir(site)
    with pytest.raises(SystemExit) as ended:
        run_command_line(lambda: app(list(words)))
    assert ended.value.code == 130
    said = capsys.readouterr().err
    assert last in said.splitlines()[-1]
    assert "Traceback" not in said


def test_a_file_of_another_kind_is_named_as_what_it_is(site: Path, tmp_path: Path) -> None:
    CliRunner().invoke(app, ["request", "--name", "ash", "--contact", "it@ash.example", "--directory", str(site)])
    sent = str(site / "ash.request")
    told = said("install", sent, "--bundle", "x", "--fingerprint", "1", "--directory", str(site))
    assert told == f"{sent}: is a site's request; give a join file here"
    (tmp_path / "letter.txt").write_text("Dear colleague")
    assert "is no PNG file" in said("picture", "verify", str(tmp_path / "letter.txt"))
    missing = said("install", "x.join", "--bundle", "x", "--fingerprint", "1", "--directory", str(site))
    assert missing.endswith("give the file that was sent")


@pytest.mark.parametrize("words", [("check",), ("check", "folder"), ("check", "folder", "--verbose")])
def test_the_check_of_a_folder_says_where_it_went(words: tuple[str, ...]) -> None:
    ended = CliRunner().invoke(app, list(words))
    assert ended.exit_code == 2
    assert ended.stderr == (
        "to look at a folder of pictures: darkroom-client ingest FOLDER, or darkroom-sim check FOLDER\n"
    )
