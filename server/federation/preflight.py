"""What a coordinator looks at before ``up``."""

from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

from common.crypto.certificates import check_server_certificate, check_server_key
from common.host.flower_commands import program
from common.host.preflight import Check, NotAsWanted, disk_check, port_check, private_file_check, version_checks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server.federation.directory import FederationConfig, FederationDirectory

_PROGRAMS: Final = ("flower-superlink", "flower-superexec", "flwr")


def federation_checks(directory: FederationDirectory, config: FederationConfig) -> Iterator[Check]:
    """Everything that ``up`` needs; a federation that is up already fails on its ports."""
    yield from version_checks()
    yield Check(
        name="programs", wanted=", ".join(_PROGRAMS), remedy="install Darkroom again in this Python", look=_programs
    )
    for path, what in directory.private_files():
        yield private_file_check(path, what)
    yield from _certificate_checks(directory, config)
    yield Check(
        name="roster",
        wanted="readable",
        remedy=f"mend {directory.roster_file}, or take it from a backup",
        look=lambda: f"{len(directory.roster().approved())} sites approved",
    )
    yield Check(
        name="bundle",
        wanted="the bundle whose digest every join file names",
        remedy="run darkroom-server approve again with one bundle for all, and send sites their new join files",
        look=lambda: _bundle(directory),
    )
    if config.front == "embedded":
        yield port_check("public port", config.listen, config.public_port, "address in federation.toml")
    yield port_check("SuperLink's port", "127.0.0.1", config.superlink_port, "superlink_port in federation.toml")
    yield Check(
        name="address",
        wanted="a name that can be looked up",
        remedy="have the name entered in the DNS, or give sites an address that is",
        look=lambda: _looked_up(config.hosts[0]),
    )
    yield disk_check(directory.root, config.preflight)


def _certificate_checks(directory: FederationDirectory, config: FederationConfig) -> Iterator[Check]:
    public = directory.public
    days = config.preflight.certificate_days
    yield Check(
        name="certificate",
        wanted=f"for {config.hosts[0]}, from the authority in the join files, {days} days more",
        remedy="darkroom-server renew, then restart up",
        look=lambda: _certificate(directory, config),
    )
    yield Check(
        name="certificate's key",
        wanted="the key of that certificate",
        remedy="darkroom-server renew with the right --server-key",
        look=lambda: _key(public.certificate, public.key),
    )


def _programs() -> str:
    missing = [name for name in _PROGRAMS if not Path(program(name)).is_file()]
    if missing:
        raise NotAsWanted(f"not beside this Python: {', '.join(missing)}")
    return "there"


def _certificate(directory: FederationDirectory, config: FederationConfig) -> str:
    public, now = directory.public, dt.datetime.now(dt.UTC)
    chain, authority = public.certificate.read_bytes(), public.authority.read_bytes()
    ends = check_server_certificate(chain, authority=authority, hosts=config.hosts[:1], now=now)
    if (days := (ends - now).days) < config.preflight.certificate_days:
        raise NotAsWanted(f"{days} days")
    return f"valid for {days} days"


def _key(certificate: Path, key: Path) -> str:
    check_server_key(certificate.read_bytes(), key)
    return "it is"


def _bundle(directory: FederationDirectory) -> str:
    approved = directory.roster().approved()
    if not approved:
        return "none yet: it comes with the first site's approval"
    got = f"sha256:{hashlib.sha256((directory.root / 'bundle.fab').read_bytes()).hexdigest()}"
    for site in approved:
        if (named := directory.join_file(site.name).bundle) != got:
            raise NotAsWanted(f"{got}; the join file of {site.name} names {named}")
    return got


def _looked_up(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass  # a name
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise NotAsWanted(f"{host}: {error.strerror}") from error
    return ", ".join(sorted({str(entry[4][0]) for entry in found}))
