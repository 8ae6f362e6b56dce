"""What a drawn picture says of itself to every viewer: text in the file, and on request a line below the picture.

Anybody can take it out again; :mod:`client.drawing.credentials` adds what shows that somebody did, or changed the
picture. The prompt may be about somebody and is written only where the caller gives it.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import quoteattr

from PIL import Image, ImageDraw, ImageFont
from PIL.ExifTags import Base
from PIL.PngImagePlugin import PngInfo

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

SOURCE_TYPE: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's term for pictures that a trained model made."""
LABEL: Final = "AI-generated"
_XMP: Final = """\
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">\
<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" \
xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" \
xmp:CreatorTool={tool} Iptc4xmpExt:DigitalSourceType={source}/></rdf:RDF></x:xmpmeta>"""
_SMALLEST, _LARGEST = 6, 48
"""Pixels of the label's letters."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a picture comes from.

    Attributes:
        version: of Darkroom.
        adapter: SHA-256 of the adapter's vector, as in a release's statement.
        base: digest of the base model.
        release: the release's digest, where the adapter came in one.
        prompt: to be written into the picture; None: it stays private.

    """

    version: str
    adapter: str
    base: str
    release: str | None = None
    prompt: str | None = None

    @property
    def software(self) -> str:
        """Name and version."""
        return f"Darkroom {self.version}"

    def description(self) -> str:
        """For a person."""
        release = "" if self.release is None else f", release {self.release}"
        return f"{LABEL} picture: drawn by a Stable Diffusion model, adapter {self.adapter}{release}, base {self.base}"


def marked_png(picture: Image.Image, origin: Origin) -> bytes:
    """The picture as PNG: text chunks, EXIF and XMP that say what it is."""
    text, exif = PngInfo(), Image.Exif()
    text.add_text("Software", origin.software)
    text.add_text("Description", origin.description())
    if origin.prompt is not None:
        text.add_itxt("Comment", f"prompt: {origin.prompt}")
    xmp = _XMP.format(tool=quoteattr(origin.software), source=quoteattr(SOURCE_TYPE))
    text.add_itxt("XML:com.adobe.xmp", xmp)
    exif[Base.Software] = origin.software
    exif[Base.ImageDescription] = origin.description()
    stream = io.BytesIO()
    picture.save(stream, "PNG", pnginfo=text, exif=exif)
    return stream.getvalue()


def labelled(picture: Image.Image) -> Image.Image:
    """The picture with a line below it that says that it is generated; its own pixels stay as they are."""
    font = _fitting_font(picture.width)
    _, top, _, bottom = font.getbbox(LABEL)
    strip = round(bottom - top) + 4
    made = Image.new("RGB", (picture.width, picture.height + strip), "white")
    made.paste(picture, (0, 0))
    ImageDraw.Draw(made).text(
        (picture.width / 2, picture.height + 2 - top), LABEL, fill="black", font=font, anchor="ma"
    )
    return made


def _fitting_font(width: int) -> FreeTypeFont | ImageFont.ImageFont:
    """The largest letters with which the label is at most as wide as the picture, or the smallest there are."""
    for size in range(min(_LARGEST, max(_SMALLEST, width // 16)), _SMALLEST, -1):
        font = ImageFont.load_default(size)
        if font.getlength(LABEL) <= width:
            return font
    return ImageFont.load_default(_SMALLEST)
