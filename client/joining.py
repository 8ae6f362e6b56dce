"""A site's way into a federation: its keys, its request, and the join file that it gets back."""

from __future__ import annotations

import hashlib
import io
import os
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from client import bundle_gate, supernode_process
from common.certificates import create_node_key, read_node_key
from common.errors import ProvisioningError
from common.flower_commands import ENVIRONMENT, program
from common.identity_file import create_identity_file, read_identity_file
from common.provisioning import JoinFile, SiteRequest, create_request, encode_request, parse_join_file, read_small_file
from common.supervision import Command, ordinary_environment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from client.site import SiteConfig
    from client.site_layout import SiteLayout
    from common.crypto import Identity

_INSTALL_SECONDS: Final = 120.0
_LOOPBACK: Final = ("127.0.0.1", "localhost")
"""The SuperNode's own executor reaches it on loopback, which no proxy serves."""


def request_to_join(site: SiteLayout, *, name: str, contact: str) -> tuple[SiteRequest, Path]:
    """Make what keys are missing and write the request file.

    Raises:
        ProvisioningError: A name or contact that cannot be used.
        CryptoError: An identity file that cannot be read.

    """
    identity = _identity(site.identity_file)
    key = site.node_key_file
    line = read_node_key(key) if key.exists() else create_node_key(key)
    request = create_request(name=name, contact=contact, identity=identity, node_key=line)
    site.identity_public_file.write_text(request.identity + "\n")
    path = site.root / f"{request.name}.request"
    path.write_bytes(encode_request(request))
    return request, path


def _identity(path: Path) -> Identity:
    return read_identity_file(path) if path.exists() else create_identity_file(path)


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
            in_place = all(path.read_text() == text for path, text in wanted)
        except OSError:
            return False
        return in_place and not os.access(self._apps, os.W_OK)

    def install(self, join: JoinFile, bundle: Path) -> None:
        """Put authority and bundle in place and take the right to write bundles away, so that no other one runs.

        Run by an administrator, it leaves a bundle that the SuperNode's user could not even give itself the right to
        change.

        Raises:
            ProvisioningError: The bundle is another than the join file names, or Flower cannot install it.

        """
        content = bundle.read_bytes()
        check_bundle(content, join, source=str(bundle))
        self.site.authority_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.site.authority_file.write_text(join.authority)
        self._installed_file.unlink(missing_ok=True)
        apps = self._apps
        if apps.exists():
            _make_writable(apps)
            shutil.rmtree(apps)
        # a copy of the bytes that were hashed: the file could change in between
        copy = self.site.flower_home / "bundle" / bundle_file_name(content)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)
        environment = {**ordinary_environment(os.environ), **self.environment()}
        done = subprocess.run(  # noqa: S603 - Flower's program; no shell
            (program("flwr"), "install", str(copy)),
            env=environment,
            capture_output=True,
            text=True,
            timeout=_INSTALL_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise ProvisioningError(f"flwr install: code {done.returncode}: {(done.stderr or done.stdout).strip()}")
        _make_read_only(apps)
        self._program.parent.mkdir(exist_ok=True)
        self._program.write_text(_program_text())
        self._installed_file.write_text(join.bundle)
        for path in (self._program, self._program.parent, self.site.flower_home):
            path.chmod(0o755)
        for path in (self._installed_file, self.site.authority_file):
            path.chmod(0o644)

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


def _program_text() -> str:
    """``-P``: the folder of our own modules must not come first where the bundle's are to be found."""
    return f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P {shlex.quote(str(bundle_gate.__file__))} "$@"\n'


def check_bundle(content: bytes, join: JoinFile, *, source: str) -> None:
    """Refuse other bytes than the join file names.

    Raises:
        ProvisioningError: They are others.

    """
    got = f"sha256:{hashlib.sha256(content).hexdigest()}"
    if got != join.bundle:
        raise ProvisioningError(f"{source}: its digest is {got}; the join file names {join.bundle}")


def bundle_file_name(content: bytes) -> str:
    """The one name under which Flower installs these bytes: publisher, app, version and the digest's first digits.

    Raises:
        ProvisioningError: Not a bundle.

    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as bundle:
            project = tomllib.loads(bundle.read("pyproject.toml").decode())
        publisher = str(project["tool"]["flwr"]["app"]["publisher"])
        name, version = str(project["project"]["name"]), str(project["project"]["version"])
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
        raise ProvisioningError(f"not an app bundle: {error!r}; ask the coordinator for the file again") from error
    digits = hashlib.sha256(content).hexdigest()[:8]
    return Path(f"{publisher}.{name}.{version.replace('.', '-')}.{digits}.fab").name


def proxy_exceptions(environment: Mapping[str, str]) -> dict[str, str]:
    """Hosts that no proxy is asked for: what the site has set already, and loopback."""
    named = [host for key in ("NO_PROXY", "no_proxy") for host in environment.get(key, "").split(",")]
    hosts = dict.fromkeys(host.strip() for host in (*named, *_LOOPBACK) if host.strip())
    return dict.fromkeys(("NO_PROXY", "no_proxy"), ",".join(hosts))


def steward_node_config(site: SiteConfig) -> str:
    """``--node-config`` of a SuperNode beside the site's steward."""
    return f'steward="unix://{site.service.socket}" token="{site.service.token}"'


def _make_read_only(root: Path) -> None:
    """Files first, then folders from the inside out; readable for all, whatever the administrator's own files are."""
    for path in (*sorted(root.rglob("*"), reverse=True), root):
        path.chmod(0o555 if path.is_dir() else 0o444)


def _make_writable(root: Path) -> None:
    for path in (root, *(path for path in root.rglob("*") if path.is_dir())):
        path.chmod(0o700)
