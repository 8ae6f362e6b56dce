"""A site's services: read back as systemd reads them, and looked at by systemd itself where it is installed."""

from __future__ import annotations

import re
import shlex
import stat
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from client.operations.systemd import SiteServices, Users
from client.site.layout import SiteLayout
from client.site.settings import ServiceConfig, SiteConfig, TcpConfig, VaultConfig
from common.errors import ConfigError
from common.host.systemd import Installation, argument, write_service_files
from tests.common.service_files import SYSTEMD, exposure, parsed, systemd_faults

FINGERPRINT = "12345 67890 12345 67890 12345 67890"


def site_config(root: str = "/srv/darkroom/ash", **changes: Any) -> SiteConfig:
    config = SiteConfig(
        name="ash",
        collection="ash/subject",
        base=Path("/srv/base"),
        identity=Path(f"{root}/identity.key"),
        policy=Path(f"{root}/policy.toml"),
        ledger=Path(f"{root}/ledger.sqlite"),
        audit_log=Path(f"{root}/audit.log"),
        approvals=Path(f"{root}/approvals"),
        releases=Path(f"{root}/releases"),
        device="cpu",
        vault=VaultConfig(directory=Path(f"{root}/vault"), key_file=Path(f"{root}/vault.key")),
        service=ServiceConfig(
            socket=Path(f"{root}/run/steward.sock"), token=Path(f"{root}/run/token"), group="darkroom"
        ),
    )
    return msgspec.structs.replace(config, **changes)


def services(tmp_path: Path, site: SiteConfig | None = None, root: str = "/srv/darkroom/ash") -> SiteServices:
    programs = tmp_path / "bin"
    programs.mkdir(exist_ok=True)
    program = programs / "darkroom-client"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return SiteServices(
        layout=SiteLayout(Path(root)),
        site=site or site_config(root),
        users=Users(),
        installation=Installation(programs=programs, prefix=programs),
        fingerprint=FINGERPRINT,
        port=9094,
    )


def settings(tmp_path: Path, which: int, site: SiteConfig | None = None) -> dict[str, list[str]]:
    return parsed(services(tmp_path, site).service_files()[which].text())["Service"]


def test_the_two_run_as_two_users_with_nothing_to_gain(tmp_path: Path) -> None:
    steward, supernode = settings(tmp_path, 0), settings(tmp_path, 1)
    assert steward["User"] != supernode["User"]
    for each in (steward, supernode):
        assert each["NoNewPrivileges"] == ["yes"]
        assert each["ProtectSystem"] == ["strict"]
        assert each["ProtectHome"] == ["yes"]
        assert each["PrivateTmp"] == ["yes"]
        assert each["CapabilityBoundingSet"] == [""]
        assert each["LimitCORE"] == ["0"]
        assert each["SystemCallFilter"][:2] == ["@system-service", "~@privileged @obsolete"]
        assert each["PrivateDevices"] == ["yes"]
        assert each["SupplementaryGroups"] == ["darkroom"]


def test_what_a_restart_does_not_mend_is_not_started_again(tmp_path: Path) -> None:
    for which in (0, 1):
        found = settings(tmp_path, which)
        assert found["Restart"] == ["always"]
        assert found["RestartPreventExitStatus"] == ["77 78"]
        assert found["SuccessExitStatus"] == ["130 143"], "told to end, by hand or by systemd"


def test_a_steward_on_a_unix_socket_has_no_network(tmp_path: Path) -> None:
    found = settings(tmp_path, 0)
    assert found["PrivateNetwork"] == ["yes"]
    assert found["RestrictAddressFamilies"] == ["AF_UNIX"]
    assert found["IPAddressDeny"] == ["any"]


def test_a_steward_with_a_tcp_door_has_network_and_all_else(tmp_path: Path) -> None:
    tcp = TcpConfig(address="10.0.0.5:9443", certificate=Path("/c"), key=Path("/k"), client_authority=Path("/a"))
    site = site_config()
    found = settings(tmp_path, 0, site_config(service=msgspec.structs.replace(site.service, tcp=tcp)))
    assert "PrivateNetwork" not in found
    assert "AF_INET" in found["RestrictAddressFamilies"][0]
    assert found["ProtectSystem"] == ["strict"]


def test_a_steward_gets_a_gpu_and_no_other_device_unless_it_computes_on_the_cpu(tmp_path: Path) -> None:
    found = settings(tmp_path, 0, site_config(device="auto"))
    assert (found["DevicePolicy"], found["DeviceAllow"]) == (["closed"], ["char-nvidia* rw"])
    assert "PrivateDevices" not in found


def test_torch_alone_may_make_new_code(tmp_path: Path) -> None:
    assert "MemoryDenyWriteExecute" not in settings(tmp_path, 0)
    assert settings(tmp_path, 1)["MemoryDenyWriteExecute"] == ["yes"]


