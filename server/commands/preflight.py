"""``preflight``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def preflight(
    directory: Annotated[Path, typer.Argument(help="The federation's directory, or federation.toml in it.")],
) -> None:
    """Look at everything that ``up`` needs; exit code 0 if all is well, 1 if not. Nothing is changed."""
    from rich.console import Console

    from common.host.preflight import exit_code, findings_table, look_at
    from server.federation.directory import FederationDirectory
    from server.federation.preflight import federation_checks

    root = directory.parent if directory.name == "federation.toml" else directory
    federation = FederationDirectory(root.resolve())
    findings = look_at(federation_checks(federation, federation.config()))
    Console().print(findings_table(findings))
    raise typer.Exit(exit_code(findings))
