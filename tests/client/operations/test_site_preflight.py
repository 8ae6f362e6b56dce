"""A site that is in order, and every check made to fail in turn, and only that one."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import socket
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from typer.testing import CliRunner

from client.cli import app
from client.connection.endings import NOT_RESTARTED, UNFIT
from client.connection.handshake import CertificateRefused
from client.connection.supernode import request_to_join
from client.operations.new_site import make_site
from client.operations.preflight import Joining, connection_checks, steward_checks
from client.site.layout import SiteLayout
from client.site.settings import SiteConfig, read_site
from client.site.vault_access import open_vault
from client.steward.process import socket_place
from client.steward.socket import held
from common.adapter.model import Family, open_base
from common.crypto.identity_file import read_identity_file
from common.crypto.primitives import Identity
from common.errors import DarkroomError, ProvisioningError
from common.host.preflight import PreflightLimits, look_at
from common.provisioning import JoinFile, coordinator_fingerprint, sign_join_file
from common.wire.steward_link import Health
from server.run.checkpoint import package_versions
from tests.client.listeners import DAY, Certificates, certificates, listening
from tests.simulations.vault_sites import COORDINATOR, new_record, policy_text
from tests.tiny_base import write_tiny_base

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BUNDLE = b"a bundle"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "ash"
    make_site(folder, "ash")
    base = open_base(write_tiny_base(folder / "base", Family.SD1))
    own = read_identity_file(folder / "identity.key").public.hex()
    (folder / "policy.toml").write_text(policy_text(base.digest, [own]))
    request_to_join(SiteLayout(folder), name="ash", contact="it@ash.example")
    with open_vault(read_site(folder / "site.toml").vault, access="write") as vault:
        vault.add([new_record("ash", number) for number in range(4)])
    return folder


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path / "ash")
    return tmp_path / "ash"


def site_of(folder: Path, **limits: Any) -> SiteConfig:
    small = PreflightLimits(**{"free_disk_mib": 0, **limits})
    return msgspec.structs.replace(read_site(folder / "site.toml"), preflight=small, device="cpu")


def failures(site: SiteConfig) -> list[str]:
    return [each.name for each in look_at(steward_checks(site)) if not each.passed]


def test_a_site_that_is_in_order(folder: Path) -> None:
    findings = look_at(steward_checks(site_of(folder)))
    assert [each.got for each in findings if not each.passed] == []
    assert {"policy", "base", "memory", "vault", "disk", "Python", "Flower", "Darkroom"} <= {f.name for f in findings}


def _edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return edit


def _empty_vault(folder: Path) -> None:
    shutil.rmtree(folder / "vault")
    (folder / "vault.key").unlink()
    make_site(folder.parent / "other", "ash")
    shutil.copytree(folder.parent / "other" / "vault", folder / "vault")
    shutil.copy(folder.parent / "other" / "vault.key", folder / "vault.key")


def _other_key(folder: Path) -> None:
    (folder / "vault.key").write_text("0" * 64 + "\n")


BREAKS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "identity": (lambda folder: (folder / "identity.key").chmod(0o644), ["identity's file", "vault"]),
    "token": (lambda folder: (folder / "run/token").chmod(0o644), ["token's file"]),
    "vault key": (lambda folder: (folder / "vault.key").chmod(0o640), ["vault key's file", "vault"]),
    "policy": (_edit("policy.toml", "coordinators", "coordinator"), ["policy", "base"]),
    "no coordinator": (_edit("policy.toml", "coordinators = [", "coordinators = [] #"), ["policy"]),
    "no institution": (_edit("policy.toml", "institutions = [", "institutions = [] #"), ["policy"]),
    "other base": (_edit("policy.toml", "sha256:", "sha256:" + "0" * 8), ["policy", "base"]),
    "no base": (lambda folder: shutil.rmtree(folder / "base"), ["base", "memory"]),
    "damaged base": (_edit("base/unet/config.json", '"sample_size"', '"x"'), ["base", "memory"]),
    "another key": (_other_key, ["vault"]),
    "empty vault": (_empty_vault, ["vault"]),
    "no vault": (lambda folder: shutil.rmtree(folder / "vault"), ["vault"]),
}


@pytest.mark.parametrize("what", BREAKS)
def test_what_is_broken_fails_and_nothing_else(folder: Path, what: str) -> None:
    break_it, expected = BREAKS[what]
    break_it(folder)
    assert failures(site_of(folder)) == expected


def test_a_base_that_does_not_fit(folder: Path) -> None:
    assert failures(msgspec.structs.replace(site_of(folder), memory_limit_mib=1)) == ["memory"]


def test_what_the_running_steward_holds_is_no_reason_to_fail(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    health = Health(serving=True, model_loaded=True, policy_ok=True, busy=False, waiting=0)
    monkeypatch.setattr("client.operations.preflight.link_to_steward", lambda _: SimpleNamespace(health=lambda: health))
    site = msgspec.structs.replace(site_of(folder), memory_limit_mib=1)
    with held(socket_place(site.service)):
        assert failures(site) == []


def test_a_socket_that_somebody_else_has(folder: Path) -> None:
    site = site_of(folder)
    with held(socket_place(site.service)):
        assert failures(site) == ["steward's socket"]
    (folder / "run" / "steward.sock").write_text("x")
    assert failures(site) == ["steward's socket"]


def test_a_gpu_that_is_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert failures(msgspec.structs.replace(site_of(folder), device="cuda")) == ["memory"]


def test_a_full_disk(folder: Path) -> None:
    assert failures(site_of(folder, free_disk_mib=2**40)) == ["disk"]


@dataclass(frozen=True)
class Sent:
    joining: Joining
    shown: Certificates


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("coordinator"))


@pytest.fixture
def sent(folder: Path, shown: Certificates) -> Iterator[Sent]:
    with listening(shown) as address:
        yield Sent(_joining(folder, address, shown), shown)


def _joining(folder: Path, address: str, shown: Certificates) -> Joining:
    layout, versions = SiteLayout(folder), package_versions()
    bundle = folder.parent / "bundle.fab"
    bundle.write_bytes(BUNDLE)
    join = JoinFile(
        federation="Test",
        site="ash",
        identity=layout.identity_public_file.read_text().strip(),
        address=address,
        authority=shown.authority,
        coordinator=COORDINATOR.public.hex(),
        bundle=f"sha256:{hashlib.sha256(BUNDLE).hexdigest()}",
        darkroom=versions["darkroom"],
        flower=versions["flwr"],
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return Joining(layout=layout, join=join, bundle=bundle, port=port, limits=PreflightLimits(free_disk_mib=0))


def broken(joining: Joining) -> list[str]:
    return [each.name for each in look_at(connection_checks(joining)) if not each.passed]


def test_a_connection_that_is_in_order(sent: Sent) -> None:
    assert broken(sent.joining) == []


@pytest.mark.parametrize(
    ("field", "value", "name"),
    [("darkroom", "9.9", "Darkroom"), ("flower", "1.40.0", "Flower"), ("bundle", "sha256:" + "0" * 64, "bundle")],
)
def test_another_join_file_than_this_site_can_follow(sent: Sent, field: str, value: str, name: str) -> None:
    join = msgspec.structs.replace(sent.joining.join, **{field: value})
    assert broken(replace(sent.joining, join=join)) == [name]


def test_a_node_key_that_others_can_read_or_that_is_none(sent: Sent) -> None:
    key = sent.joining.layout.node_key_file
    key.chmod(0o644)
    assert broken(sent.joining) == ["node key's file"]
    key.chmod(0o600)
    key.write_text("no key")
    assert broken(sent.joining) == ["node key"]


def test_a_port_that_is_taken(sent: Sent) -> None:
    with socket.create_server(("127.0.0.1", sent.joining.port)):
        assert broken(sent.joining) == ["SuperNode's port"]


def test_nobody_answers(sent: Sent) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    join = msgspec.structs.replace(sent.joining.join, address=address)
    assert broken(replace(sent.joining, join=join)) == ["coordinator", "certificate", "clock"]


def test_a_clock_that_is_off(folder: Path, shown: Certificates) -> None:
    with listening(shown, ahead=45) as address:
        joining = _joining(folder, address, shown)
        assert broken(joining) == ["clock"]
        assert broken(replace(joining, limits=PreflightLimits(free_disk_mib=0, clock_skew_seconds=60))) == []


def test_a_certificate_that_ends_soon(folder: Path, tmp_path: Path) -> None:
    old = certificates(tmp_path / "old", issued=-390 * DAY)
    with listening(old) as address:
        assert broken(_joining(folder, address, old)) == ["certificate"]


def test_the_command_shows_a_table_and_says_it_with_its_exit_code(sent: Sent) -> None:
    layout, coordinator = sent.joining.layout, Identity.generate()
    join = msgspec.structs.replace(sent.joining.join, coordinator=coordinator.public.hex())
    path = layout.root / "join"
    path.write_bytes(sign_join_file(join, coordinator))
    _edit("site.toml", "[vault]", "[preflight]\nfree_disk_mib = 0\n\n[vault]")(layout.root)
    words = ["preflight", "--directory", str(layout.root), "--port", str(sent.joining.port)]
    words += ["--join-file", str(path), "--bundle", str(sent.joining.bundle)]
    words += ["--fingerprint", coordinator_fingerprint(coordinator.public)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "clock" in done.output
    os.chmod(layout.identity_file, 0o644)  # noqa: PTH101 - as a person would
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1
    assert "FAILED" in done.output
    assert CliRunner().invoke(app, [*words, "--connection-only"]).exit_code == 0


def test_half_of_the_joining_options_is_a_mistake(folder: Path) -> None:
    done = CliRunner().invoke(app, ["preflight", "--directory", str(folder), "--join-file", "x"])
    assert "together" in str(done.exception)


def join_words(folder: Path, joining: Joining) -> list[str]:
    coordinator = Identity.generate()
    join = msgspec.structs.replace(joining.join, coordinator=coordinator.public.hex())
    (folder / "join").write_bytes(sign_join_file(join, coordinator))
    words = ["join", str(folder / "join"), "--bundle", str(joining.bundle), "--directory", str(folder)]
    return [*words, "--fingerprint", coordinator_fingerprint(coordinator.public), "--allow-root"]


@pytest.mark.parametrize(("ahead", "word"), [(-120.0, "behind"), (120.0, "ahead")])
def test_join_refuses_a_clock_that_is_off(folder: Path, shown: Certificates, ahead: float, word: str) -> None:
    with listening(shown, ahead=ahead) as address:
        done = CliRunner().invoke(app, join_words(folder, _joining(folder, address, shown)))
    assert re.search(rf"clocks differ too much: the coordinator's is 1(19|20|21) s {word}", str(done.exception))
    assert not (folder / "supernode" / "flower").exists()  # nothing was installed


@pytest.mark.parametrize("readable", [True, False])
def test_whose_limits_were_used_is_told(
    folder: Path, shown: Certificates, monkeypatch: pytest.MonkeyPatch, *, readable: bool
) -> None:
    _edit("site.toml", "[vault]", "[preflight]\nclock_skew_seconds = 60\n\n[vault]")(folder)
    monkeypatch.setattr("client.site.settings.os", SimpleNamespace(access=lambda *_: readable, R_OK=os.R_OK))
    told = r"at most 60 s are allowed, as \[preflight\] in .*site.toml says"
    if not readable:
        told = "at most 30 s are allowed, the default, for this user cannot read .*site.toml"
    with listening(shown, ahead=120) as address:
        joining = _joining(folder, address, shown)
        done = CliRunner().invoke(app, [*join_words(folder, joining), "--steward", "x"])
        assert re.search(told, str(done.exception))
        words = ["preflight", *join_words(folder, joining)[1:-1], "--connection-only", "--join-file"]
        looked = CliRunner().invoke(app, [*words[:1], *words[2:], words[1]])
    assert ("as [preflight] in" in looked.output) == readable
    assert ("the default, for this user cannot read" in looked.output) != readable
    assert f"within {60 if readable else 30}" in " ".join(looked.output.split())


def test_join_refuses_a_certificate_that_has_expired(folder: Path, tmp_path: Path) -> None:
    old = certificates(tmp_path / "old", issued=-400 * DAY)
    with listening(old) as address:
        done = CliRunner().invoke(app, join_words(folder, _joining(folder, address, old)))
    assert "has expired" in str(done.exception)
    assert not (folder / "supernode" / "flower").exists()


def test_join_forgets_the_vaults_passphrase_before_it_starts_anything(
    folder: Path, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    _edit("site.toml", 'key_file = "vault.key"', 'passphrase_env = "VAULT_WORDS"')(folder)
    monkeypatch.setenv("VAULT_WORDS", "seven random words on paper")
    monkeypatch.setattr("client.connection.supernode.SuperNode.is_installed", lambda *_: True)
    seen: list[str | None] = []

    class Watched:
        def __init__(self, *_: object) -> None:
            seen.append(os.environ.get("VAULT_WORDS"))
            raise KeyboardInterrupt

    monkeypatch.setattr("client.commands.joining.Supervisor", Watched)
    monkeypatch.setattr("client.commands.joining.end_in_order", lambda: None)
    for more in ([], ["--steward", "elsewhere"]):
        monkeypatch.setenv("VAULT_WORDS", "seven random words on paper")
        CliRunner().invoke(app, [*join_words(folder, sent.joining), *more])
    assert seen == [None, None]


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def ended(words: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Join without starting anything."""
    monkeypatch.setattr("client.connection.supernode.SuperNode.is_installed", lambda *_: True)

    def start(*_: object) -> None:
        raise AssertionError("it was started")

    monkeypatch.setattr("client.commands.joining.Supervisor", start)
    return CliRunner().invoke(app, words)


