"""Runs where Flower would start its ``flwr-clientapp``, and lets the installed bundle through alone.

Flower installs and runs whatever bundle its server sends with a message. A read-only folder of bundles is not enough to
stop that: the version in a bundle's own project file becomes part of a path without being checked, so one that reads
``0.1.0.…/../../../../../tmp/x`` is installed, and run, in any folder that the SuperNode's user can write to.

Guarantee: no byte of a bundle is unpacked or run but of the one whose digest this site's administrator installed, and
it is loaded from where it was installed, whatever the server says of the run.

A program of its own: it is run by its path, with Flower and the standard library alone, so that the bundle's packages
are not shadowed by the ones that are installed here under the same names.
"""

from __future__ import annotations

import hashlib
import os
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

MADE_FOR: Final = "1.42."
"""Another Flower could install bundles by other functions than those that are watched here."""
INSTALLED: Final = "installed"
"""File in Flower's home that holds the installed bundle's digest."""


class ForeignBundle(Exception):
    """Its text goes to the coordinator, as Flower sends every exception's."""


def watch(runtime: Any, digest: str) -> None:  # noqa: ANN401 - a module of Flower's
    """Have Flower's module ask here before it installs a bundle.

    Args:
        runtime: ``flwr.supernode.runtime.run_clientapp``.
        digest: ``sha256:`` and the hexadecimal digest of the bundle that may run.

    """
    pull, install, project_dir = runtime.pull_task_input, runtime.install_from_fab, runtime.get_project_dir
    offered: list[tuple[Any, Any]] = []

    def pull_task_input(client: object) -> tuple[Any, ...]:
        pulled: tuple[Any, ...] = pull(client)
        offered.append(pulled[-2:])
        return pulled

    def install_from_fab(content: bytes, *arguments: object, **options: object) -> Path:
        run, fab = offered[-1]
        got = hashlib.sha256(content).hexdigest()
        if f"sha256:{got}" != digest or fab.hash_str != got:
            raise ForeignBundle("this site runs one bundle alone, and this is another")
        installed: Path = install(content, *arguments, **options)
        if project_dir(run.fab_id, run.fab_version, fab.hash_str) != installed:
            raise ForeignBundle("this run names its bundle otherwise than the bundle itself")
        return installed

    runtime.pull_task_input, runtime.install_from_fab = pull_task_input, install_from_fab


def leave_supernode_out(modules: MutableMapping[str, ModuleType]) -> None:
    """Put an empty module where Flower's package of commands loads the whole SuperNode, database and all.

    That is on the way to the one command that is wanted here, and costs each message of each round 0.4 s of CPU time
    and 30 MiB.
    """
    stand_in = ModuleType("flwr.supernode.cli.flower_supernode")
    vars(stand_in)["flower_supernode"] = None
    modules.setdefault(stand_in.__name__, stand_in)


def main() -> None:
    """Entry point."""
    if not version("flwr").startswith(MADE_FOR):
        raise SystemExit(f"flwr {version('flwr')}: bundles are kept out for {MADE_FOR}x alone; install that")
    digest = (Path(os.environ["FLWR_HOME"]) / INSTALLED).read_text(encoding="ascii")
    leave_supernode_out(sys.modules)
    watch(import_module("flwr.supernode.runtime.run_clientapp"), digest)
    run: Callable[[], None] = import_module("flwr.supernode.cli").flwr_clientapp
    sys.argv[0] = "flwr-clientapp"  # Flower decides by this name what it is
    run()


if __name__ == "__main__":
    main()
