"""``manifest new|sign|show``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from common.config import RunConfig, parse_config, read_toml
from common.errors import ProvisioningError
from common.manifest.manifest import canonical_bytes, manifest_digest, open_manifest, parse_manifest
from common.manifest.words import privacy_words, terms_words
from server.federation.directory import FederationDirectory
from server.federation.run_files import RunFiles

app = typer.Typer(help="What a run's sites agree to.", no_args_is_help=True, pretty_exceptions_enable=False)
Directory = Annotated[Path, typer.Option(help="The federation's directory.")]
Name = Annotated[str, typer.Argument(help="The run's name.")]


@app.command()
def new(
    config: Annotated[Path, typer.Argument(help="Run configuration, a TOML file.")],
    base: Annotated[Path, typer.Option(help="The base model: a diffusers directory.")],
    directory: Directory = Path("federation"),
) -> None:
    """Draft a run's manifest with every approved site, and show it in plain words."""
    from server.release.adapter_files import adapter_spec

    parsed = parse_config(read_toml(config), RunConfig, source=str(config))
    files = RunFiles(FederationDirectory(directory.resolve()), parsed.name)
    files.draft(parsed, adapter_spec(base, parsed))
    _show(files)
    typer.echo(f"wrote {files.draft_file}; next: darkroom-server manifest sign {parsed.name}")


@app.command()
def sign(name: Name, directory: Directory = Path("federation")) -> None:
    """Sign a draft; sites are asked for the file that this writes."""
    files = RunFiles(FederationDirectory(directory.resolve()), name)
    digest = manifest_digest(canonical_bytes(files.sign()))
    typer.echo(f"wrote {files.manifest_file}; digest {digest.hex()}")
    typer.echo("next: sites approve it (darkroom-client approve FILE); start it with darkroom-server run start")


@app.command()
def show(name: Name, directory: Directory = Path("federation")) -> None:
    """Show a manifest, signed or not, in plain words, with the four ε statements."""
    _show(RunFiles(FederationDirectory(directory.resolve()), name))


def _show(files: RunFiles) -> None:
    signed = files.manifest_file.exists()
    if not signed and not files.draft_file.exists():
        raise ProvisioningError(f"{files.root}: no manifest, signed or drafted; darkroom-server manifest new makes one")
    if signed:
        manifest, digest = open_manifest(files.manifest_file.read_bytes())
    else:
        data = files.draft_file.read_bytes()
        manifest, digest = parse_manifest(data), manifest_digest(data)
    typer.echo("\n".join((*terms_words(manifest, digest), privacy_words(manifest))))
    typer.echo("Signed by the coordinator." if signed else "NOT SIGNED: a draft.")
