"""What a site looks at before it starts its steward, and before it connects."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING

from client.connection.handshake import check_clock, shake_hands
from client.connection.supernode import own_port, read_named
from client.governance.policy import read_policy
from client.governance.rollback import read_noted
from client.site.open_site import link_to_steward
from client.site.serving_policy import restart_words, serving_policy
from client.site.vault_access import count_vault
from client.steward.process import socket_place
from client.steward.socket import is_held
from client.training.loaded_base import MIB, check_memory, choose_device
from client.vault.records import today
from common.adapter.model import open_base
from common.crypto.certificates import read_node_key
from common.crypto.identity_file import read_identity_file
from common.errors import BadModelDirectory, ProvisioningError, StewardUnavailable
from common.host.preflight import (
    Check,
    NotAsWanted,
    NotLookedAt,
    disk_check,
    port_check,
    private_file_check,
    version_checks,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from client.connection.handshake import Handshake
    from client.site.layout import SiteLayout
    from client.site.settings import SiteConfig
    from common.host.preflight import PreflightLimits
    from common.provisioning import JoinFile
    from common.wire.steward_link import Health


def steward_checks(site: SiteConfig) -> Iterator[Check]:
    """What the steward's user looks at."""
    yield from version_checks()
    yield private_file_check(site.identity, "identity's file")
    yield private_file_check(site.service.token, "token's file", group=bool(site.service.group))
    if site.vault.key_file is not None:
        yield private_file_check(site.vault.key_file, "vault key's file")
    if site.vault.passphrase_file is not None:
        yield private_file_check(site.vault.passphrase_file, "passphrase's file")
    yield Check(
        name="policy",
        wanted="readable, with coordinators, base digests and institutions",
        remedy=f"mend {site.policy}",
        look=lambda: _policy(site),
    )
    yield Check(
        name="running steward",
        wanted="none, or one that goes by the policy as it is now",
        remedy="restart the steward",
        look=lambda: _running(site),
    )
    yield Check(
        name="base",
        wanted="a base that the policy allows",
        remedy="put the run's base model at base in site.toml, or its digest into policy.toml",
        look=lambda: _base(site),
    )
    yield Check(
        name="steward's socket",
        wanted="free, or this site's own steward answers there",
        remedy="end the command that is at work, or give service.socket another path in site.toml",
        look=lambda: _socket(site),
    )
    yield Check(
        name="memory",
        wanted="room for the base and its training",
        remedy="free memory, take a smaller base, or set device and memory_limit_mib in site.toml",
        look=lambda: _memory(site),
    )
    yield Check(
        name="vault",
        wanted="opens, and holds pictures",
        remedy="mend [vault] in site.toml, or take pictures in: darkroom-client ingest",
        look=lambda: _vault(site),
    )
    yield disk_check(site.ledger.parent, site.preflight)


@dataclass(frozen=True, kw_only=True)
class Joining:
    """What a site was sent, and where it is to connect from."""

    layout: SiteLayout
    join: JoinFile
    bundle: Path
    port: int
    limits: PreflightLimits


def connection_checks(joining: Joining) -> Iterator[Check]:
    """What the SuperNode's user looks at."""
    layout, join = joining.layout, joining.join
    yield from version_checks(darkroom=join.darkroom, flower=join.flower)
    yield private_file_check(layout.node_key_file, "node key's file")
    yield Check(
        name="node key",
        wanted="the key that was sent with the request",
        remedy="darkroom-client request makes it; the coordinator has to approve a new one",
        look=lambda: read_node_key(layout.node_key_file)[:40] + "…",
    )
    yield Check(
        name="bundle",
        wanted=join.bundle,
        remedy="ask the coordinator for the bundle again",
        look=lambda: _bundle(joining),
    )
    yield port_check(
        "SuperNode's port", "127.0.0.1", joining.port, "--port", own=lambda: own_port(layout, joining.port)
    )
    yield disk_check(layout.root, joining.limits)
    yield from _handshake_checks(joining)