def test_a_port_that_is_taken_is_told_before_anything_starts(
    folder: Path,
    shown: Certificates,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with listening(shown) as address, socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = ended([*join_words(folder, _joining(folder, address, shown)), "--port", str(port)], monkeypatch)
    assert isinstance(done.exception, ProvisioningError), done.output
    assert f"127.0.0.1:{port}" in str(done.exception)
    assert "--port" in str(done.exception)
    assert "takes part" not in done.output


def test_a_second_join_of_a_site_is_told_so(folder: Path, shown: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = SiteLayout(folder)
    layout.join_lock.parent.mkdir(exist_ok=True)
    with layout.join_lock.open("w") as file, listening(shown) as address:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = ended(join_words(folder, _joining(folder, address, shown)), monkeypatch)
    assert "runs already" in str(done.exception)


def test_a_steward_that_is_not_there_is_told_of(
    folder: Path,
    shown: Certificates,
    monkeypatch: pytest.MonkeyPatch,
    free_port: int,
) -> None:
    with listening(shown) as address:
        words = [*join_words(folder, _joining(folder, address, shown)), "--port", str(free_port)]
        done = ended(words, monkeypatch)
    assert "the steward is missing" in done.output
    assert isinstance(done.exception, AssertionError), "a steward may also be started later"


def test_what_a_restart_does_not_mend_ends_with_a_code_that_units_do_not_restart(
    folder: Path,
    tmp_path: Path,
    shown: Certificates,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old = certificates(tmp_path / "old", issued=-400 * DAY)
    with listening(old) as address:
        expired = ended(join_words(folder, _joining(folder, address, old)), monkeypatch)
    assert isinstance(expired.exception, CertificateRefused)
    with listening(shown) as address:
        words = join_words(folder, _joining(folder, address, shown))
        wrong = ended([*words[:-2], "00000 " * 6, *words[-1:]], monkeypatch)
    for done in (expired, wrong):
        assert isinstance(done.exception, DarkroomError)
        assert done.exception.exit_code == UNFIT
        assert done.exception.exit_code in NOT_RESTARTED


def test_what_may_pass_is_started_again(folder: Path, shown: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(shown, ahead=600) as address:
        done = ended(join_words(folder, _joining(folder, address, shown)), monkeypatch)
    assert isinstance(done.exception, DarkroomError)
    assert done.exception.exit_code not in NOT_RESTARTED
