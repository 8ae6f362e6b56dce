"""``site.toml``: where an institution keeps its things, and how its steward listens.

Nothing here is agreed with anybody; what a run may do stands in the policy file. Relative paths are beside the file.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from common.config import Config, parse_config, read_toml
from common.errors import ConfigError
from common.host.preflight import PreflightLimits
from common.manifest.manifest import InstitutionName  # noqa: TC001 - msgspec reads annotations at run time

if TYPE_CHECKING:
    from collections.abc import Iterator

PlacePath = Annotated[Path, Meta(description="a path")]
VariableName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*\Z",
        description="the name of an environment variable (letters, digits, underscores), not the passphrase itself",
        extra_json_schema={"writeOnly": True},  # whoever takes it for the passphrase must not see that in a log
    ),
]
PositiveMiB = Annotated[int, Meta(ge=1)]
MAX_MESSAGE_MIB = 512
_log = logging.getLogger(__name__)
Table = TypeVar("Table", bound=msgspec.Struct)


class VaultConfig(Config, frozen=True, kw_only=True):
    """The encrypted store, and where its master key comes from: exactly one of the sources."""

    directory: PlacePath = Path("vault")
    key_file: PlacePath | None = None
    passphrase_file: PlacePath | None = None
    passphrase_env: VariableName | None = None
    keyring: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    """The operating system's keyring, under this name."""

    def faults(self) -> Iterator[str]:
        """Rules that types cannot say."""
        sources = (self.key_file, self.passphrase_file, self.passphrase_env, self.keyring)
        if (given := sum(source is not None for source in sources)) != 1:
            yield f"wanted exactly one of key_file, passphrase_file, passphrase_env and keyring; got {given}"


class TcpConfig(Config, frozen=True, kw_only=True):
    """A second door for a SuperNode on another machine: TLS with certificates on both sides, and the token still."""

    address: Annotated[
        str,
        Meta(
            pattern=r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}\Z", description="host:port, such as 10.0.0.5:9443"
        ),
    ]
    certificate: PlacePath
    key: PlacePath
    client_authority: PlacePath
    """Whose certificates a caller may show."""


class ServiceConfig(Config, frozen=True, kw_only=True):
    """How the steward listens."""

    socket: PlacePath = Path("run/steward.sock")
    token: PlacePath = Path("run/token")
    group: Annotated[
        str, Meta(pattern=r"^([a-z_][a-z0-9_-]{0,31}|[0-9]{1,9})?\Z", description="a Unix group's name or number")
    ] = ""
    """Unix group, by name or number, that may connect, for a SuperNode under its own user; empty: nobody else."""
    waiting: Annotated[int, Meta(ge=0, le=32)] = 4
    """Requests that may wait while one is acted on; more are refused."""
    wait_seconds: Annotated[float, Meta(gt=0, le=3600)] = 300.0
    answer_times: Literal["even", "as_computed"] = "even"
    """``even``: each round computes for the largest sample that the run's ``largest_site`` allows, so that the time of
    an answer does not tell the sample's size. ``as_computed``: less work, and the time shows it."""
    stop_seconds: Annotated[float, Meta(ge=0, le=3600)] = 120.0
    """How long a round may go on after the steward was told to stop; then it is abandoned. It stays charged."""
    message_mib: Annotated[int, Meta(ge=1, le=MAX_MESSAGE_MIB)] = 128
    refusals_per_minute: Annotated[int, Meta(ge=1, le=100_000)] = 120
    tcp: TcpConfig | None = None


class SiteConfig(Config, frozen=True, kw_only=True):
    """One institution's site."""

    name: InstitutionName
    collection: Annotated[
        str,
        Meta(
            pattern=r"^[a-z0-9][a-z0-9/_.-]{0,99}\Z",
            description="1 to 100 small letters, digits, slashes, dots, hyphens and underscores",
        ),
    ]
    """Name of the privacy units that the vault holds, e.g. ``ct-archive/subject``: budgets are kept per collection."""
    base: PlacePath
    """The base model: a diffusers directory."""
    identity: PlacePath = Path("identity.key")
    policy: PlacePath = Path("policy.toml")
    ledger: PlacePath = Path("ledger.sqlite")
    audit_log: PlacePath = Path("audit.log")
    approvals: PlacePath = Path("approvals")
    releases: PlacePath = Path("releases")
    """Records of the releases that this site signed."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    memory_limit_mib: PositiveMiB | None = None
    """Most memory that a base model with its training may need; absent: what the machine has free."""
    vault: VaultConfig
    service: ServiceConfig = ServiceConfig()
    preflight: PreflightLimits = PreflightLimits()


def read_site(path: Path) -> SiteConfig:
    """Read a site file; every path in the result is absolute.

    Raises:
        ConfigError: Missing, not TOML, or a path in another user's home that there is not.
        ConfigErrors: Every fault in it.

    """
    if not path.exists():
        raise ConfigError(
            f"{path}: no such file; name the site (--config site/site.toml, or --directory site), or make one first: "
            "darkroom-client init"
        )
    table = read_toml(path)
    if "population" in table and "collection" not in table:
        _log.warning("%s: population is called collection now; rename that line, the name itself stays", path)
        table["collection"] = table.pop("population")
    site = parse_config(table, SiteConfig, source=str(path))
    return _beside(site, path.absolute().parent)


def read_limits(path: Path) -> tuple[PreflightLimits, str]:
    """What a site file says on looking before starting, and whose word that is; the defaults for who may not read it.

    Raises:
        ConfigError: Missing or not TOML.
        ConfigErrors: Every fault in it.

    """
    if os.access(path, os.R_OK):
        return read_site(path).preflight, f"as [preflight] in {path} says"
    # settings are the steward's: its user's word could not be relied on by another user anyway
    return PreflightLimits(), f"the default, for this user cannot read {path}"


def _beside(table: Table, folder: Path) -> Table:
    """The table, and those in it, with every path absolute."""
    values = {name: getattr(table, name) for name in table.__struct_fields__}
    return msgspec.structs.replace(table, **{name: _placed(value, folder) for name, value in values.items()})


def _placed(value: object, folder: Path) -> object:
    if isinstance(value, msgspec.Struct):
        return _beside(value, folder)
    if not isinstance(value, Path):
        return value
    try:
        return folder / value.expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{value}: there is no such user; write the whole path") from error
