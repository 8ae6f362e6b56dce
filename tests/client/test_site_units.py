"""A site's units: read back as systemd reads them, and looked at by systemd itself where it is installed."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import msgspec
import pytest

from client.site import ServiceConfig, SiteConfig, TcpConfig, VaultConfig
from client.site_layout import SiteLayout
from client.units import SiteServices, Users
from common.errors import ConfigError
from common.units import Installation, argument, write_units
from tests.common.unit_files import SYSTEMD, exposure, parsed, systemd_faults

FINGERPRINT = "12345 67890 12345 67890 12345 67890"


def site_config(root: str = "/srv/darkroom/ash", **changes: Any) -> SiteConfig:
    config = SiteConfig(
        name="ash",
        population="ash/subject",
        base="/srv/base",
        identity=f"{root}/identity.key",
        policy=f"{root}/policy.toml",
        ledger=f"{root}/ledger.sqlite",
        audit_log=f"{root}/audit.log",
        approvals=f"{root}/approvals",
        device="cpu",
        vault=VaultConfig(directory=f"{root}/vault", key_file=f"{root}/vault.key"),
        service=ServiceConfig(socket=f"{root}/run/steward.sock", token=f"{root}/run/token", group="darkroom"),
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
    return parsed(services(tmp_path, site).units()[which].text())["Service"]


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


def test_a_steward_on_a_unix_socket_has_no_network(tmp_path: Path) -> None:
    found = settings(tmp_path, 0)
    assert found["PrivateNetwork"] == ["yes"]
    assert found["RestrictAddressFamilies"] == ["AF_UNIX"]
    assert found["IPAddressDeny"] == ["any"]


def test_a_steward_with_a_tcp_door_has_network_and_all_else(tmp_path: Path) -> None:
    tcp = TcpConfig(address="10.0.0.5:9443", certificate="/c", key="/k", client_authority="/a")
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
    names = ("identity.key", "policy.toml", "ledger.sqlite", "audit.log", "approvals", "vault", "vault.key")
    assert set(found["InaccessiblePaths"]) == {f"-{root}/{name}" for name in names} | {"-/srv/base"}
    assert found["ReadWritePaths"] == [f"{root}/supernode/logs"]
    assert settings(tmp_path, 0)["InaccessiblePaths"] == [f"-{root}/supernode"]


def test_a_passphrase_from_the_environment_comes_from_a_file_of_roots(tmp_path: Path) -> None:
    vault = VaultConfig(directory="/srv/vault", passphrase_env="DARKROOM_PASSPHRASE")  # noqa: S106 - a name
    assert settings(tmp_path, 0, site_config(vault=vault))["EnvironmentFile"] == ["/etc/darkroom/steward.env"]


def test_command_lines_are_read_back_word_for_word(tmp_path: Path) -> None:
    unit = services(tmp_path).units()[1]
    (line,) = parsed(unit.text())["Service"]["ExecStart"]
    assert tuple(shlex.split(line)) == unit.arguments
    assert FINGERPRINT in unit.arguments
    assert 'steward="unix:///srv/darkroom/ash/run/steward.sock" token="/srv/darkroom/ash/run/token"' in unit.arguments


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
        ({"service": ServiceConfig(socket="/s", token="/t")}, "service.group"),  # noqa: S106 - a path
        ({"vault": VaultConfig(keyring="x")}, "no session"),
        ({"base": "/home/me/base"}, "/home/me/base: is in a home directory"),
    ],
)
def test_a_site_that_cannot_run_so_is_told_why(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        services(tmp_path, site_config(**changes))


def test_an_administrators_steps_are_shell_that_parses_and_leaves_the_bundle_to_root(tmp_path: Path) -> None:
    made = services(tmp_path, root="/srv/our site/ash")
    steps = list(made.steps(units=tmp_path / "u", join_file=tmp_path / "it's.join", bundle=tmp_path / "b.fab"))
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
    paths = write_units(services(tmp_path, root=root).units(), tmp_path / "units")
    assert [path.name for path in paths] == ["darkroom-steward.service", "darkroom-supernode.service"]
    for path in paths:
        assert systemd_faults(path) == ""
        assert exposure(path) < 2.0
