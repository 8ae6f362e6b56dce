"""``picture key`` and ``picture verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

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
