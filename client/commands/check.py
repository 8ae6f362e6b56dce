"""``check``: look at an image folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.command_line import last_words

if TYPE_CHECKING:
    from simulations.scenario.imagefolder import Picture


def check(folder: Annotated[Path, typer.Argument(help="Image folder, with metadata.jsonl or without.")]) -> None:
    """Check an image folder before a run: every picture and caption, all faults at once. Nothing is changed."""
    from simulations.scenario.imagefolder import look_at, unlisted_files
    from common.errors import DataError, EmptyFolder

    with last_words(lambda: "stopped; nothing was changed, and nothing is kept of the check: start it again"):
        found = look_at(folder)
        faults = [fault for picture in found.pictures if (fault := _fault(folder, picture))]
    converted = {name: fault for name, fault, is_converted in faults if is_converted}
    converted |= {name: name for name in found.others if _is_taken(folder, name)}
    if bad := [fault for _, fault, is_converted in faults if not is_converted]:
        listed = "\n".join(f"  - {fault}" for fault in bad)
        raise DataError(f"{folder}: {len(bad)} of {len(found.pictures)} pictures cannot be used:\n{listed}")
    usable = [picture for picture in found.pictures if picture.file_name not in converted]
    if not usable and not converted:
        raise EmptyFolder(f"{folder}: no picture that may be used")
    subjects = len({picture.subject_id for picture in usable})
    typer.echo(f"{folder}: {len(usable)} pictures of {subjects} subjects can be used")
    if without := sum(not picture.caption for picture in usable):
        typer.echo(f"{without} of them have no caption")
    for reason in converted.values():
        typer.echo(f"only through ingest, which converts it: {reason}")
    for name in found.left_out:
        typer.echo(f"not used, no consent or expired: {name}")
    for name in unlisted_files(folder, found.pictures):
        if name not in found.left_out:
            typer.echo(f"not used, no row in the metadata: {name}")
    for note in found.notes:
        typer.echo(note)


def _fault(folder: Path, picture: Picture) -> tuple[str, str, bool] | None:
    """Name, what is wrong, and whether an intake takes the picture all the same."""
    from simulations.scenario.imagefolder import load_pixels
    from common.errors import BadImage

    try:
        load_pixels(folder, picture, 16)
    except BadImage as error:
        return picture.file_name, str(error), _is_taken(folder, picture.file_name)
    return None


def _is_taken(folder: Path, name: str) -> bool:
    from client.intake.deidentify import CleanFile, clean_file
    from client.intake.folder import locate
    from client.intake.outcomes import Refused
    from client.intake.rules import IntakeRules

    path = locate(folder, name)
    return not isinstance(path, Refused) and isinstance(clean_file(path, IntakeRules(), previews=False), CleanFile)
