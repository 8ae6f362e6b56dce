"""``preflight``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from common.host.preflight import Check


def preflight(
    directory: Annotated[Path, typer.Option(help="The site's directory.", readable=False)] = Path("site"),
    join_file: Annotated[
        Path | None, typer.Option(help="The join file: look at the connection, too. With --bundle and --fingerprint.")
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="The app bundle, a .fab file.")] = None,
    fingerprint: Annotated[str | None, typer.Option(help="The coordinator's, as heard by telephone.")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Loopback port of the SuperNode.")] = 9094,
    connection_only: Annotated[
        bool, typer.Option("--connection-only", help="As the SuperNode's user, who cannot read the vault.")
    ] = False,
) -> None:
    """Look at what steward and connection need; exit code 0 if all is well, 1 if not. Nothing is changed."""
    from rich.console import Console

    from common.errors import ProvisioningError
    from common.host.preflight import exit_code, findings_table, look_at

    sent = (join_file, bundle, fingerprint)
    if any(part is None for part in sent) and (connection_only or any(part is not None for part in sent)):
        raise ProvisioningError("give --join-file, --bundle and --fingerprint together, or none of them")
    findings = look_at(_checks(directory.resolve(), join_file, bundle, fingerprint, port, connection_only))
    Console().print(findings_table(findings))
    raise typer.Exit(exit_code(findings))


def _checks(
    directory: Path, join_file: Path | None, bundle: Path | None, fingerprint: str | None, port: int, only: bool
) -> Iterator[Check]:
    from client.connection.supernode import SuperNode
    from client.operations.preflight import Joining, connection_checks, steward_checks
    from client.site.layout import SiteLayout
    from client.site.settings import read_limits, read_site

    layout = SiteLayout(directory)
    if not only:
        yield from steward_checks(read_site(layout.site_file))
    limits, whose = read_limits(layout.site_file)
    if only:
        typer.echo(f"limits of clock, disk and certificate: {whose}", err=True)
    if join_file is not None and bundle is not None and fingerprint is not None:
        join = SuperNode(layout).open_join_file(join_file, fingerprint=fingerprint)
        yield from connection_checks(Joining(layout=layout, join=join, bundle=bundle, port=port, limits=limits))
