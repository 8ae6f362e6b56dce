"""Sample pictures as one contact sheet: a row per adapter, a column per prompt, prompts written above."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from collections.abc import Sequence

_EDGE: Final = 144
_MARGIN: Final = 8
_LABEL: Final = 96
_HEADER: Final = 52


@dataclass(frozen=True)
class SheetRow:
    """A label and one picture per prompt."""

    label: str
    pictures: tuple[Image.Image, ...]


def contact_sheet(prompts: Sequence[str], rows: Sequence[SheetRow]) -> Image.Image:
    """The rows under one another, each picture enlarged to 144 pixels a side."""
    cell = _EDGE + _MARGIN
    sheet = Image.new("RGB", (_LABEL + cell * len(prompts) + _MARGIN, _HEADER + cell * len(rows) + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    for column, prompt in enumerate(prompts):
        text = "\n".join(textwrap.wrap(prompt, 24)[:3])
        draw.multiline_text((_LABEL + column * cell, _MARGIN), text, fill="black", font=font)
    for index, row in enumerate(rows):
        top = _HEADER + index * cell
        draw.multiline_text((_MARGIN, top + _EDGE // 2 - 8), row.label, fill="black", font=font)
        for column, picture in enumerate(row.pictures):
            shown = picture.resize((_EDGE, _EDGE), Image.Resampling.LANCZOS)
            sheet.paste(shown, (_LABEL + column * cell, top))
    return sheet
