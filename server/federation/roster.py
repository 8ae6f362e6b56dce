"""``roster.toml``: the sites of a federation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from common.config import Config
from common.crypto.certificates import check_node_key
from common.errors import ProvisioningError
from common.manifest.manifest import InstitutionName, Member, PublicKeyHex
from common.provisioning import Contact  # noqa: TC001 - msgspec reads annotations at run time

if TYPE_CHECKING:
    from collections.abc import Iterator

    from common.provisioning import SiteRequest


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


def with_site(roster: Roster, request: SiteRequest) -> Roster:
    """The roster with one site more, or as it is where the site is in it unchanged.

    Raises:
        ProvisioningError: A name, identity or node key is another site's, or was revoked.

    """
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
