"""Where everything of a site lies: one folder for the steward's things, and in it one for the SuperNode's.

The two can belong to different users. The SuperNode's user needs nothing outside ``supernode/`` but the way through the
site's folder, and the socket and token in ``run/``. A site's settings may name places outside its folder.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from common.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from client.site.settings import SiteConfig

_BESIDE: Final = ("-wal", "-shm", "-journal")
"""Files that SQLite makes beside a database, which hold rows of it."""
_SYSTEM: Final = tuple(Path(each) for each in ("/usr", "/etc", "/run", "/var"))


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


@dataclass(frozen=True, slots=True)
class SitePlaces:
    """What belongs to whom, by the site's own settings."""

    layout: SiteLayout
    site: SiteConfig

    def check(self, programs: Iterable[Path]) -> None:
        """Refuse places that are too wide: hiding them would hide what the SuperNode needs, or writing reaches too far.

        Args:
            programs: What the steward must not be able to write to.

        Raises:
            ConfigError: There is one.

        """
        kept = (*_SYSTEM, *programs)
        for written in self.written()[1:]:
            if any(path.is_relative_to(written) for path in kept):
                raise ConfigError(
                    f"{written}: the steward would have to write here; give its things a folder of their own"
                )
        needed = (self.layout.supernode, _place(self.site.service.socket), _place(self.site.service.token))
        for secret in self.secrets():
            for path in needed:
                if path.is_relative_to(secret):
                    raise ConfigError(
                        f"{secret}: {path} is in it, which the SuperNode needs; give each a place of its own"
                    )

    def all(self) -> tuple[Path, ...]:
        """Everything that the steward's service opens."""
        service = self.site.service
        doors = (_place(service.socket), _place(service.token))
        tcp = () if service.tcp is None else (_place(service.tcp.certificate), _place(service.tcp.client_authority))
        return (self.layout.root, _place(self.site.base), *self.folders(), *self.files(), *doors, *tcp)

    @property
    def token(self) -> Path:
        """The steward's, and read by the SuperNode."""
        return _place(self.site.service.token)

    def folders(self) -> tuple[Path, ...]:
        """The steward's alone, which it writes in."""
        return tuple(_place(each) for each in (self.site.vault.directory, self.site.approvals, self.site.releases))

    def files(self) -> tuple[Path, ...]:
        """The steward's alone."""
        site, vault, tcp = self.site, self.site.vault, self.site.service.tcp
        named = (
            *(site.identity, site.policy, site.ledger, site.audit_log, vault.key_file, vault.passphrase_file),
            None if tcp is None else tcp.key,
        )
        return (self.layout.site_file, *(_place(each) for each in named if each is not None))

    def written(self) -> tuple[Path, ...]:
        """Folders in which the steward makes files, that of the socket included."""
        files = (self.site.ledger, self.site.audit_log, self.site.service.socket)
        found = dict.fromkeys((self.layout.root, *self.folders(), *(_place(each).parent for each in files)))
        return tuple(each for each in found if each == self.layout.root or self.is_outside(each))

    def doors(self) -> tuple[Path, ...]:
        """Folders of the site that the SuperNode's user goes through to socket and token."""
        service = self.site.service
        found = dict.fromkeys((self.layout.root, _place(service.socket).parent, _place(service.token).parent))
        return tuple(each for each in found if not self.is_outside(each))

    def secrets(self) -> tuple[Path, ...]:
        """What the SuperNode must not see, whoever's rights it has."""
        ledger = tuple(_place(self.site.ledger.with_name(self.site.ledger.name + end)) for end in _BESIDE)
        receipts = _place(self.site.vault.directory).parent / "receipts"
        return (*self.files(), *ledger, *self.folders(), receipts, _place(self.site.base))

    def is_outside(self, path: Path) -> bool:
        """Of the site's folder."""
        return not path.is_relative_to(self.layout.root)


def _place(path: Path) -> Path:
    """Without dots: systemd passes over a path that has them, and whether it is outside would not show."""
    return Path(os.path.normpath(path))
