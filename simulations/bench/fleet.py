"""Many SuperNodes in one process, each with its own key and connection, and Flower's own client code behind it.

A real SuperNode with its executor takes some 230 MiB; a hundred of them fit on no small machine. What the server sees
is the same: logins, heartbeats, pulls at the same pace, and replies in pieces. What is left out is the process that
a real one starts for each message.
"""

from __future__ import annotations

import argparse
import threading
import time
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.cli.supernode.register import try_load_public_key
from flwr.proto.control_pb2 import RegisterNodeRequest
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supernode.fleet_http_connection import http_request_response

from client.connection.supernode_process import FLOWERS_WAIT, Pace
from common.wire.messages import FIELD, RECORD

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from common.wire.messages import StewardPort


@dataclass
class Fleet:
    """A context in which every node of ``stewards`` is online and answers in the words of its steward."""

    address: str
    authority: Path
    keys: Mapping[str, Path]
    """Node key by name."""
    stewards: Mapping[str, StewardPort]
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        for name in self.stewards:
            thread = threading.Thread(target=self._serve, args=(name,), daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(10)

    def _serve(self, name: str) -> None:
        key, trusted = _key(self.keys[name]), self.authority.read_bytes()
        with http_request_response(
            self.address, insecure=False, root_certificates=trusted, authentication_keys=key
        ) as link:
            _, receive, send, _, _, pull_object, push_object, confirm = link
            pace = Pace(sleep=self._stop.wait, clock=time.monotonic)
            while not self._stop.is_set():
                received = receive()
                if received is None:
                    pace.sleep(FLOWERS_WAIT)
                    continue
                pace.note_work()
                message = _pulled(*received, pull_object)
                confirm(message.metadata.run_id, message.metadata.message_id)
                _give_back(_reply(message, self.stewards[name]), send, push_object)


def register_nodes(address: str, authority: Path, keys: Mapping[str, Path]) -> dict[str, str]:
    """Flower's number of each node, by the node's name; its own command takes seconds for each of them.

    Args:
        address: The SuperLink's on loopback.
        authority: Whom to trust for TLS.
        keys: OpenSSH public key by name.

    """
    client = ControlHttpClient.from_server_address(
        server_address=address,
        insecure=False,
        root_certificates=authority.read_bytes(),
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
    )
    try:
        return {
            name: str(
                client.RegisterNode(
                    request=RegisterNodeRequest(public_key=try_load_public_key(path), name=name)
                ).node_id
            )
            for name, path in keys.items()
        }
    finally:
        client.close()


def _key(path: Path) -> Any:  # noqa: ANN401 - a pair of keys of Flower's
    # by its path: the package holds a function under the module's name
    module = import_module("flwr.supernode.cli.flower_supernode")
    read: Any = vars(module)["_try_setup_client_authentication"]
    return read(argparse.Namespace(auth_supernode_private_key=str(path), auth_supernode_public_key=None))


def _pulled(message: Message, tree: Any, pull_object: Callable[[int, str], bytes]) -> Message:  # noqa: ANN401 - Flower's
    run, number = message.metadata.run_id, message.metadata.message_id
    ids = [each.object_id for each in iterate_object_tree(tree)]
    contents = pull_objects(ids, pull_object_fn=lambda each: pull_object(run, each))
    made: Any = inflate_object_from_contents(number, contents)
    made.metadata.__dict__["_message_id"] = number
    whole: Message = made
    return whole


def _reply(message: Message, steward: StewardPort) -> Message:
    request = message.content.config_records[RECORD][FIELD]
    if not isinstance(request, bytes):
        raise TypeError(f"wanted request bytes, got {type(request).__name__}")
    return Message(RecordDict({RECORD: ConfigRecord({FIELD: steward.answer(request)})}), reply_to=message)


def _give_back(reply: Message, send: Callable[..., Any], push_object: Callable[..., None]) -> None:
    with no_object_id_recompute():
        reply.metadata.__dict__["_message_id"] = reply.object_id
        tree, objects = get_object_tree(reply), get_all_nested_objects(reply)
        wanted, session = send(reply, tree, 0.0)
        for number, each in objects.items():
            if number in wanted:
                push_object(reply.metadata.run_id, session, number, each.deflate())
