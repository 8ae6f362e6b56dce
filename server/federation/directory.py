"""A coordinator's directory: settings, authority, certificates, identity, roster and join files of one federation."""

from __future__ import annotations

import ipaddress
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
from msgspec import Meta

from common.config import Config, parse_config, read_toml
from common.crypto.certificates import (
    MAX_AUTHORITY_BYTES,
    check_server_certificate,
    check_server_key,
    create_authority,
    issue_server_certificate,
)
from common.crypto.identity_file import create_identity_file, read_identity_file
from common.durable_files import UNFINISHED, whole_folder, write_atomically, write_new
from common.errors import ProvisioningError
from common.host.file_lock import locked
from common.host.preflight import PreflightLimits
from common.provisioning import (
    Address,
    JoinFile,
    SiteRequest,
    is_reachable,
    read_join_file,
    read_small_file,
    sign_join_file,
)
from server.federation.roster import Roster, with_site
from server.run.checkpoint import package_versions

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from common.config import Digest
    from common.crypto.primitives import Identity

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


@dataclass(frozen=True, kw_only=True)
class ServerFiles:
    """Where the public listener's certificates are, ours or another authority's: PEM, the key without a passphrase."""

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
    """Read certificates that another authority issued, and check them before they are kept.

    Raises:
        ProvisioningError: Unreadable, out of their time, for another address, from another authority, or another key.

    """
    authority, certificate = read_small_file(files.authority), read_small_file(files.certificate)
    if len(authority) > MAX_AUTHORITY_BYTES:
        raise ProvisioningError(f"{files.authority}: wanted one root certificate; this is a collection of them")
    check_server_certificate(certificate, authority=authority, hosts=config.hosts[:1], now=now)
    check_server_key(certificate, files.key)
    return ServerContent(authority=authority, certificate=certificate, key=read_small_file(files.key))


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

    @property
    def public(self) -> ServerFiles:
        """What sites see: the files that were given, or else those that were made here."""
        given = self._given
        if given.certificate.exists():
            return given
        return ServerFiles(
            authority=self.file("ca.crt"), certificate=self.file("server.crt"), key=self.file("server.key")
        )

    @property
    def _given(self) -> ServerFiles:
        folder = self.root / "public"
        return ServerFiles(authority=folder / "ca.crt", certificate=folder / "server.crt", key=folder / "server.key")

    def private_files(self) -> Iterator[tuple[Path, str]]:
        """What nobody else may read, with its name."""
        yield self.file("coordinator.key"), "coordinator's identity"
        yield self.file("ca.key"), "authority's key"
        yield self.file("server.key"), "server's key file"
        if self.public.key != self.file("server.key"):
            yield self.public.key, "public listener's key file"
        yield self.superexec_secret, "executor's secret"

    def create(self, config: FederationConfig, *, now: dt.datetime, given: ServerFiles | None = None) -> Identity:
        """Make authority, certificate, identity, secret, settings and an empty roster.

        Args:
            config: The settings.
            now: The time.
            given: Certificates that another authority issued for the public listener. The SuperLink behind it, on
                loopback, has one by an authority that is made here either way.

        Raises:
            ProvisioningError: There is a federation already, or something else, or sites would refuse the given
                certificate.

        """
        self._check_free()
        content = None if given is None else read_server_files(given, config, now=now)
        with whole_folder(self.root, last=self.config_file.name) as made:
            return _fill(FederationDirectory(made), config, content, now=now)

    def _check_free(self) -> None:
        if self.config_file.exists():
            raise ProvisioningError(f"{self.config_file}: exists; a federation is not made anew over another")
        if self.root.exists() and not (self.root.is_dir() and all(map(_is_left_over, self.root.iterdir()))):
            raise ProvisioningError(
                f"{self.root}: exists and is no empty folder, and no whole federation either, for "
                f"{self.config_file.name} is missing; if it is left over from an init that was broken off, remove it "
                "and try again; else give another folder"
            )

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

    def take(self, content: ServerContent) -> None:
        """Keep checked certificates for the public listener, in place of any before."""
        given = self._given
        given.key.parent.mkdir(exist_ok=True, mode=0o700)
        write_atomically(given.authority, content.authority)
        write_atomically(given.certificate, content.certificate)
        write_atomically(given.key, content.key, mode=0o600)

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
        with self._alone():
            self.write_roster(self._with(requests))
        return tuple(self._write_join_file(request, bundle) for request in requests)

    def check_requests(self, requests: Sequence[SiteRequest]) -> None:
        """Refuse what :meth:`approve` would refuse; nothing is changed.

        Raises:
            ProvisioningError: A name, identity or node key is another site's, or was revoked.

        """
        self._with(requests)

    def _with(self, requests: Sequence[SiteRequest]) -> Roster:
        roster = self.roster()
        for request in requests:
            roster = with_site(roster, request)
        return roster

    def _alone(self) -> AbstractContextManager[int]:
        """Between reading and replacing the roster, so that no revocation in between is lost."""
        return locked(self.root / "roster.lock", wait_s="forever")

    def sites_with_another_bundle(self, bundle: Digest) -> tuple[str, ...]:
        """Approved sites whose join file names another bundle, or cannot be read; sorted."""
        return tuple(site.name for site in self.roster().approved() if self._bundle_of(site.name) != bundle)

    def _bundle_of(self, site: str) -> str:
        try:
            return self.join_file(site).bundle
        except ProvisioningError:  # it has to be sent anew just the same
            return ""

    def join_file(self, site: str) -> JoinFile:
        """What an approved site was sent.

        Raises:
            ProvisioningError: It is missing or damaged.

        """
        path = self.root / "join" / f"{site}.join"
        return read_join_file(read_small_file(path), source=str(path))

    def revoke(self, name: str) -> None:
        """Shut a site out for good; its keys stay in the roster so that they never come back under another name.

        Raises:
            ProvisioningError: No such site.

        """
        with self._alone():
            roster = self.roster()
            if name not in {site.name for site in roster.site}:
                raise ProvisioningError(f"{name}: not in {self.roster_file}")
            sites = (msgspec.structs.replace(s, status="revoked") if s.name == name else s for s in roster.site)
            self.write_roster(Roster(site=tuple(sites)))

    def _write_join_file(self, request: SiteRequest, bundle: Digest) -> Path:
        config, identity, versions = self.config(), self.identity(), package_versions()
        join = JoinFile(
            federation=config.name,
            site=request.name,
            identity=request.identity,
            address=config.address,
            authority=self.public.authority.read_text(encoding="utf-8"),
            coordinator=identity.public.hex(),
            bundle=bundle,
            darkroom=versions["darkroom"],
            flower=versions["flwr"],
        )
        path = self.root / "join" / f"{request.name}.join"
        write_atomically(path, sign_join_file(join, identity))
        return path


def _is_left_over(path: Path) -> bool:
    return path.name.startswith(UNFINISHED)


def _fill(
    directory: FederationDirectory, config: FederationConfig, content: ServerContent | None, *, now: dt.datetime
) -> Identity:
    if content is not None:
        directory.take(content)
    create_authority(directory.file("ca.crt"), directory.file("ca.key"), name=config.name, now=now)
    identity = create_identity_file(directory.file("coordinator.key"))
    write_new(directory.superexec_secret, secrets.token_urlsafe(32).encode())
    directory.issue(config, now=now)
    directory.write_roster(Roster())
    write_atomically(directory.config_file, msgspec.toml.encode(config))
    return identity
