from __future__ import annotations

import pytest
import torch

from common.adapter.model import Family
from tests.client.sites import Site, encoded_site

torch.set_num_threads(1)


@pytest.fixture(scope="session", params=list(Family), ids=str)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A tiny base of each family, and an encoded folder of six pictures with mirrored views."""
    return encoded_site(tmp_path_factory.mktemp("site"), request.param)
