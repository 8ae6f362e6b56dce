"""Which policy the running steward goes by, asked while it answers, hangs, or is none."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from client.operations.new_site import make_site
from client.site.open_site import open_site
from client.site.serving_policy import note_policy, serving_policy
from common.wire import steward_link

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_a_steward_that_hangs_still_goes_by_its_policy_and_one_that_is_gone_by_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steward_link, "CONNECT_SECONDS", 1.0)
    monkeypatch.chdir(tmp_path)  # a socket's path has to be short
    make_site(tmp_path / "site", "st-vincent")
    site = open_site(tmp_path / "site" / "site.toml")
    note_policy(site)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind("site/run/steward.sock")
        silent.listen(8)
        found = serving_policy(site.config)
    assert found is not None
    assert found.policy == site.policy
    site.config.service.socket.unlink()
    assert serving_policy(site.config) is None
