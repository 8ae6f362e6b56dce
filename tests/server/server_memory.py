"""A program: the coordinator's real loop and transport over one round of many large uploads; prints its peak in KiB.

Every institution's answer is made when Flower is asked for it, as a real one is read from the SuperLink then.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from common.errors import RoundFailed
from common.wire.messages import (
    FIELD,
    MESSAGE_TYPE,
    RECORD,
    ContributeMasked,
    SessionReady,
    ShareSessionKeys,
    decode_request,
    encode,
)
from server.rounds.transport import GridTransport
from server.run.coordinator import Coordinator
from tests.server.rounds.test_secagg_session import Ring, _unmasked, make_ring
from tests.server.toy import ToySpec

if TYPE_CHECKING:
    from collections.abc import Iterable

ROUND_KIND = "the masks did not cancel"
"""How the round ends: a hundred institutions' real masks would take ten thousand key agreements."""


@dataclass
class SiteGrid:
    """Flower's grid, as far as :class:`GridTransport` uses it."""

    ring: Ring
    requests: dict[str, tuple[int, bytes]] = field(default_factory=dict)

    def get_node_ids(self) -> list[int]:
        return list(self.ring.transport.by_node)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            ids.append(f"{len(self.requests)}-{message.metadata.dst_node_id}")
            self.requests[ids[-1]] = (message.metadata.dst_node_id, message.content.config_records[RECORD][FIELD])
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._reply(each) for each in message_ids]

    def _reply(self, message_id: str) -> Message:
        node, request = self.requests[message_id]
        answer: Any = self.ring.transport.by_node[node].answer(decode_request(request))
        asked = Message(RecordDict(), node, MESSAGE_TYPE)
        asked.__dict__["_metadata"] = SimpleNamespace(
            run_id=1,
            dst_node_id=node,
            src_node_id=1,
            message_id=message_id,
            group_id="",
            message_type=MESSAGE_TYPE,
            src_task_id=1,
            dst_task_id=None,
            created_at=time.time(),
            ttl=60.0,
        )
        return Message(RecordDict({RECORD: ConfigRecord({FIELD: encode(answer)})}), reply_to=asked)


def main(sites: int, dimension: int) -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    spec = ToySpec(dimension=dimension)
    wide = {"population": 200 * sites, "largest_site": 200, "delta": 1e-6, "sampling_rate": 0.05, "clip": 1.0}
    with tempfile.TemporaryDirectory() as folder:
        ring = make_ring(Path(folder), sites, minimum=sites, rounds=1, attempts=1, spec=spec, **wide)
        for site in ring.sites:
            site.lies = {ShareSessionKeys: lambda _: SessionReady(), ContributeMasked: _unmasked(site)}
        coordinator = Coordinator(
            config=ring.manifest.config,
            spec=spec,
            initial=np.zeros(dimension, dtype=np.float32),
            transport=GridTransport(SiteGrid(ring)),  # type: ignore[arg-type]
            observer=ring.recorder,
            directory=ring.directory,
            secure=ring.secure,
        )
        with pytest.raises(RoundFailed, match=ROUND_KIND):
            coordinator.run(resume=False)
        sys.stdout.write(f"{peak_kib()}\n")


def peak_kib() -> int:
    """This program's own peak. ``ru_maxrss`` would be at least the parent's: Linux keeps it across fork and exec."""
    (line,) = [each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("VmHWM:")]
    return int(line.split()[1])


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
