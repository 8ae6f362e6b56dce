"""Coverage-guided fuzzing of everything that reads another party's bytes; not part of the test suite.

::

    pip install atheris pytest hypothesis    # Python 3.11, in an environment of its own
    PYTHONPATH=. python tests/common/secagg/fuzz_decoders.py -max_total_time=60 -rss_limit_mb=1024 -timeout=5 CORPUS

Signatures are taken as valid, so that mutated bytes reach what lies behind them. Anything but an error of the tree, a
hang or a memory blow-up ends the run with a crash file.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import atheris

with atheris.instrument_imports(include=["common"]):
    from common.errors import DarkroomError
    from common.manifest import manifest
    from common.secagg import aggregator, messages, participant  # noqa: F401 - imported here to be instrumented
    from common.secagg.messages import Step

if TYPE_CHECKING:
    from collections.abc import Callable


def readers() -> list[tuple[Callable[[bytes], object], bytes]]:
    """One function per kind of message, in the state that expects it, and bytes that it accepts."""
    spec = importlib.util.spec_from_file_location("worlds", Path(__file__).with_name("conftest.py"))
    assert spec is not None
    assert spec.loader is not None
    worlds = importlib.util.module_from_spec(spec)
    sys.modules["worlds"] = worlds
    spec.loader.exec_module(worlds)
    early, made = worlds.build(3, dimension=8), worlds.build(3, dimension=8).open()
    opening, invitation = early.server.create_open_session()
    pairs = [state.handle_open_session(invitation) for state in early.sites.values()]
    adverts = [advert for _, advert in pairs]
    full = opening
    for advert in adverts:
        full = full.handle_advert(advert)
    _, keys = full.create_session_keys()
    request = made.request(Step(0, 0))
    ready = made.sites[0]
    return [
        (early.sites[0].handle_open_session, invitation),
        (opening.handle_advert, adverts[0]),
        (pairs[0][0].handle_session_keys, keys),
        (ready.handle_round_request, request),
        (made.server.handle_contribution, made.answer(0, request, [1] * 8)),
        (manifest.open_manifest, manifest.sign_manifest(made.manifest, made.coordinator)),
        (manifest.parse_manifest, manifest.canonical_bytes(made.manifest)),
        (
            lambda data: manifest.verify_countersignature(made.manifest, data),
            manifest.countersign(made.manifest, made.identities[0]),
        ),
    ]


def main() -> None:
    """Fuzz until the limits given on the command line, from valid messages in the corpus folder that is named last."""
    choices = readers()
    for index, (_, good) in enumerate(choices):
        Path(sys.argv[-1], f"valid-{index}").write_bytes(bytes([index]) + good)

    def accept(*_: object) -> None:
        """Instead of a signature check."""

    messages.verify_signature = accept
    manifest.verify_signature = accept

    def one(data: bytes) -> None:
        if data:
            with contextlib.suppress(DarkroomError):
                choices[data[0] % len(choices)][0](data[1:])

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