def test_the_supernode_does_not_see_what_is_the_stewards(tmp_path: Path) -> None:
    found, root = settings(tmp_path, 1), "/srv/darkroom/ash"
    names = ("site.toml", "identity.key", "policy.toml", "audit.log", "approvals", "releases", "vault", "vault.key")
    names += ("receipts", *(f"ledger.sqlite{end}" for end in ("", "-wal", "-shm", "-journal")))
    assert set(found["InaccessiblePaths"]) == {f"-{root}/{name}" for name in names} | {"-/srv/base"}
    assert found["ReadWritePaths"] == [f"{root}/supernode/logs"]
    assert settings(tmp_path, 0)["InaccessiblePaths"] == [f"-{root}/supernode"]


ELSEWHERE = {
    "ledger": Path("/data/books/ledger.sqlite"),
    "audit_log": Path("/data/log/audit.log"),
    "approvals": Path("/data/approvals"),
}


def elsewhere() -> SiteConfig:
    """Nearly all of it outside the site's folder."""
    vault = VaultConfig(directory=Path("/data/vault"), passphrase_file=Path("/keys/words"))
    tcp = TcpConfig(
        address="10.0.0.5:9443", certificate=Path("/tls/c"), key=Path("/tls/k"), client_authority=Path("/tls/a")
    )
    service = ServiceConfig(socket=Path("/data/run/s.sock"), token=Path("/data/token/t"), group="darkroom", tcp=tcp)
    return site_config(
        vault=vault, service=service, identity=Path("/keys/identity"), releases=Path("/data/releases"), **ELSEWHERE
    )


def test_what_lies_outside_the_sites_folder_is_written_by_the_steward_and_hidden_from_the_supernode(
    tmp_path: Path,
) -> None:
    site = elsewhere()
    assert settings(tmp_path, 0, site)["ReadWritePaths"] == [
        *("/srv/darkroom/ash", "/data/vault", "/data/approvals", "/data/releases"),
        *("/data/books", "/data/log", "/data/run"),
    ]
    hidden = settings(tmp_path, 1, site)["InaccessiblePaths"]
    secrets = ("/keys/identity", "/keys/words", "/tls/k", "/data/vault", "/data/receipts", "/data/releases")
    assert {f"-{path}" for path in (*secrets, *ELSEWHERE.values(), "/data/books/ledger.sqlite-wal")} <= set(hidden)
    assert "-/srv/darkroom/ash/site.toml" in hidden


def test_what_lies_outside_the_sites_folder_is_given_to_the_steward(tmp_path: Path) -> None:
    steps = list(services(tmp_path, elsewhere()).steps(files=tmp_path, join_file=tmp_path, bundle=tmp_path))
    for path in ("/data/vault", "/data/approvals", "/data/releases"):
        assert f"install -d -m 700 {path}; chown -R darkroom-steward: {path}" in steps
    for path in ("/keys/identity", "/keys/words", "/tls/k", "/data/token/t", *list(ELSEWHERE.values())[:2]):
        assert f"chown -h darkroom-steward: {path}" in steps
    (doors,) = (step for step in steps if step.startswith("chgrp"))
    assert (
        doors == "chgrp darkroom /srv/darkroom/ash /data/token/t; chmod 710 /srv/darkroom/ash; chmod 640 /data/token/t"
    )
    for path in ("/data/books", "/data/log", "/data/run"):  # which may be others', too
        assert [step for step in steps if f" test -w {path} ||" in step]
        assert not [step for step in steps if re.search(rf"ch(own|mod|grp).* {path}(;| |$)", step)]


@pytest.mark.parametrize(
    "changes",
    [
        {"identity": Path("/home/me/identity")},
        {"ledger": Path("/home/me/ledger")},
        {"releases": Path("/home/me/releases")},
        {"vault": VaultConfig(directory=Path("/home/me/vault"), key_file=Path("/k"))},
        {"vault": VaultConfig(directory=Path("/v"), key_file=Path("/home/me/k"))},
        {"vault": VaultConfig(directory=Path("/v"), passphrase_file=Path("/home/me/w"))},
        {"service": ServiceConfig(socket=Path("/run/user/1/s"), token=Path("/t"), group="g")},
        {
            "service": ServiceConfig(
                group="g",
                tcp=TcpConfig(
                    address="a:1", certificate=Path("/c"), key=Path("/home/me/k"), client_authority=Path("/a")
                ),
            )
        },
    ],
)
def test_no_part_of_a_site_is_in_a_home_directory(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="is in a home directory"):
        services(tmp_path, site_config(**changes))


def test_what_the_supernode_needs_is_not_in_what_is_hidden_from_it(tmp_path: Path) -> None:
    for changes in ({"approvals": Path("/srv/darkroom/ash")}, {"releases": Path("/srv/darkroom/ash/run")}):
        with pytest.raises(ConfigError, match="the SuperNode needs"):
            services(tmp_path, site_config(**changes))


