"""What is shown of a run without asking Flower."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from common.durable_files import write_atomically
from common.errors import ProvisioningError
from server.federation.run_files import RunFiles
from server.flower.runs import FlowerRun
from server.flower.superlink import Launch
from tests.federation.live_federation import BUNDLE, federation_on_disk, site_request

if TYPE_CHECKING:
    from pathlib import Path


def test_the_log_names_sites_where_the_loop_knows_numbers(tmp_path: Path) -> None:
    federation = federation_on_disk(tmp_path / "coordinator")
    federation.approve([site_request(tmp_path, "ash")], bundle=BUNDLE)
    write_atomically(federation.root / "nodes" / "ash.id", b"123")
    files = RunFiles(federation, "ct")
    run = FlowerRun(Launch(federation, federation.config()), files)
    with pytest.raises(ProvisioningError, match="never started"):
        run.log()
    write_atomically(files.flower_file, b"1")
    write_atomically(files.log_file, b"node=123 does not take part: timeout\nnode=1234 is late\nround=1 answered=2\n")
    assert run.log() == (
        "node=123 (ash) does not take part: timeout\nnode=1234 (unknown) is late\nround=1 answered=2\n"
    )
