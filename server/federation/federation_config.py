"""``federation.toml``: where a coordinator listens."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Annotated, Final, Literal

from msgspec import Meta

from common.config import Config
from common.host.preflight import PreflightLimits
from common.provisioning import Address, is_reachable

if TYPE_CHECKING:
    from collections.abc import Iterator

Port = Annotated[int, Meta(ge=1, le=65535)]
_LOOPBACK: Final = ("127.0.0.1", "localhost")
"""In every server certificate: the public listener speaks TLS to the SuperLink, too."""


class FederationConfig(Config, frozen=True, kw_only=True):
    """``federation.toml``."""

    name: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=54,
            pattern=r"^[A-Za-z0-9 ._-]+\Z",
            description="1 to 54 letters, digits, spaces, dots, hyphens and underscores",
        ),
    ]
    address: Address
    """What sites connect to, host:port."""
    listen: str = "0.0.0.0"  # noqa: S104 - the public listener, which passes the Fleet API alone
    superlink_port: Port = 18000
    """On loopback only."""
    maximum_body_mib: Annotated[int, Meta(ge=1, le=1024)] = 64
    """Of one request; Flower sends a vector in pieces."""
    front: Literal["embedded", "nginx"] = "embedded"
    """Who listens on :attr:`address`: ``up`` itself, or an nginx configured by ``darkroom-server nginx``."""
    preflight: PreflightLimits = PreflightLimits()

    @property
    def public_port(self) -> int:
        """Port of :attr:`address`."""
        return int(self.address.rpartition(":")[2])

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names and addresses of the server certificate."""
        return (self.address.rpartition(":")[0].strip("[]"), *_LOOPBACK)

    def faults(self) -> Iterator[str]:
        """Rules that types cannot say."""
        if not is_reachable(self.address):
            yield f"address: {self.address!r} has no host's name or address, or no port between 1 and 65535"
        if self.public_port == self.superlink_port:
            yield "superlink_port: wanted another than the public one"
        try:
            ipaddress.ip_address(self.listen)
        except ValueError:
            yield f"listen: wanted an address of this machine, got {self.listen!r}"
