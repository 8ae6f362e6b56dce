"""Certificates for the public listener that another authority issued, read and checked before they are kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from common.crypto.certificate_checks import MAX_AUTHORITY_BYTES, check_server_certificate, check_server_key
from common.errors import ProvisioningError
from common.provisioning import read_small_file

if TYPE_CHECKING:
    import datetime as dt
    from pathlib import Path

    from server.federation.federation_config import FederationConfig


@dataclass(frozen=True, kw_only=True)
class ServerFiles:
    """Where they are: PEM, the key without a passphrase."""

    authority: Path
    """One root certificate, which the join files carry to the sites."""
    certificate: Path
    """The server's, then whatever stands between it and the root."""
    key: Path


@dataclass(frozen=True, kw_only=True)
class ServerContent:
    """What was in them."""

    authority: bytes
    certificate: bytes
    key: bytes = field(repr=False)


def read_server_files(files: ServerFiles, config: FederationConfig, *, now: dt.datetime) -> ServerContent:
    """Read and check them.

    Raises:
        ProvisioningError: Unreadable, out of their time, for another address, from another authority, or another key.

    """
    authority, certificate = read_small_file(files.authority), read_small_file(files.certificate)
    if len(authority) > MAX_AUTHORITY_BYTES:
        raise ProvisioningError(f"{files.authority}: wanted one root certificate; this is a collection of them")
    check_server_certificate(certificate, authority=authority, hosts=config.hosts[:1], now=now)
    check_server_key(certificate, files.key)
    return ServerContent(authority=authority, certificate=certificate, key=read_small_file(files.key))
