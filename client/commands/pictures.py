"""Commands about generated pictures: generate, the digest of a base, picture key, picture verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

Base = Annotated[str, typer.Option(help="Base model: a diffusers directory, or with --download a hub id.")]
Download = Annotated[bool, typer.Option("--download", help="Fetch the base from the hub if it is a hub id.")]
PNG_BEGINS: Final = b"\x89PNG\r\n\x1a\n"

app = typer.Typer(help="Signed pictures.", no_args_is_help=True, pretty_exceptions_enable=False)


@app.command()
def key(
    folder: Annotated[Path, typer.Argument(help="Folder for the key and its certificates.")],
    institution: Annotated[str, typer.Option(help="The name that viewers show.")],
) -> None:
    """Make the key with which this institution signs pictures. It stays here; the authority's file may be published."""
    from client.drawing.credentials import AUTHORITY_FILE, make_picture_key

    make_picture_key(folder, institution)
    typer.echo(f"made {folder}; whoever is to recognise your pictures needs {folder / AUTHORITY_FILE}")


@app.command()
def verify(
    picture: Annotated[Path, typer.Argument(help="A PNG file.", dir_okay=False)],
    authority: Annotated[
        Path | None, typer.Option(help="Certificate file of the institution that must have signed.")
    ] = None,
) -> None:
    """Read a picture's Content Credentials; fails if there are none, or if it was changed since."""
    from client.drawing.credentials import read_credentials
    from common.errors import BadImage
    from common.manifest.words import printable

    content = picture.read_bytes()
    if not content.startswith(PNG_BEGINS):
        raise BadImage(f"{picture}: is no PNG file; give a picture as darkroom-client generate wrote it")
    found = read_credentials(content, authority=None if authority is None else authority.read_bytes())
    if authority is not None and found.signer != "trusted":
        raise BadImage(f"{picture}: signed by somebody who calls themselves {found.institution!r}, not by {authority}")
    whose = "" if found.signer == "trusted" else ", which nobody has confirmed"
    typer.echo(f"generated picture, not changed since it was signed by {found.institution!r}{whose}")
    # whoever signed chose these words: they must not pass for a line of ours
    typer.echo(f"adapter {printable(found.adapter)}\nbase {printable(found.base)}")
    typer.echo(f"release {printable(found.release or 'none')}")
    if found.prompt is not None:
        typer.echo(f"prompt: {printable(found.prompt)}")


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
    from client.drawing.generation import GenerationRequest, generate_pictures
    from common.command_line import last_words

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


def digest(
    base: Annotated[str, typer.Argument(help="Base model: a diffusers directory, or with --download a hub id.")],
    download: Download = False,
) -> None:
    """Print the content digest that pins a base model in a run's configuration."""
    from common.adapter.model import open_base

    typer.echo(open_base(base, allow_download=download).digest)
