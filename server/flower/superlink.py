"""What a coordinator runs: SuperLink on loopback, the server app's executor, and the roster's node keys."""

from __future__ import annotations

import logging
import os
import ssl
import subprocess
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, TypeVar

import httpx
import msgspec
import uvicorn

from common.durable_files import write_atomically
from common.errors import ProvisioningError
from common.host.flower_commands import ENVIRONMENT, program
from common.host.supervision import Command
from server.flower.listener import Guard, ToldTls

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from server.federation.directory import FederationConfig, FederationDirectory

CONNECTION: Final = "darkroom"
"""Name of our SuperLink in Flower's own configuration."""
_LOOPBACK: Final = "127.0.0.1"
_COMMAND_SECONDS: Final = 60.0
T = TypeVar("T", bound=msgspec.Struct)
GONE: Final = "unregistered"
"""Flower lists a node that was unregistered for ever."""
_log = logging.getLogger(__name__)


class Node(msgspec.Struct, frozen=True, rename="kebab"):
    """A row of ``flwr supernode list``; names by Flower, which does not list the names given at registration."""

    node_id: str
    status: str


class _Nodes(msgspec.Struct, frozen=True):
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Launch:
    """The processes of one federation directory."""

    directory: FederationDirectory
    config: FederationConfig

    @property
    def flower_home(self) -> Path:
        """Flower's settings and bundles at the coordinator."""
        return self.directory.root / "flower"

    def environment(self) -> dict[str, str]:
        """Of every Flower process here."""
        return {**ENVIRONMENT, "FLWR_HOME": str(self.flower_home)}

    def commands(self) -> tuple[Command, ...]:
        """SuperLink, then the executor of server apps."""
        return (self._superlink(), self._superexec())

    def _superlink(self) -> Command:
        root = self.directory
        self.database.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        arguments = (
            *(program("flower-superlink"), "--host", _LOOPBACK, "--port", str(self.config.superlink_port)),
            *("--ssl-ca-certfile", str(root.file("ca.crt")), "--ssl-certfile", str(root.file("server.crt"))),
            *("--ssl-keyfile", str(root.file("server.key")), "--enable-supernode-auth"),
            *("--database", str(self.database), "--isolation", "process"),
            *("--superexec-auth-secret-file", str(root.superexec_secret)),
            "--disable-runtime-dependency-installation",
        )
        return replace(self._command("superlink", arguments), insists=True)

    def _superexec(self) -> Command:
        root = self.directory
        arguments = (
            *(program("flower-superexec"), "--runtime-api-address", f"{_LOOPBACK}:{self.config.superlink_port}"),
            *("--root-certificates", str(root.file("ca.crt"))),
            *("--superexec-auth-secret-file", str(root.superexec_secret)),
        )
        return self._command("superexec", arguments)

    def _command(self, name: str, arguments: tuple[str, ...]) -> Command:
        log = self.directory.root / "logs" / f"{name}.log"
        return Command(name=name, arguments=arguments, environment=self.environment(), log=log)

    def write_connection(self) -> None:
        """Flower's configuration, so that ``flwr`` finds the SuperLink."""
        table = {
            "superlink": {
                CONNECTION: {
                    "address": f"{_LOOPBACK}:{self.config.superlink_port}",
                    "root-certificates": str(self.directory.file("ca.crt")),
                }
            }
        }
        write_atomically(self.flower_home / "config.toml", msgspec.toml.encode(table))

    def is_up(self) -> bool:
        """Whether the SuperLink answers on loopback."""
        try:
            return httpx.get(f"{self._base_url()}/health", verify=self._trust(), timeout=2).is_success
        except httpx.TransportError:
            return False

    def node_id(self, name: str) -> str:
        """Flower's number of a site's node; empty before it is registered."""
        try:
            # a damaged one is no node's number either, and is then looked up again
            return self.node_file(name, "id").read_text(encoding="ascii", errors="replace")
        except FileNotFoundError:
            return ""

    def keep_node_id(self, name: str, number: str) -> None:
        """Note it."""
        write_atomically(self.node_file(name, "id"), number.encode())

    def node_file(self, name: str, kind: Literal["pub", "id"]) -> Path:
        """A site's node key or number."""
        return self.directory.root / "nodes" / f"{name}.{kind}"

    @property
    def database(self) -> Path:
        """The SuperLink's memory."""
        return self.directory.root / "state" / "superlink.db"

    def nodes(self, *, gone: Literal["listed", "left out"] = "left out") -> tuple[Node, ...]:
        """Every node that the SuperLink knows; those that were unregistered only if wanted."""
        listed = parse_flower(self.flwr("supernode", "list", CONNECTION, "--format", "json"), _Nodes).nodes
        return tuple(node for node in listed if gone == "listed" or node.status != GONE)

    def flwr(self, *arguments: str) -> str:
        """What one of Flower's own commands prints.

        Raises:
            ProvisioningError: It failed, or a SuperLink that hangs did not answer it; its words are in the message.

        """
        command: Sequence[str] = (program("flwr"), *arguments)
        environment = {**os.environ, **self.environment()}
        try:
            done = subprocess.run(  # noqa: S603 - Flower's program; no shell
                command,
                env=environment,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=_COMMAND_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ProvisioningError(f"flwr {' '.join(arguments)}: no answer in {_COMMAND_SECONDS:.0f} s") from error
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip()
            raise ProvisioningError(f"flwr {' '.join(arguments)}: code {done.returncode}: {said}")
        return done.stdout

    def listener(self) -> uvicorn.Server:
        """The public TLS listener; its ``serve()`` runs until told to end."""
        client = httpx.AsyncClient(
            base_url=self._base_url(),
            verify=self._trust(),
            timeout=60,
            trust_env=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),  # slow senders hold up no other
        )
        settings = uvicorn.Config(
            Guard(client, maximum_body=self.config.maximum_body_mib << 20),
            host=self.config.listen,
            port=self.config.public_port,
            ssl_certfile=str(self.directory.public.certificate),
            ssl_keyfile=str(self.directory.public.key),
            access_log=False,  # the guard sums up
            log_config=None,
            server_header=False,
            lifespan="on",
            ws="none",
            proxy_headers=False,  # nobody in front of us may say who the client is
        )
        settings.load()
        if settings.ssl is not None:
            settings.ssl.sslobject_class = ToldTls
        return uvicorn.Server(settings)

    def _base_url(self) -> str:
        return f"https://{_LOOPBACK}:{self.config.superlink_port}"

    def _trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.directory.file("ca.crt")))


def parse_flower(said: str, into: type[T]) -> T:
    """What Flower's commands print with ``--format json``.

    Raises:
        ProvisioningError: It has another form, or says that it could not.

    """
    if refusal := _refusal_in(said):  # first: a list without rows is also what a refusal would be taken for
        raise ProvisioningError(f"Flower could not do it: {refusal}")
    try:
        return msgspec.json.decode(said, type=into)
    except msgspec.DecodeError as error:
        raise ProvisioningError(f"Flower answered in another form than its pinned version: {error}") from error


def _refusal_in(said: str) -> str:
    """Flower's own word on what went wrong, which it prints with exit code 0; empty if there is none."""
    try:
        told = msgspec.json.decode(said, type=dict[str, object]).get("error-message")
    except msgspec.DecodeError:
        return ""
    return " ".join(told.split()) if isinstance(told, str) else ""
