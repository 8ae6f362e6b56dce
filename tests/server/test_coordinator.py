from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from simulations.engines.inprocess import run_inprocess
from tests.server.toy import centre, toy_client_app, toy_config, toy_coordinator

if TYPE_CHECKING:
    from pathlib import Path


def test_fedsgd_converges_to_the_mean_of_the_centres(tmp_path: Path) -> None:
    config = toy_config(40)
    final = run_inprocess(
        lambda transport: toy_coordinator(transport, tmp_path, config=config).run(resume=False), toy_client_app(), 5
    )
    np.testing.assert_allclose(final, np.mean([centre(i) for i in range(5)], axis=0), atol=1e-6)
