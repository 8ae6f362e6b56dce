"""A new site's folder: settings to fill in, and the things that are made once, where they are used, and never sent.

Nothing that is there already is touched: an identity, a ledger or a vault key that is overwritten is lost for ever.
A folder is made elsewhere and moved into its place when it is whole, so that one that is not can be made again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from client.governance.ledger import Ledger, PldAccountant
from client.governance.policy import ANY_INSTITUTION
from client.site.layout import SiteLayout
from client.site.settings import VaultConfig
from client.site.vault_access import master_key
from client.steward.socket import create_token_file
from client.vault.master_key import create_key_file, create_keyring_key
from client.vault.vault import Vault
from common.audit_log import AuditLog
from common.crypto.identity_file import create_identity_file, read_identity_file
from common.durable_files import whole_folder, write_new
from common.errors import ConfigError
from common.field_words import not_wanted
from common.manifest.manifest import InstitutionName

if TYPE_CHECKING:
    from collections.abc import Callable

KEY_FILE: Final = VaultConfig(key_file=Path("vault.key"))
_SOURCES: Final = ("key_file", "passphrase_file", "passphrase_env", "keyring")

_SITE: Final = """\
# {name}: this institution's site. Relative paths are beside this file.
name = "{name}"
# What the vault's privacy units are called; the privacy budget is kept under this name.
collection = "{name}/subject"
# The base model: a diffusers directory. Its digest (darkroom-client digest BASE) goes into policy.toml.
base = "base"
identity = "identity.key"
policy = "policy.toml"
ledger = "ledger.sqlite"
audit_log = "audit.log"
approvals = "approvals"
# releases that this site signed
releases = "releases"
# "auto" takes a GPU if there is one
device = "auto"
# memory_limit_mib = 8192

[vault]
directory = "vault"
# Exactly one source of the master key. Better than a file on the same disk: passphrase_env, passphrase_file or keyring.
{key}

[service]
socket = "run/steward.sock"
token = "run/token"
# A SuperNode under its own Unix user: name a group that both users are in.
# group = "darkroom"
waiting = 4
stop_seconds = 120
# For a SuperNode on another machine:
# [service.tcp]
# address = "10.0.0.5:9443"
# certificate = "tls/steward.crt"
# key = "tls/steward.key"
# client_authority = "tls/site-ca.crt"
"""

_POLICY: Final = """\
# What this institution takes part in. A run that breaks one rule is refused with every reason.
# Ed25519 keys of coordinators, compared with their owners by telephone: 64 hexadecimal digits each.
coordinators = []
# Digests of base models (darkroom-client digest BASE).
base_digests = []
adapter_kinds = ["B", "core"]
# Fewest institutions in any sum, this one included, and how many of the others may work with the coordinator.
minimum_cohort = 3
colluders = 1
# Keys of institutions known to be real, this one included: the fingerprints compared with their owners by telephone. A
# run with another is refused. "darkroom-client approve" and "approvals" show a run's, and the line to write here.
institutions = []
# Or none are named, and this says, word for word:
# "{any}".
# Then rely_on_secure_aggregation has to be false, and a run of the same noise costs more.
any_institution = ""

[privacy]
# The most that may become known about one unit: in one run, and in all runs ever.
epsilon_per_run = 8.0
delta_per_run = 1e-5
epsilon_lifetime = 16.0
delta_lifetime = 1e-4
# "image" only where no person, work or place has several pictures.
units = ["subject"]
# false: budgets are charged as if every other institution worked with the coordinator.
rely_on_secure_aggregation = true
""".replace("{any}", ANY_INSTITUTION)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing that a new site needs."""

    path: Path
    what: str
    make: Callable[[], object]


