"""A site's way into a federation: its keys, its request, the join file that it gets back, and the bundle named there.

The SuperNode runs that bundle and no other: it is installed read-only from the bytes that were hashed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from client.connection import bundle_gate, supernode_process
from client.connection.safe_folder import SafeFolder, make_read_only, set_folder_mode
from common.crypto.certificates import create_node_key, read_node_key
from common.crypto.identity_file import create_identity_file, read_identity_file
from common.durable_files import PUBLIC, write_atomically
from common.errors import ProvisioningError, StewardUnavailable
from common.host.app_bundle import PROJECT, bundle_digest, folder_ending, parse_bundle, read_content
from common.host.file_lock import is_locked, locked
from common.host.flower_commands import ENVIRONMENT, program
from common.host.preflight import NotAsWanted, unused_port
from common.host.supervision import Command, ordinary_environment
from common.provisioning import JoinFile, SiteRequest, create_request, encode_request, parse_join_file, read_small_file
from common.wire.steward_link import StewardAddress, StewardLink, read_token

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from client.site.layout import SiteLayout
    from client.site.settings import SiteConfig
    from common.crypto.primitives import Identity


_STEWARD: Final = re.compile(r'steward="(?P<target>unix:[^"]+)" token="(?P<token>[^"]+)"')
_INSTALL_SECONDS: Final = 120.0
_LOOPBACK: Final = ("127.0.0.1", "localhost")
"""The SuperNode's own executor reaches it on loopback, which no proxy serves."""


def request_to_join(
    site: SiteLayout, *, name: str, contact: str, identity_file: Path | None = None
) -> tuple[SiteRequest, Path]:
    """Make what keys are missing and write the request file.

    Args:
        site: Where.
        name: The site's.
        contact: Whom the coordinator telephones.
        identity_file: Of the site's signing key; absent: where a new site has it.

    Raises:
        ProvisioningError: A name or contact that cannot be used.
        CryptoError: An identity file that cannot be read.

    """
    identity = _identity(identity_file or site.identity_file)
    key = site.node_key_file
    line = read_node_key(key) if key.exists() else create_node_key(key)
    request = create_request(name=name, contact=contact, identity=identity, node_key=line)
    # the SuperNode's user reads it
    write_atomically(site.identity_public_file, request.identity.encode() + b"\n", mode=PUBLIC)
    path = site.root / f"{request.name}.request"
    path.write_bytes(encode_request(request))
    return request, path


def _identity(path: Path) -> Identity:
    return read_identity_file(path) if path.exists() else create_identity_file(path)


@contextlib.contextmanager
def held_connection(site: SiteLayout, port: int) -> Iterator[None]:
    """Hold the site's connection, so that no second SuperNode takes its place or its folder.

    Raises:
        ProvisioningError: It is held, or another program listens on the port.

    """
    lock = site.join_lock
    lock.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    busy = ProvisioningError(
        f"{site.root}: this site's connection runs already; stop that first (Ctrl-C there, or systemctl stop "
        "darkroom-supernode)"
    )
    with locked(lock, wait_s=0, busy=busy) as descriptor:
        os.truncate(descriptor, 0)
        os.write(descriptor, str(port).encode())
        try:
            unused_port(_LOOPBACK[0], port)
        except NotAsWanted as error:
            raise ProvisioningError(
                f"the SuperNode needs a loopback port of its own, and does not get it: {error}; stop what listens "
                "there (ss -ltnp shows it), or give another with --port"
            ) from error
        yield


