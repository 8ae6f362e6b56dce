"""Where everything of a site lies: one folder for the steward's things, and in it one for the SuperNode's.

The two can belong to different users. The SuperNode's user needs nothing outside ``supernode/`` but the way through the
site's folder, and the socket and token in ``run/``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class SiteLayout:
    """Paths below a site's folder."""

    root: Path

    @property
    def site_file(self) -> Path:
        """Settings."""
        return self.root / "site.toml"

    @property
    def policy_file(self) -> Path:
        """The site's own rules."""
        return self.root / "policy.toml"

    @property
    def identity_file(self) -> Path:
        """Ed25519 private key, which signs the site's contributions; the steward's alone."""
        return self.root / "identity.key"

    @property
    def vault(self) -> Path:
        """The encrypted store."""
        return self.root / "vault"

    @property
    def run(self) -> Path:
        """Socket and token."""
        return self.root / "run"

    @property
    def supernode(self) -> Path:
        """Everything of the SuperNode's user."""
        return self.root / "supernode"

    @property
    def node_key_file(self) -> Path:
        """ECDSA P-384, with which the SuperNode logs in; worth nothing for contributions."""
        return self.supernode / "node.key"

    @property
    def identity_public_file(self) -> Path:
        """The identity's public half, so that the SuperNode's user can check a join file."""
        return self.supernode / "identity.pub"

    @property
    def authority_file(self) -> Path:
        """Whom the SuperNode trusts for TLS."""
        return self.supernode / "ca.crt"

    @property
    def flower_home(self) -> Path:
        """Flower's home of the SuperNode."""
        return self.supernode / "flower"

    @property
    def join_lock(self) -> Path:
        """Held while a SuperNode of this site runs; in the one folder where its user may write."""
        return self.supernode_log.with_name("join.lock")

    @property
    def supernode_log(self) -> Path:
        """What the SuperNode says."""
        return self.supernode / "logs" / "supernode.log"