def _handshake_checks(joining: Joining) -> Iterator[Check]:
    limits = joining.limits
    # asked once: three checks look at one answer, and waiting for a silent host once is enough
    shown = _asked(joining.join)
    yield Check(
        name="coordinator",
        wanted=f"{joining.join.address} answers over TLS by the join file's authority",
        remedy="let this connection out through the firewall, or set HTTPS_PROXY; ask if the coordinator is up",
        look=lambda: _answer(shown),
    )
    yield Check(
        name="certificate",
        wanted=f"valid for {limits.certificate_days} days more",
        remedy="have the coordinator run: darkroom-server renew",
        look=lambda: _days_left(_seen(shown), limits),
    )
    yield Check(
        name="clock",
        wanted=f"within {limits.clock_skew_seconds:g} s of the coordinator's",
        remedy="set the clock by NTP (timedatectl set-ntp true), or have the coordinator do so",
        look=lambda: check_clock(_seen(shown), limits),
    )


def _asked(join: JoinFile) -> Handshake | ProvisioningError:
    try:
        return shake_hands(join.address, join.authority)
    except ProvisioningError as error:
        return error


def _answer(shown: Handshake | ProvisioningError) -> str:
    if isinstance(shown, ProvisioningError):
        raise shown
    return f"answers, with a certificate until {shown.expires:%Y-%m-%d}"


def _seen(shown: Handshake | ProvisioningError) -> Handshake:
    """For checks of what was shown: where nothing was, setting a clock or renewing a certificate is no remedy."""
    if isinstance(shown, ProvisioningError):
        raise NotLookedAt("not looked at: the coordinator's handshake failed") from shown
    return shown


def _policy(site: SiteConfig) -> str:
    policy = read_policy(site.policy)
    if missing := policy.unfinished():
        raise NotAsWanted("; ".join(missing))
    return (
        f"{len(policy.coordinators)} coordinators, {len(policy.base_digests)} base models; {policy.figure_that_holds()}"
    )


def _running(site: SiteConfig) -> str:
    serving = serving_policy(site)
    if serving is None:
        return "none"
    if serving.policy != read_policy(site.policy):
        raise NotAsWanted(restart_words(serving))
    return f"goes by this policy since {serving.since}"


def _base(site: SiteConfig) -> str:
    digest = open_base(str(site.base)).digest
    if digest not in read_policy(site.policy).base_digests:
        raise NotAsWanted(f"{site.base}: {digest}, which base_digests in the policy does not name")
    return digest


def _own_steward(site: SiteConfig) -> Health | None:
    """How this site's steward is; None: it does not answer."""
    try:
        return link_to_steward(site).health()
    except StewardUnavailable:
        return None


def _socket(site: SiteConfig) -> str:
    if _own_steward(site) is not None:
        return "this site's own steward answers there"
    place = socket_place(site.service)
    if is_held(place):
        raise NotAsWanted(f"{place.path}: held by a steward that does not answer yet, or by a command that writes")
    if place.path.exists() and not place.path.is_socket():
        raise NotAsWanted(f"{place.path}: something else than a socket stands there")
    return "free"


def _memory(site: SiteConfig) -> str:
    running = _own_steward(site)
    if running is not None and running.model_loaded:
        return "this site's own steward has the base in memory"
    device = choose_device(site.device)
    try:
        base = open_base(str(site.base))
    except BadModelDirectory as error:
        raise NotLookedAt("not looked at: there is no base to look at") from error
    found = check_memory(base, device=device, limit_mib=site.memory_limit_mib)
    return f"wants about {found.wanted // MIB} MiB on {device}, {found.available // MIB} MiB are there"


def _vault(site: SiteConfig) -> str:
    noted = read_noted(site.audit_log, read_identity_file(site.identity).public)
    counts = count_vault(site.vault, day=today(), expected=noted.vault)
    usable = counts.pictures - counts.held_out - counts.expired
    if usable <= 0:
        raise NotAsWanted(f"{counts.pictures} pictures, none to train with")
    return f"{counts.pictures} pictures of {counts.subjects} subjects"


def _bundle(joining: Joining) -> str:
    read_named(joining.bundle, joining.join)
    return joining.join.bundle


def _days_left(shown: Handshake, limits: PreflightLimits) -> str:
    days = (shown.expires - dt.datetime.now(dt.UTC)).days
    if days < limits.certificate_days:
        raise NotAsWanted(f"{days} days")
    return f"{days} days"
