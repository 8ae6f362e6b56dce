"""Which policy the running steward goes by: the one that it read when it was started, whatever the file says by now.

The steward notes it beside its socket, for its own user alone: the coordinator's code may ask the socket, and is not to
learn a site's limits. Commands that speak for the policy compare.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from client.governance.policy import SitePolicy
from client.site.open_site import link_to_steward
from common.durable_files import write_atomically
from common.errors import StewardUnavailable
from common.wire.steward_link import StewardSilent

if TYPE_CHECKING:
    from pathlib import Path

    from client.site.open_site import OpenSite
    from client.site.settings import SiteConfig


class ServingPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a steward goes by."""

    policy: SitePolicy
    since: str
    """When it was read."""


def note_policy(site: OpenSite) -> None:
    """Note what a steward that is being started goes by; the caller holds its place."""
    noted = ServingPolicy(policy=site.policy, since=datetime.now(UTC).isoformat(timespec="seconds"))
    write_atomically(_file(site.config), msgspec.json.encode(noted), mode=0o600)


def serving_policy(config: SiteConfig) -> ServingPolicy | None:
    """What the running steward goes by, though it may hang; None where none runs, whatever an earlier one left.

    Raises:
        StewardUnavailable: One runs, and what it noted cannot be read.

    """
    try:
        link_to_steward(config).health()
    except StewardUnavailable as error:
        if not isinstance(error, StewardSilent):
            return None
    try:
        return msgspec.json.decode(_file(config).read_bytes(), type=ServingPolicy)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StewardUnavailable(
            f"{_file(config)}: cannot be read, so nobody can tell which policy the running steward goes by; restart it"
        ) from error


def older_policy(site: OpenSite) -> ServingPolicy | None:
    """What the running steward goes by, if that is not the site's policy as it is now.

    Raises:
        StewardUnavailable: As :func:`serving_policy`.

    """
    serving = serving_policy(site.config)
    return None if serving is None or serving.policy == site.policy else serving


def restart_words(older: ServingPolicy) -> str:
    """What people have to know of a steward with an older policy."""
    return f"the running steward still goes by the policy as it was at {older.since}; restart it"


def _file(config: SiteConfig) -> Path:
    return config.service.socket.with_suffix(".policy")