def test_a_place_beside_the_sites_folder_is_outside_of_it(tmp_path: Path) -> None:
    site = site_config(releases=Path("/srv/darkroom/ash/../releases"))
    assert "/srv/darkroom/releases" in settings(tmp_path, 0, site)["ReadWritePaths"]
    assert "-/srv/darkroom/releases" in settings(tmp_path, 1, site)["InaccessiblePaths"]


@pytest.mark.parametrize("ledger", ["/ledger", "/usr/ledger", "/run/ledger", "{tmp_path}/ledger"])
def test_a_steward_is_not_let_write_where_programs_are(tmp_path: Path, ledger: str) -> None:
    with pytest.raises(ConfigError, match="folder of their own"):
        services(tmp_path, site_config(ledger=Path(ledger.format(tmp_path=tmp_path))))


def test_root_takes_links_away_before_it_changes_anything_in_the_supernodes_folder(tmp_path: Path) -> None:
    layout = SiteLayout(tmp_path / "site")
    (layout.supernode / "flower").mkdir(parents=True)
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o755)
    for name in ("logs", "node.key", "flower/apps"):
        (layout.supernode / name).symlink_to(victim)
    steps = list(services(tmp_path, root=str(layout.root)).steps(files=tmp_path, join_file=tmp_path, bundle=tmp_path))
    (take,) = (step for step in steps if step.startswith("chown -R root:"))
    assert take.split("; ")[0].endswith("supernode")  # -R without -L or -H changes links themselves
    subprocess.run(["sh", "-ec", take.split("; ", 1)[1]], check=True)
    assert not [path for path in layout.supernode.rglob("*") if path.is_symlink()]
    assert stat.S_IMODE(victim.stat().st_mode) == 0o755
    following = steps[steps.index(take) + 1 :]
    assert following[0].startswith("install -d -m 700")
    assert all("install -T " in step for step in following[1:3])  # -T: a folder there is no target to write into


def test_a_passphrase_from_the_environment_comes_from_a_file_of_roots(tmp_path: Path) -> None:
    vault = VaultConfig(directory=Path("/srv/vault"), passphrase_env="DARKROOM_PASSPHRASE")  # noqa: S106 - a name
    assert settings(tmp_path, 0, site_config(vault=vault))["EnvironmentFile"] == ["/etc/darkroom/steward.env"]


def test_command_lines_are_read_back_word_for_word(tmp_path: Path) -> None:
    service = services(tmp_path).service_files()[1]
    (line,) = parsed(service.text())["Service"]["ExecStart"]
    assert tuple(shlex.split(line)) == service.arguments
    assert FINGERPRINT in service.arguments
    assert (
        'steward="unix:///srv/darkroom/ash/run/steward.sock" token="/srv/darkroom/ash/run/token"' in service.arguments
    )


@pytest.mark.parametrize(
    ("word", "written"),
    [("plain", "plain"), ("", '""'), ("a b", '"a b"'), ("100%", "100%%"), ("$HOME", '"$$HOME"'), ('q"', '"q\\""')],
)
def test_a_word_is_free_of_systemds_own_signs(word: str, written: str) -> None:
    assert argument(word) == written


@pytest.mark.parametrize("word", ["a\nExecStartPre=/bin/sh", "a\x00", "\x7f"])
def test_a_word_cannot_begin_another_setting(word: str) -> None:
    with pytest.raises(ConfigError, match="control characters"):
        argument(word)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"service": ServiceConfig(socket=Path("/s"), token=Path("/t"))}, "service.group"),
        ({"vault": VaultConfig(keyring="x")}, "no session"),
        ({"base": Path("/home/me/base")}, "/home/me/base: is in a home directory"),
    ],
)
def test_a_site_that_cannot_run_so_is_told_why(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        services(tmp_path, site_config(**changes))


def test_an_administrators_steps_are_shell_that_parses_and_leaves_the_bundle_to_root(tmp_path: Path) -> None:
    made = services(tmp_path, root="/srv/our site/ash")
    steps = list(made.steps(files=tmp_path / "u", join_file=tmp_path / "it's.join", bundle=tmp_path / "b.fab"))
    for step in steps:
        assert shlex.split(step)
    texts = "\n".join(steps)
    assert "'/srv/our site/ash'" in texts
    order = [
        next(i for i, step in enumerate(steps) if words in step)
        for words in ("chown -R root:darkroom-supernode", " install ")
    ]
    assert order == sorted(order)  # what root installs afterwards stays root's
    assert steps[-1].startswith("systemctl enable --now")


@pytest.mark.skipif(SYSTEMD is None, reason="systemd is not installed")
@pytest.mark.parametrize("root", ["/srv/darkroom/ash", "/srv/our site/ash"])
def test_systemd_has_nothing_to_say_against_them(tmp_path: Path, root: str) -> None:
    paths = write_service_files(services(tmp_path, root=root).service_files(), tmp_path / "units")
    assert [path.name for path in paths] == ["darkroom-steward.service", "darkroom-supernode.service"]
    for path in paths:
        assert systemd_faults(path) == ""
        assert exposure(path) < 2.0
