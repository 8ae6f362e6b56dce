"""Every approved site's node is known to Flower, and no revoked site's is.

Flower never takes the key of an unregistered node again. So only the node of a site that the roster calls revoked is
unregistered; one whose number nobody here knows is looked up by its key, which a crash between Flower's registration
and our note of it, or a lost note, leaves as the only trace.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sqlite3
from typing import TYPE_CHECKING, Final

import msgspec

from common.crypto.certificates import node_key_pem
from common.durable_files import write_atomically
from common.errors import DarkroomError, ProvisioningError
from server.flower.superlink import CONNECTION, GONE, parse_flower

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from server.federation.roster import Roster, Site
    from server.flower.superlink import Launch

_log = logging.getLogger(__name__)
_BITS: Final = 64
_BUSY_SECONDS: Final = 10.0


class _Registered(msgspec.Struct, frozen=True, rename="kebab"):
    node_id: str | int


class SiteNodes:
    """The nodes of one federation's sites in its SuperLink.

    Guarantee: a node is unregistered only if its number or its key is that of a revoked line of the roster.
    """

    def __init__(self, launch: Launch) -> None:
        """Nothing is asked yet."""
        self._launch = launch
        # each once: the roster is looked at every second while anything is left to do
        self._tell = functools.cache(functools.partial(_log.warning, "%s"))

    def align(self, roster: Roster) -> bool:
        """Register what is approved and unregister what is revoked; False: not everything could be done yet.

        Raises:
            ProvisioningError: Flower does not say which nodes it knows.

        """
        listed = {node.node_id: node.status for node in self._launch.nodes(gone="listed")}
        done = True
        for site in roster.site:
            try:
                if site.status == "revoked":
                    self._shut_out(site, listed)
                else:
                    self._let_in(site, listed)
            except (DarkroomError, OSError) as error:  # one site's trouble must keep no other in or out
                self._tell(f"node of {site.name}: {error}")
                done = False
        known = {self._launch.node_id(site.name) for site in roster.site}
        for number in sorted(number for number, status in listed.items() if status != GONE and number not in known):
            self._tell(f"node {number} is of no site in the roster; it is left as it is")
        return done

    def _shut_out(self, site: Site, listed: Mapping[str, str]) -> None:
        number = self._number(site, listed)
        if number and listed.get(number) != GONE:
            self._launch.flwr("supernode", "unregister", number, CONNECTION)
            _log.info("unregistered node %s of %s", number, site.name)

    def _let_in(self, site: Site, listed: Mapping[str, str]) -> None:
        if (number := self._number(site, listed)) == "":
            number = self._register(site)
            self._launch.keep_node_id(site.name, number)
            _log.info("registered node %s of %s", number, site.name)
        elif listed.get(number) == GONE:
            self._tell(
                f"node {number} of {site.name} was unregistered, and Flower never takes its key again; the site has "
                "to make a new folder and ask to join under a new name"
            )

    def _number(self, site: Site, listed: Mapping[str, str]) -> str:
        """Of the site's node, by our note or else by its key; empty where Flower has none."""
        noted = self._launch.node_id(site.name)
        if noted in listed:
            return noted
        number = number_by_key(self._launch.database, site.node_key) if listed else ""
        if number:
            self._launch.keep_node_id(site.name, number)
            _log.info("node %s has the key of %s", number, site.name)
        return number

    def _register(self, site: Site) -> str:
        key = self._launch.node_file(site.name, "pub")
        write_atomically(key, site.node_key.encode() + b"\n")
        said = self._launch.flwr("supernode", "register", str(key), CONNECTION, "--name", site.name, "--format", "json")
        return str(parse_flower(said, _Registered).node_id)


def number_by_key(database: Path, node_key: str) -> str:
    """Number of the node with this OpenSSH public line in the SuperLink's own table; empty where there is none.

    Flower's commands list no keys. The table keeps a key for ever, after its node was unregistered, too.

    Raises:
        ProvisioningError: The table cannot be read.

    """
    uri = f"{database.resolve().as_uri()}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS)) as connection:
            rows = connection.execute("SELECT node_id FROM node WHERE public_key = ?", (node_key_pem(node_key),))
            found = rows.fetchone()
    except sqlite3.Error as error:
        raise ProvisioningError(f"{database}: the SuperLink's table of nodes cannot be read ({error})") from error
    return "" if found is None else str(int(found[0]) % (1 << _BITS))  # SQLite holds Flower's number as a signed one
