"""Flower apps as a coordinator that lies might send them: each says where it ran by leaving a file."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PROJECT = """
[project]
name = "{name}"
version = "{version}"
description = "x"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "{publisher}"
[tool.flwr.app.components]
serverapp = "{package}.server_app:app"
clientapp = "{package}.client_app:app"
[tool.flwr.app.config]
node = ""
answer = ""
"""

CLIENT = """
from pathlib import Path
Path({marker!r}).touch(mode=0o666)
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()
@app.query("ask")
def ask(message, context):
    return Message(RecordDict({{"said": ConfigRecord({{"x": "foreign"}})}}), reply_to=message)
"""

SERVER = """
import time
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()
@app.main()
def main(grid, context):
    node, answer = int(context.run_config["node"]), Path(context.run_config["answer"])
    content = RecordDict({"darkroom": ConfigRecord({"message": b"no message of ours"})})
    while node not in grid.get_node_ids():
        time.sleep(0.2)
    message = Message(content, dst_node_id=node, message_type="query.ask")
    ids = list(grid.push_messages([message]))
    replies = []
    while not replies:
        time.sleep(0.2)
        replies = list(grid.pull_messages(ids))
    (reply,) = replies
    said = f"error {reply.error.code}: {reply.error.reason}" if reply.has_error() else str(reply.content)
    answer.with_suffix(".partial").write_text(said)
    answer.with_suffix(".partial").rename(answer)
"""


def write_app(
    folder: Path, *, marker: Path, package: str = "foreign", publisher: str = "other", version: str = "1.0.0"
) -> Path:
    """An app whose client side touches ``marker`` as soon as it is imported."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").touch()
    project = PROJECT.format(name=package, package=package, publisher=publisher, version=version)
    (folder / "pyproject.toml").write_text(project)
    (folder / package / "client_app.py").write_text(textwrap.dedent(CLIENT.format(marker=str(marker))))
    (folder / package / "server_app.py").write_text(textwrap.dedent(SERVER))
    return folder
