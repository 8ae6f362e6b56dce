"""The coordinator's unit, read back as systemd reads it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from common.errors import ConfigError
from common.host.systemd import Installation, write_service_files
from server.federation.directory import FederationConfig, FederationDirectory
from server.federation.systemd import CoordinatorService
from tests.common.service_files import SYSTEMD, exposure, parsed, systemd_faults

CONFIG = FederationConfig(name="Test", address="darkroom.example:8443")


def service(tmp_path: Path, config: FederationConfig = CONFIG, root: str = "/srv/federation") -> CoordinatorService:
    program = tmp_path / "darkroom-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return CoordinatorService(
        directory=FederationDirectory(Path(root)),
        config=config,
        user="darkroom-coordinator",
        installation=Installation(programs=tmp_path, prefix=tmp_path),
    )


def settings(tmp_path: Path, **changes: str) -> dict[str, list[str]]:
    return parsed(service(tmp_path, msgspec.structs.replace(CONFIG, **changes)).service_file().text())["Service"]


def test_it_writes_to_its_own_directory_alone(tmp_path: Path) -> None:
    found = settings(tmp_path)
    assert (found["ProtectSystem"], found["ReadWritePaths"]) == (["strict"], ["/srv/federation"])
    assert (found["MemoryDenyWriteExecute"], found["PrivateDevices"]) == (["yes"], ["yes"])
    assert (found["CapabilityBoundingSet"], found["AmbientCapabilities"]) == ([""], [""])


def test_a_low_port_needs_one_capability_and_gets_one(tmp_path: Path) -> None:
    found = settings(tmp_path, address="darkroom.example:443")
    assert found["CapabilityBoundingSet"] == found["AmbientCapabilities"] == ["CAP_NET_BIND_SERVICE"]


def test_behind_nginx_it_speaks_to_loopback_alone(tmp_path: Path) -> None:
    found = settings(tmp_path, address="darkroom.example:443", front="nginx")
    assert (found["IPAddressDeny"], found["IPAddressAllow"]) == (["any"], ["localhost"])
    assert found["CapabilityBoundingSet"] == [""]


def test_a_directory_in_a_home_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="home directory"):
        service(tmp_path, root="/home/me/federation")


@pytest.mark.skipif(SYSTEMD is None, reason="systemd is not installed")
@pytest.mark.parametrize("address", ["darkroom.example:8443", "darkroom.example:443"])
def test_systemd_has_nothing_to_say_against_it(tmp_path: Path, address: str) -> None:
    unit = service(tmp_path, msgspec.structs.replace(CONFIG, address=address)).service_file()
    (path,) = write_service_files([unit], tmp_path / "units")
    assert systemd_faults(path) == ""
    assert exposure(path) < 2.5
