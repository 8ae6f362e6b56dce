"""A coordinator's directory: authority, certificate, identity, roster and join files of one federation."""

from __future__ import annotations

import ipaddress
import os
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
from msgspec import Meta

from common.certificates import check_node_key, create_authority, issue_server_certificate
from common.config import Config, Digest
from common.errors import ProvisioningError
from common.identity_file import create_identity_file, read_identity_file
from common.manifest import InstitutionName, Member, PublicKeyHex
from common.provisioning import Address, Contact, JoinFile, SiteRequest, sign_join_file
from common.toml_config import parse_config, read_toml
from server.files import write_atomically

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from common.crypto import Identity

Port = Annotated[int, Meta(ge=1, le=65535)]
_LOOPBACK: Final = ("127.0.0.1", "localhost")
"""In every server certificate: the public listener speaks TLS to the SuperLink, too."""


class FederationConfig(Config, frozen=True, kw_only=True):
    """``federation.toml``."""

    name: Annotated[str, Meta(min_length=1, max_length=54, pattern=r"^[A-Za-z0-9 ._-]+$")]
    address: Address
    """What sites connect to, host:port."""
    listen: str = "0.0.0.0"  # noqa: S104 - the public listener, which passes the Fleet API alone
    superlink_port: Port = 18000
    """On loopback only."""
    maximum_body_mib: Annotated[int, Meta(ge=1, le=1024)] = 64
    """Of one request; Flower sends a vector in pieces."""

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
        if not 1 <= self.public_port <= 65535:
            yield f"address: {self.address} has no port between 1 and 65535"
        if self.public_port == self.superlink_port:
            yield "superlink_port: wanted another than the public one"
        try:
            ipaddress.ip_address(self.listen)
        except ValueError:
            yield f"listen: wanted an address of this machine, got {self.listen!r}"


class Site(Config, frozen=True, kw_only=True):
    """One line of the roster."""

    name: InstitutionName
    contact: Contact
    identity: PublicKeyHex
    node_key: Annotated[str, Meta(max_length=400)]
    status: Literal["approved", "revoked"] = "approved"


class Roster(Config, frozen=True, kw_only=True):
    """``roster.toml``: every site that was ever approved."""

    site: tuple[Site, ...] = ()

    def faults(self) -> Iterator[str]:
        """Rules that types cannot say."""
        for what in ("name", "identity", "node_key"):
            values = [getattr(site, what) for site in self.site]
            if len(set(values)) < len(values):
                yield f"site: two sites share one {what}"
        for site in self.site:
            try:
                check_node_key(site.node_key)
            except ProvisioningError as error:
                yield f"{site.name}: {error}"

    def approved(self) -> tuple[Site, ...]:
        """Those that may take part, sorted by name."""
        return tuple(sorted((site for site in self.site if site.status == "approved"), key=lambda site: site.name))

    def members(self) -> tuple[Member, ...]:
        """A manifest's roster."""
        return tuple(Member(name=site.name, key=site.identity) for site in self.approved())


@dataclass(frozen=True, slots=True)
class FederationDirectory:
    """Where everything of one federation lies; keys are readable by their owner alone."""

    root: Path

    @property
    def config_file(self) -> Path:
        """Settings."""
        return self.root / "federation.toml"

    @property
    def roster_file(self) -> Path:
        """Sites."""
        return self.root / "roster.toml"

    def file(self, name: Literal["ca.crt", "ca.key", "server.crt", "server.key", "coordinator.key"]) -> Path:
        """A key or certificate."""
        return self.root / name

    @property
    def superexec_secret(self) -> Path:
        """What flower-superexec shows to the SuperLink."""
        return self.root / "superexec.secret"

    def create(self, config: FederationConfig, *, now: dt.datetime) -> Identity:
        """Make authority, certificate, identity, secret, settings and an empty roster.

        Raises:
            ProvisioningError: There is a federation already.

        """
        if self.config_file.exists():
            raise ProvisioningError(f"{self.config_file}: exists; a federation is not made anew over another")
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        create_authority(self.file("ca.crt"), self.file("ca.key"), name=config.name, now=now)
        identity = create_identity_file(self.file("coordinator.key"))
        descriptor = os.open(self.superexec_secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32))
        self.issue(config, now=now)
        self.write_roster(Roster())
        # last: its presence says that the rest is there
        write_atomically(self.config_file, msgspec.toml.encode(config))
        return identity

    def issue(self, config: FederationConfig, *, now: dt.datetime) -> None:
        """A fresh server certificate for the same key.

        Raises:
            ProvisioningError: The authority cannot be used.

        """
        issue_server_certificate(
            self.file("server.crt"),
            self.file("server.key"),
            authority=self.file("ca.crt"),
            authority_key=self.file("ca.key"),
            hosts=config.hosts,
            now=now,
        )

    def config(self) -> FederationConfig:
        """The settings, or ConfigError."""
        return parse_config(read_toml(self.config_file), FederationConfig, source=str(self.config_file))

    def roster(self) -> Roster:
        """The sites, or ConfigError."""
        return parse_config(read_toml(self.roster_file), Roster, source=str(self.roster_file))

    def write_roster(self, roster: Roster) -> None:
        """Replace the sites at once."""
        write_atomically(self.roster_file, msgspec.toml.encode(roster))

    def identity(self) -> Identity:
        """The coordinator's, or CryptoError."""
        return read_identity_file(self.file("coordinator.key"))

    def approve(self, requests: Sequence[SiteRequest], *, bundle: Digest) -> tuple[Path, ...]:
        """Put sites in the roster and write their join files; a site that is in it unchanged gets a new join file.

        Raises:
            ProvisioningError: A name, identity or node key is another site's, or was revoked.

        """
        roster = self.roster()
        for request in requests:
            roster = _with_site(roster, request)
        self.write_roster(roster)
        return tuple(self._write_join_file(request, bundle) for request in requests)

    def revoke(self, name: str) -> None:
        """Shut a site out for good; its keys stay in the roster so that they never come back under another name.

        Raises:
            ProvisioningError: No such site.

        """
        roster = self.roster()
        if name not in {site.name for site in roster.site}:
            raise ProvisioningError(f"{name}: not in {self.roster_file}")
        sites = (msgspec.structs.replace(s, status="revoked") if s.name == name else s for s in roster.site)
        self.write_roster(Roster(site=tuple(sites)))

    def _write_join_file(self, request: SiteRequest, bundle: Digest) -> Path:
        config, identity = self.config(), self.identity()
        join = JoinFile(
            federation=config.name,
            site=request.name,
            identity=request.identity,
            address=config.address,
            authority=self.file("ca.crt").read_text(),
            coordinator=identity.public.hex(),
            bundle=bundle,
        )
        path = self.root / "join" / f"{request.name}.join"
        write_atomically(path, sign_join_file(join, identity))
        return path


def _with_site(roster: Roster, request: SiteRequest) -> Roster:
    added = Site(name=request.name, contact=request.contact, identity=request.identity, node_key=request.node_key)
    for site in roster.site:
        keys = (site.name, site.identity, site.node_key)
        asked = (added.name, added.identity, added.node_key)
        if keys == asked and site.status == "approved":
            return roster
        if any(ours == theirs for ours, theirs in zip(keys, asked, strict=True)):
            raise ProvisioningError(
                f"{request.name}: its name or a key is that of {site.name} ({site.status}); a site that lost its keys "
                "or was revoked asks again under another name and with fresh keys"
            )
    return Roster(site=(*roster.site, added))