def site_steps(folder: Path, name: str, key: VaultConfig = KEY_FILE) -> tuple[Step, ...]:
    """What :func:`make_site` would make, in order.

    Args:
        folder: The site's.
        name: The institution's.
        key: Where the vault's master key is to come from; the vault itself is always in ``vault``.

    Raises:
        ConfigError: The name is no institution's name.

    """
    try:
        msgspec.convert(name, InstitutionName)
    except msgspec.ValidationError as error:
        raise ConfigError(not_wanted("--name", InstitutionName, name)) from error
    layout = SiteLayout(folder)
    identity = layout.identity_file
    return (
        Step(
            path=layout.site_file,
            what="settings",
            make=lambda: write_new(layout.site_file, _SITE.format(name=name, key=_key_line(key)).encode()),
        ),
        Step(
            path=layout.policy_file,
            what="this site's own rules",
            make=lambda: write_new(layout.policy_file, _POLICY.encode()),
        ),
        Step(path=identity, what="long-term signing key", make=lambda: create_identity_file(identity)),
        *_key_steps(folder, key),
        Step(
            path=folder / "ledger.sqlite",
            what="privacy ledger",
            make=lambda: Ledger.create(folder / "ledger.sqlite", PldAccountant()),
        ),
        Step(path=folder / "audit.log", what="audit log", make=lambda: _begin_audit_log(folder)),
        Step(path=folder / "approvals", what="proposed and approved runs", make=lambda: _folder(folder / "approvals")),
        Step(path=layout.run, what="socket's folder", make=lambda: _folder(layout.run)),
        Step(
            path=layout.run / "token",
            what="token for the SuperNode",
            make=lambda: create_token_file(layout.run / "token"),
        ),
        # last: a key in the system's keyring stays there whatever fails after it
        Step(path=layout.vault, what="empty vault", make=lambda: _make_vault(folder, key)),
    )


def make_site(folder: Path, name: str, key: VaultConfig = KEY_FILE) -> tuple[Step, ...]:
    """Make a site's folder, or nothing; returns what was made.

    Raises:
        ConfigError: Something of it is there already, the passphrase is not, or the disk does not take it.
        VaultError: The vault cannot be made with this key.

    """
    steps = site_steps(folder, name, key)
    if key.key_file is None and key.keyring is None:
        master_key(key).new_slot()  # a passphrase that is missing or too short is told before anything is made
    _refuse_present(steps)
    try:
        with whole_folder(folder, last=SiteLayout(folder).site_file.name) as made:
            for step in site_steps(made, name, key):
                step.make()
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"{folder}: cannot be made, for {error.filename} is no folder; give another place") from error
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be made ({error.strerror}); nothing of it is kept. Mend that, or give another place"
        ) from error
    return steps


def _refuse_present(steps: tuple[Step, ...]) -> None:
    if there := [str(step.path) for step in steps if step.path.exists() or step.path.is_symlink()]:
        raise ConfigError(f"exists, and is not overwritten: {', '.join(there)}; give a new folder")


def _key_line(key: VaultConfig) -> str:
    name, value = next((name, value) for name in _SOURCES if (value := getattr(key, name)) is not None)
    return msgspec.toml.encode({name: str(value)}).decode().strip()


def _key_steps(folder: Path, key: VaultConfig) -> tuple[Step, ...]:
    """A passphrase is a person's own, and the keyring's key is no file: it is made with the vault."""
    if key.key_file is not None:
        path = folder / key.key_file
        return (Step(path=path, what="vault's master key", make=lambda: create_key_file(path)),)
    return ()


def _make_vault(folder: Path, key: VaultConfig) -> None:
    if key.keyring is not None:
        create_keyring_key(key.keyring)
    placed = key if key.key_file is None else msgspec.structs.replace(key, key_file=folder / key.key_file)
    Vault.create(SiteLayout(folder).vault, master_key(placed)).close()


def _folder(path: Path) -> None:
    path.mkdir(mode=0o700)


def _begin_audit_log(folder: Path) -> None:
    AuditLog(path=folder / "audit.log", identity=read_identity_file(folder / "identity.key"))