def own_port(site: SiteLayout, port: int) -> str | None:
    """In words, that this site's own SuperNode runs on this port; None: it does not, or cannot be told."""
    try:
        # the SuperNode's user, who runs the coordinator's code, may have put a pipe, a link or an endless file here
        descriptor = os.open(site.join_lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            is_ours = is_locked(site.join_lock) and file.read(8) == str(port).encode()
    except OSError:
        return None
    return "this site's own SuperNode runs there" if is_ours else None


def steward_missing(node_config: str) -> str | None:
    """Why the steward that the SuperNode is to ask does not answer, in words; None: it does, or it is elsewhere."""
    found = _STEWARD.fullmatch(node_config)
    if found is None:
        return None
    try:
        token = read_token(Path(found["token"]))
        StewardLink(address=StewardAddress(target=found["target"], token=token)).health()
    except StewardUnavailable as error:
        return str(error)
    return None


@dataclass(frozen=True, slots=True)
class SuperNode:
    """A site's connection; it needs nothing that the steward keeps to itself."""

    site: SiteLayout

    def open_join_file(self, path: Path, *, fingerprint: str) -> JoinFile:
        """A checked join file, for this site by that coordinator.

        Raises:
            ProvisioningError: As ``common.provisioning.parse_join_file``, or no request was made here.

        """
        public = self.site.identity_public_file
        try:
            identity = bytes.fromhex(read_small_file(public).decode("ascii"))
        except ValueError as error:
            raise ProvisioningError(f"{public}: wanted a public key; darkroom-client request writes it") from error
        return parse_join_file(read_small_file(path), identity=identity, fingerprint=fingerprint, source=str(path))

    def is_installed(self, join: JoinFile) -> bool:
        """Whether this bundle is in place and this user cannot write another beside it."""
        wanted = (
            (self._installed_file, join.bundle),
            (self.site.authority_file, join.authority),
            (self._program, _program_text()),
        )
        try:
            in_place = all(path.read_bytes() == text.encode() for path, text in wanted)
            return in_place and holds_bundle(self._apps, join.bundle) and not os.access(self._apps, os.W_OK)
        except OSError:
            return False

    def install(self, join: JoinFile, bundle: Path) -> None:
        """Put authority and bundle in place and take the right to write bundles away, so that no other one runs.

        Run by an administrator, it leaves a bundle that the SuperNode's user could not even give itself the right to
        change. What that user may have left where the bundle goes is removed, and never written to.

        Raises:
            ProvisioningError: The bundle is another than the join file names, Flower cannot install it, or a symbolic
                link or another user's folder is in the way.

        """
        content = read_named(bundle, join)
        name = parse_bundle(content, source=str(bundle)).file_name
        folder = SafeFolder(self.site.supernode)
        folder.make()
        home, programs = (folder.new_folder(path.name) for path in (self.site.flower_home, self._program.parent))
        folder.write(self.site.authority_file, join.authority, mode=0o644)
        # a copy of the bytes that were hashed: the file could change in between
        copy = home / "bundle" / name
        copy.parent.mkdir()
        copy.write_bytes(content)
        self._install_with_flower(copy)
        make_read_only(self._apps)
        folder.write(self._program, _program_text(), mode=0o755)
        folder.write(self._installed_file, join.bundle, mode=0o644)
        for path in (home, programs):
            set_folder_mode(path, 0o755)

    def _install_with_flower(self, copy: Path) -> None:
        done = subprocess.run(  # noqa: S603 - Flower's program; no shell
            (program("flwr"), "install", str(copy)),
            env={**ordinary_environment(os.environ), **self.environment()},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_INSTALL_SECONDS,
            umask=0o022,  # an administrator installs what the SuperNode's user reads
            check=False,
        )
        if done.returncode != 0:
            raise ProvisioningError(f"flwr install: code {done.returncode}: {(done.stderr or done.stdout).strip()}")

    @property
    def _apps(self) -> Path:
        return self.site.flower_home / "apps"

    @property
    def _installed_file(self) -> Path:
        return self.site.flower_home / bundle_gate.INSTALLED

    @property
    def _program(self) -> Path:
        """What Flower starts for each message, found before its own by the environment's path."""
        return self.site.supernode / "bin" / "flwr-clientapp"

    def environment(self) -> dict[str, str]:
        """Of every Flower process here."""
        path = os.pathsep.join((str(self._program.parent), ENVIRONMENT["PATH"]))
        home = str(self.site.flower_home)
        return {**ENVIRONMENT, "PATH": path, "FLWR_HOME": home, **proxy_exceptions(os.environ)}

    def command(self, join: JoinFile, *, port: int, node_config: str) -> Command:
        """The SuperNode: one outbound connection, and its own executor on loopback ``port``."""
        arguments = (
            *(sys.executable, "-P", str(supernode_process.__file__), "--superlink", join.address),
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--root-certificates", str(self.site.authority_file)),
            *("--auth-supernode-private-key", str(self.site.node_key_file), "--node-config", node_config),
        )
        log = self.site.supernode_log
        return Command(
            name="supernode",
            arguments=arguments,
            environment=self.environment(),
            log=log,
            # the bundle is the coordinator's code, and reads its environment
            inherits="ordinary",
        )


def read_named(path: Path, join: JoinFile) -> bytes:
    """The bytes that the join file names.

    Raises:
        ProvisioningError: The file cannot be read, is too large, or holds others.

    """
    content = read_content(path)
    if (got := bundle_digest(content)) != join.bundle:
        raise ProvisioningError(f"{path}: its digest is {got}; the join file names {join.bundle}")
    return content


def holds_bundle(apps: Path, digest: str) -> bool:
    """Whether Flower's folder of apps has the bundle with this digest, ``sha256:…``, in a folder that is no link.

    Raises:
        OSError: It cannot be looked at.

    """
    if apps.is_symlink():
        return False
    found = [path for path in apps.iterdir() if path.name.endswith(folder_ending(digest))]
    return len(found) == 1 and not found[0].is_symlink() and (found[0] / PROJECT).is_file()


def _program_text() -> str:
    """``-P``: the folder of our own modules must not come first where the bundle's are to be found."""
    return f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P {shlex.quote(str(bundle_gate.__file__))} "$@"\n'


def proxy_exceptions(environment: Mapping[str, str]) -> dict[str, str]:
    """Hosts that no proxy is asked for: what the site has set already, and loopback."""
    named = [host for key in ("NO_PROXY", "no_proxy") for host in environment.get(key, "").split(",")]
    hosts = dict.fromkeys(host.strip() for host in (*named, *_LOOPBACK) if host.strip())
    return dict.fromkeys(("NO_PROXY", "no_proxy"), ",".join(hosts))


def steward_node_config(site: SiteConfig) -> str:
    """``--node-config`` of a SuperNode beside the site's steward."""
    return f'steward="unix://{site.service.socket}" token="{site.service.token}"'
