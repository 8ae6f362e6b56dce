"""A site's folder: made once, read back, served by a real process that survives being killed."""

from __future__ import annotations

import errno
import os
import re
import signal
import stat
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest
from typer.testing import CliRunner

from client.cli import app
from client.governance.ledger import Event
from client.operations.new_site import make_site, site_steps
from client.operations.status import site_status
from client.site.open_site import link_to_steward, open_site
from client.site.settings import read_site
from client.site.vault_access import open_vault
from client.vault.records import today
from common.adapter.model import Family
from common.audit_log import read_entries, verify_log
from common.crypto.identity_file import read_identity_file
from common.errors import ConfigError, ConfigErrors, StewardUnavailable
from common.provisioning import parse_request
from common.secagg.messages import Step
from common.wire.messages import Refusal, RefusalCode
from common.wire.replies import decode_reply
from common.wire.steward_link import Health
from tests.client.governance.test_policy import COORDINATOR, TOML
from tests.tiny_base import write_tiny_base

if TYPE_CHECKING:
    from client.site.settings import SiteConfig

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A site that can be served, on a tiny base."""
    made = tmp_path / "site"
    make_site(made, "st-vincent")
    write_tiny_base(made / "base", Family.SD2)
    (made / "policy.toml").write_text(TOML)
    return made


def test_a_new_site_is_the_owners_alone_and_reads_back(tmp_path: Path) -> None:
    steps = make_site(tmp_path / "site", "st-vincent")
    for step in steps:
        assert stat.S_IMODE(step.path.stat().st_mode) & 0o077 == 0, step.path
    site = read_site(tmp_path / "site" / "site.toml")
    assert site.name == "st-vincent"
    assert site.service.socket == tmp_path / "site" / "run" / "steward.sock"


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    make_site(tmp_path / "site", "st-vincent")
    before = {path: path.read_bytes() for path in (tmp_path / "site").rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"identity\.key"):
        make_site(tmp_path / "site", "st-vincent")
    assert before == {path: path.read_bytes() for path in (tmp_path / "site").rglob("*") if path.is_file()}


def test_one_thing_that_is_there_already_keeps_all_from_being_made(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_text("spent")
    with pytest.raises(ConfigError, match="ledger"):
        make_site(tmp_path, "st-vincent")
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.sqlite"]


def test_a_site_is_made_in_a_folder_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    for step in make_site(tmp_path, "st-vincent"):
        assert step.path.exists()
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    open_vault(read_site(tmp_path / "site.toml").vault).close()


@pytest.mark.parametrize("place", ["new", "there"])
@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_a_site_that_could_not_be_finished_can_be_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, fault: BaseException
) -> None:
    folder = tmp_path / place
    (tmp_path / "there").mkdir()
    steps = ("client.operations.new_site.create_token_file", "client.operations.new_site._make_vault")
    last = "common.durable_files._move_into" if place == "there" else "client.operations.new_site.Vault.create"
    for step in (*steps, last):
        with monkeypatch.context() as patch:
            patch.setattr(step, Mock(side_effect=fault))
            with pytest.raises((ConfigError, KeyboardInterrupt)) as told:
                make_site(folder, "st-vincent")
        assert isinstance(told.value, KeyboardInterrupt) or "No space left" in str(told.value)
        assert [path.name for path in tmp_path.rglob("*")] == ["there"]
    make_site(folder, "st-vincent")
    open_vault(read_site(folder / "site.toml").vault).close()


def test_a_move_that_fails_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []
    rename = Path.rename

    def full(path: Path, target: Path) -> Path:
        if len(moved) == 4:
            moved.append("")
            raise OSError(errno.ENOSPC, "No space left")
        moved.append(path.name)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(ConfigError, match="No space left"):
        make_site(tmp_path, "st-vincent")
    assert len(moved) == 9
    assert "site.toml" not in moved
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_init_leaves_is_in_nobodys_way(tmp_path: Path) -> None:
    code = """
import os
from pathlib import Path
from client.operations import new_site as site_directory
site_directory.create_token_file = lambda _: os._exit(9)
site_directory.make_site(Path("site"), "st-vincent")
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=False).returncode == 9
    make_site(tmp_path / "site", "st-vincent")
    open_vault(read_site(tmp_path / "site" / "site.toml").vault).close()


def request(folder: Path, name: str) -> Any:
    return CliRunner().invoke(app, ["request", "--name", name, "--contact", "x", "--directory", str(folder)])


