"""``darkroom-client``: an institution's command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from client.commands.check import check
from client.commands.ingest import ingest, ingest_rules, pseudonym
from client.commands.joining import install, join, request
from client.commands.pictures import app as picture
from client.commands.runs import app as release
from client.commands.runs import approvals, approve, countersign, revoke, withdraw
from client.commands.site import init, preflight, status, units
from client.commands.steward import steward
from client.commands.vault import accept_clock, accept_vault, erase, expire, rotate_key
from client.private_memory import keep_memory_private
from common.command_line import last_words, log_commands, run_command_line

app = typer.Typer(help="An institution's side of Darkroom.", no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(log_commands(place=0), name="log")
app.add_typer(release, name="release")
app.add_typer(picture, name="picture")

Base = Annotated[str, typer.Option(help="Base model: a diffusers directory, or with --download a hub id.")]
Download = Annotated[bool, typer.Option("--download", help="Fetch the base from the hub if it is a hub id.")]


@app.command()
def generate(
    base: Base,
    adapter: Annotated[Path, typer.Option(help="Directory of the adapter that a run left.")],
    prompt: Annotated[list[str], typer.Option(help="What to draw; may be given several times.")],
    out: Annotated[Path, typer.Option(help="Directory for the pictures.")] = Path("pictures"),
    seed: Annotated[int, typer.Option(min=0)] = 0,
    steps: Annotated[int, typer.Option(min=1)] = 25,
    guidance: Annotated[float, typer.Option(min=0)] = 3.0,
    resolution: Annotated[int | None, typer.Option(min=16, help="Pixels per side; absent: the base's own.")] = None,
    download: Download = False,
    sign_with: Annotated[
        Path | None, typer.Option(help="Folder of the key for pictures, made with: darkroom-client picture key.")
    ] = None,
    label: Annotated[bool, typer.Option("--label", help='Write "AI-generated" below each picture.')] = False,
    write_prompt: Annotated[
        bool, typer.Option("--write-prompt", help="Write the prompt into each picture and its name.")
    ] = False,
) -> None:
    """Draw pictures from prompts with a base model and an adapter; each says in its file that it is generated."""
    from client.drawing.generation import GenerationRequest, generate_pictures  # noqa: PLC0415 - torch takes seconds to load

    request = GenerationRequest(
        base=base,
        adapter=adapter,
        prompts=tuple(prompt),
        out=out,
        seed=seed,
        steps=steps,
        guidance_scale=guidance,
        resolution=resolution,
        download=download,
        picture_key=sign_with,
        label=label,
        write_prompt=write_prompt,
    )
    with last_words(lambda: f"stopped; what was drawn so far is in {out}, and the same command draws all of it again"):
        for path in generate_pictures(request):
            typer.echo(path)


@app.command()
def digest(
    base: Annotated[str, typer.Argument(help="Base model: a diffusers directory, or with --download a hub id.")],
    download: Download = False,
) -> None:
    """Print the content digest that pins a base model in a run's configuration."""
    from common.adapter.model import open_base  # noqa: PLC0415 - torch takes seconds to load

    typer.echo(open_base(base, allow_download=download).digest)


SITE = (check, init, request, preflight, install, join, units, steward, status)
RUNS = (approve, approvals, withdraw, countersign)
VAULT = (ingest, ingest_rules, pseudonym, erase, expire, rotate_key, accept_vault, accept_clock)
for command in (*SITE, *RUNS, *VAULT):
    app.command()(command)
app.command(hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(revoke)


def main() -> None:
    """Entry point."""
    keep_memory_private()
    run_command_line(app)


if __name__ == "__main__":
    main()
