"""``units``, ``nginx`` and ``preflight``: what stands around ``up`` on the coordinator's machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Directory = Annotated[Path, typer.Option(help="The federation's directory.")]


def units(
    directory: Directory = Path("federation"),
    out: Annotated[Path, typer.Option(help="Folder for the service file.")] = Path("units"),
    user: Annotated[str, typer.Option(help="Unix user of the service.")] = "darkroom-coordinator",
) -> None:
    """Write a systemd service file, hardened, and print what an administrator runs. Nothing is installed."""
    from common.host.systemd import Installation, write_service_files
    from server.federation.directory import FederationDirectory
    from server.federation.systemd import CoordinatorService

    federation = FederationDirectory(directory.resolve())
    service = CoordinatorService(
        directory=federation, config=federation.config(), user=user, installation=Installation.of_this_process()
    )
    for path in write_service_files([service.service_file()], out):
        typer.echo(f"# wrote {path}; read it, then run as root:")
    for step in service.steps(files=out.resolve()):
        typer.echo(step)


def nginx(
    directory: Directory = Path("federation"),
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("darkroom.conf"),
) -> None:
    """Write an nginx configuration that passes what the embedded listener passes. Nothing is installed."""
    from common.durable_files import PUBLIC, write_atomically
    from server.federation.directory import FederationDirectory
    from server.flower.nginx import nginx_configuration

    federation = FederationDirectory(directory.resolve())
    config = federation.config()
    write_atomically(out, nginx_configuration(federation, config).encode(), mode=PUBLIC)
    typer.echo(f"# wrote {out}; read it, then run as root:")
    typer.echo(f"cp {out} /etc/nginx/conf.d/darkroom.conf && nginx -t && systemctl reload nginx")
    if config.front != "nginx":
        typer.echo(f'# and set front = "nginx" in {federation.config_file}, so that up leaves the port to it')


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