def test_a_request_is_made_in_a_sites_own_folder_and_name(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    assert "first run: darkroom-client init" in str(request(folder, "st-vincent").exception)
    assert not folder.exists()
    make_site(folder, "st-vincent")
    before = set(folder.rglob("*"))
    assert "says that this is st-vincent; got ash" in str(request(folder, "ash").exception)
    assert set(folder.rglob("*")) == before
    assert request(folder, "st-vincent").exit_code == 0
    asked = parse_request((folder / "st-vincent.request").read_bytes(), source="request")
    assert asked.identity == read_identity_file(folder / "identity.key").public.hex()


def test_a_request_names_the_identity_that_the_settings_name(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    make_site(folder, "st-vincent")
    kept = (folder / "identity.key").rename(tmp_path / "kept.key")
    settings = folder / "site.toml"
    settings.write_text(settings.read_text().replace('"identity.key"', f'"{kept}"'))
    assert request(folder, "st-vincent").exit_code == 0
    asked = parse_request((folder / "st-vincent.request").read_bytes(), source="request")
    assert asked.identity == read_identity_file(kept).public.hex()
    assert not (folder / "identity.key").exists()


def test_a_dry_run_makes_nothing(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["init", str(tmp_path / "new"), "--name", "st-vincent", "--dry-run"])
    assert done.exit_code == 0
    assert "would make" in done.output
    assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigError):
        site_steps(tmp_path, "St. Vincent")


def test_every_fault_of_a_site_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text('name = "X"\ncollection = "a"\nbase = "b"\ndevice = "tpu"\nvaults = 1\n[vault]\n')
    with pytest.raises(ConfigErrors) as caught:
        read_site(path)
    text = str(caught.value)
    assert all(word in text for word in ("name", "device", "vaults", "exactly one of key_file"))


def test_the_old_name_of_a_collection_is_read_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_site(tmp_path / "site", "st-vincent")
    path = tmp_path / "site" / "site.toml"
    path.write_text(path.read_text().replace("collection =", "population ="))
    assert read_site(path).collection == "st-vincent/subject"
    assert "population is called collection now" in caplog.text


@pytest.mark.parametrize("text", ['"a\\u0000b"', '"~nobody-of-this-name/base"'])
def test_paths_that_no_system_knows_are_told(tmp_path: Path, text: str) -> None:
    make_site(tmp_path / "site", "st-vincent")
    path = tmp_path / "site" / "site.toml"
    path.write_text(path.read_text().replace('"base"', text))
    with pytest.raises(ConfigError):
        read_site(path)


def test_no_steward_starts_with_an_unfinished_policy(tmp_path: Path) -> None:
    make_site(tmp_path / "site", "st-vincent")
    site_file = tmp_path / "site" / "site.toml"
    assert len(open_site(site_file).policy.unfinished()) == 3
    done = CliRunner().invoke(app, ["steward", "--config", str(site_file)])
    assert isinstance(done.exception, ConfigErrors)
    assert "coordinators: empty" in str(done.exception)
    assert "base_digests: empty" in str(done.exception)


def start(folder: Path) -> tuple[subprocess.Popen[bytes], SiteConfig]:
    command = [sys.executable, "-c", "from client.cli import main; main()", "steward", "--config", "site.toml"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (folder / "steward.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stderr=log, stdout=log)
    config = read_site(folder / "site.toml")
    for _ in range(600):
        try:
            link_to_steward(config).health()
        except StewardUnavailable:
            assert process.poll() is None, (folder / "steward.log").read_text()
            time.sleep(0.1)
        else:
            return process, config
    raise AssertionError((folder / "steward.log").read_text())


def ask(config: SiteConfig, request: bytes) -> Any:
    return decode_reply(link_to_steward(config).answer(request))


def test_a_process_serves_stops_and_comes_back_after_being_killed(folder: Path) -> None:
    """Refusals are in the audit log once each; after SIGKILL log and ledger are whole and the socket is taken over."""
    site = open_site(folder / "site.toml")
    account = site.policy.account(site.config.collection, private=True)
    event = Event(relation="add_remove_one", noise_multiplier=2.0, sampling_rate=0.1)
    site.ledger.charge(account, run="ab" * 32, step=Step(0, 0), event=event)
    process, config = start(folder)
    try:
        assert ask(config, b"junk") == Refusal(code=RefusalCode.MALFORMED)
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        assert re.search(r"Max core file size +0 +0 ", limits)
        command = [sys.executable, "-c", "from client.cli import main; main()", "steward", "--config", "site.toml"]
        second = subprocess.run(
            command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
        )
        assert second.returncode == 2
        assert "runs already" in second.stderr
        process.kill()
        process.wait()
        process, config = start(folder)
        assert ask(config, b"junk again") == Refusal(code=RefusalCode.MALFORMED)
        found = site_status(site)
        assert isinstance(found.health, Health)
        assert found.refusals == {"malformed": 2}
        assert found.collections[0].contributions == 1
        assert 0 < found.collections[0].spent < found.collections[0].allowed
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
    verify_log(config.audit_log, site.identity.public)
    kinds = [entry.kind for entry in read_entries(config.audit_log)]
    assert kinds == ["started", "refused", "started", "refused", "stopped"]
    assert not config.service.socket.exists()


def test_status_shows_the_budget_without_a_steward(folder: Path) -> None:
    done = CliRunner().invoke(app, ["status", "--config", str(folder / "site.toml")])
    assert done.exit_code == 0, done.output
    assert "not running" in done.output
    assert "st-vincent/subject" in done.output
    assert COORDINATOR not in done.output


def test_a_picture_expires_where_its_day_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """East of Greenwich the day begins before UTC's, west of it UTC's comes first: the earlier end of use counts."""
    days = []
    for zone in ("Pacific/Kiritimati", "Etc/GMT+12", "UTC"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        days.append((today(), datetime.now(UTC).date(), datetime.now().astimezone().date()))
    monkeypatch.undo()
    time.tzset()
    assert all(day == max(utc, here) for day, utc, here in days)
    assert any(utc != here for _, utc, here in days)
