from __future__ import annotations

import pytest
import torch

from simulations.scenario.imagefolder import read_imagefolder
from client.training.latents import EncodingPlan, encode_folder
from common.adapter.model import Family, open_base
from tests.client.sites import Site, write_folder
from tests.tiny_base import write_tiny_base

torch.set_num_threads(1)


@pytest.fixture(scope="session", params=list(Family), ids=str)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A tiny base of each family, and an encoded folder of six pictures with mirrored views."""
    root = tmp_path_factory.mktemp("site")
    base = open_base(write_tiny_base(root / "base", request.param))
    folder = write_folder(root / "pictures")
    plan = EncodingPlan(resolution=base.resolution, horizontal_flips=True)
    return Site(base, folder, encode_folder(base, folder, read_imagefolder(folder), plan))
