"""Files that an institution's folder may hold and a decoder would rather not see; each with what must become of it.

``accepted`` and ``converted`` are kept, ``refused: REASON`` and ``duplicate`` are not. Everything is made here.
"""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from tests.client.dicom_objects import dicom_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CANARY = "CanaryXQZ"
"""Stands in every place of a file that must not survive."""


def pixels(seed: int, height: int = 64, width: int = 64) -> np.ndarray:
    """A smooth picture unlike any other seed's."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def picture(seed: int, mode: str = "RGB", kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(seed)).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, data: bytes = b"", *, colour: int = 2, depth: int = 8) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def with_exif(seed: int, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x013B] = orientation, CANARY, CANARY
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 12.0)
    exif.get_ifd(0x8825)[29] = CANARY
    xmp = f"<x:xmpmeta xmlns:x='adobe:ns:meta/'>{CANARY}</x:xmpmeta>".encode()
    return picture(seed, kind="JPEG", exif=exif.tobytes(), comment=CANARY.encode(), xmp=xmp, quality=95)


def with_chunks(seed: int) -> bytes:
    info = PngInfo()
    info.add_text("Comment", CANARY)
    info.add_itxt("Author", CANARY, zip=True)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return picture(seed, pnginfo=info, icc_profile=profile)


def animation(seed: int, kind: str) -> bytes:
    frames = [Image.fromarray(pixels(seed + i)) for i in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def archive(name: str = "x.txt") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        out.writestr(name, CANARY)
    return buffer.getvalue()


def wide(seed: int, dtype: type, mode_kind: str) -> bytes:
    values = pixels(seed)[:, :, 0].astype(dtype) * (257 if dtype is np.uint16 else 1)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, mode_kind)
    return buffer.getvalue()


def not_numbers(seed: int) -> bytes:
    values = pixels(seed)[:, :, 0].astype(np.float32)
    values[:8], values[8:16], values[16:24] = np.nan, np.inf, -np.inf
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF")
    return buffer.getvalue()


def translucent(seed: int, mode: str) -> bytes:
    image = Image.fromarray(pixels(seed)).convert("RGBA")
    image.putalpha(128)
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "plain.png": (lambda: picture(1), "accepted"),
    "plain.jpg": (lambda: picture(2, kind="JPEG"), "accepted"),
    "plain.webp": (lambda: picture(3, kind="WEBP"), "accepted"),
    "plain.bmp": (lambda: picture(4, kind="BMP"), "accepted"),
    "plain.tif": (lambda: picture(5, kind="TIFF"), "accepted"),
    "still.gif": (lambda: picture(6, mode="P", kind="GIF"), "accepted"),
    "no suffix": (lambda: picture(7), "accepted"),
    "wrong suffix.jpg": (lambda: picture(8), "accepted"),
    "wrong suffix.dcm": (lambda: picture(9), "accepted"),
    "sub/folder/deep.png": (lambda: picture(10), "accepted"),
    "grey.png": (lambda: picture(11, mode="L"), "accepted"),
    "bits.png": (lambda: picture(12, mode="1"), "accepted"),
    "palette.png": (lambda: picture(13, mode="P"), "accepted"),
    "exif.jpg": (lambda: with_exif(14), "converted"),
    "turned.jpg": (lambda: with_exif(15, 6), "converted"),
    "orientation 99.jpg": (lambda: with_exif(16, 99), "converted"),
    "chunks.png": (lambda: with_chunks(17), "converted"),
    "alpha.png": (lambda: translucent(18, "RGBA"), "converted"),
    "grey alpha.png": (lambda: translucent(19, "LA"), "converted"),
    "cmyk.jpg": (lambda: picture(20, mode="CMYK", kind="JPEG"), "converted"),
    "cmyk.tif": (lambda: picture(21, mode="CMYK", kind="TIFF"), "converted"),
    "lab.tif": (lambda: picture(22, mode="LAB", kind="TIFF"), "converted"),
    "16 bit.png": (lambda: wide(23, np.uint16, "PNG"), "converted"),
    "16 bit.tif": (lambda: wide(24, np.uint16, "TIFF"), "converted"),
    "32 bit.tif": (lambda: wide(25, np.int32, "TIFF"), "converted"),
    "float.tif": (lambda: wide(26, np.float32, "TIFF"), "converted"),
    "not numbers.tif": (lambda: not_numbers(27), "converted"),
    "archive behind.png": (lambda: picture(28) + archive(), "accepted"),
    "archive behind.jpg": (lambda: picture(29, kind="JPEG") + archive(), "accepted"),
    "script inside.jpg": (lambda: picture(30, kind="JPEG", comment=b"<script>" + CANARY.encode()), "converted"),
    "pdf behind.png": (lambda: picture(31) + b"%PDF-1.7 " + CANARY.encode(), "accepted"),
    "empty.png": (lambda: b"", "refused: EMPTY"),
    "one byte.png": (lambda: b"\x89", "refused: NOT_A_PICTURE"),
    "signature only.png": (lambda: b"\x89PNG\r\n\x1a\n", "refused: DAMAGED"),
    "truncated.png": (lambda: picture(32)[:900], "refused: DAMAGED"),
    "truncated.jpg": (lambda: picture(33, kind="JPEG")[:500], "refused: DAMAGED"),
    "truncated.tif": (lambda: picture(34, kind="TIFF")[:6000], "refused: DAMAGED"),
    "bad checksum.png": (lambda: flip(picture(35), 200), "refused: DAMAGED"),
    "zeros.jpg": (lambda: bytes(5000), "refused: NOT_A_PICTURE"),
    "random.png": (lambda: np.random.default_rng(0).bytes(5000), "refused: NOT_A_PICTURE"),
    "text.png": (CANARY.encode, "refused: NOT_A_PICTURE"),
    "drawing.svg": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "refused: FORMAT"),
    "page.html": (lambda: b"<html></html>", "refused: NOT_A_PICTURE"),
    "script.eps": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", "refused: FORMAT"),
    "archive.zip": (archive, "refused: NOT_A_PICTURE"),
    "zip slip.png": (lambda: archive("../../x"), "refused: NOT_A_PICTURE"),
    "orphan.txt": (lambda: b"a caption of nothing", "refused: NO_PICTURE"),
    "archive in chunk.png": (lambda: _in_chunk(36, archive()), "accepted"),
    "30000 by 30000.png": (lambda: png(30_000, 30_000), "refused: TOO_LARGE"),
    "2 billion wide.png": (lambda: png(2**31 - 1, 1), "refused: TOO_LARGE"),
    "bomb.png": (lambda: png(20_000, 20_000, bytes(2_000_000)), "refused: TOO_LARGE"),
    "text bomb.png": (lambda: _text_bomb(37), "refused: DAMAGED"),
    "no data.png": (lambda: png(64, 64), "refused: DAMAGED"),
    "1 by 1.png": (lambda: png(1, 1, b"\0\1\2\3"), "refused: TOO_SMALL"),
    "0 by 0.png": (lambda: png(0, 0), "refused: DAMAGED"),
    "thin.png": (lambda: png(4000, 2, bytes(2 * 12_001)), "refused: TOO_SMALL"),
    "animated.gif": (lambda: animation(38, "GIF"), "refused: SEVERAL_FRAMES"),
    "animated.webp": (lambda: animation(41, "WEBP"), "refused: SEVERAL_FRAMES"),
    "animated.png": (lambda: animation(44, "PNG"), "refused: SEVERAL_FRAMES"),
    "pages.tif": (lambda: animation(47, "TIFF"), "refused: SEVERAL_FRAMES"),
    "phone.jpg": (lambda: animation(50, "MPO"), "converted"),
    "twin.png": (lambda: picture(1), "duplicate"),
    "twin compressed.jpg": (lambda: picture(1, kind="JPEG", quality=90), "duplicate"),
    "scan.dcm": (lambda: dicom_bytes(60), "converted"),
    "scan without suffix": (lambda: dicom_bytes(61), "converted"),
    "scan frames.dcm": (lambda: dicom_bytes(62, frames=3), "converted"),
    "scan many frames.dcm": (lambda: dicom_bytes(63, frames=99), "refused: SEVERAL_FRAMES"),
    "scan without pixels.dcm": (lambda: dicom_bytes(64, pixels=False), "refused: NO_PIXELS"),
    "scan truncated.dcm": (lambda: dicom_bytes(65)[:3000], "refused: DAMAGED"),
    "scan unknown syntax.dcm": (lambda: dicom_bytes(66, syntax="1.2.840.10008.1.2.4.100"), "refused: TRANSFER_SYNTAX"),
    "scan says text.dcm": (lambda: dicom_bytes(67, BurnedInAnnotation="YES"), "refused: BURNED_IN_TEXT"),
    "scan of nobody.dcm": (lambda: dicom_bytes(68, PatientID=""), "refused: NO_SUBJECT"),
    "scan huge.dcm": (lambda: dicom_bytes(69, Rows=60_000, Columns=60_000), "refused: TOO_LARGE"),
    "scan magic only.dcm": (lambda: bytes(128) + b"DICM", "refused: DAMAGED"),
    "name with \u202e and \u00fc.png": (lambda: picture(70), "accepted"),
    "a" * 240 + ".png": (lambda: picture(71), "accepted"),
    "'; drop table records; --.png": (lambda: picture(72), "accepted"),
    "<img src=x onerror=alert(1)>.png": (lambda: picture(73), "accepted"),
    "new\nline.png": (lambda: picture(74), "accepted"),
}


def _in_chunk(seed: int, data: bytes) -> bytes:
    plain = picture(seed)
    return plain[:33] + chunk(b"zxIp", data) + plain[33:]


def _text_bomb(seed: int) -> bytes:
    plain = picture(seed)
    return plain[:33] + chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200_000_000))) + plain[33:]


def write_files(folder: Path) -> dict[str, str]:
    """Write the corpus, and what no bytes can make; the expected outcome by name."""
    for name, (make, _) in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make())
    expected = {name: outcome for name, (_, outcome) in FILES.items()}
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(picture(80))
    (folder / "link out.png").symlink_to(outside / "secret.png")
    (folder / "folder link").symlink_to(outside)
    (folder / "dangling.png").symlink_to(folder / "nothing")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "proc.png").symlink_to("/proc/self/environ")
    (folder / "z link in.png").symlink_to(folder / "plain.png")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    os.link(folder / "grey.png", folder / "hard link.png")
    (folder / ".hidden.png").write_bytes(picture(81))
    return expected | {
        "link out.png": "refused: OUTSIDE",
        "folder link": "refused: OUTSIDE",
        "dangling.png": "refused: MISSING",
        "loop.png": "refused: UNREADABLE",
        "proc.png": "refused: OUTSIDE",
        "z link in.png": "duplicate",
        "pipe.png": "refused: NOT_A_FILE",
        "hard link.png": "duplicate",
    }


def row(**fields: Any) -> bytes:
    return json.dumps({"text": "", **fields}).encode()


ROWS: tuple[tuple[bytes, str], ...] = (
    (row(file_name="a.png", text="\u202eevil\u202c \u200bzero\u0000nul"), "converted? a.png"),
    (row(file_name="b.png"), "accepted"),
    (row(file_name="a.png"), "refused: REPEATED_ROW"),
    (row(file_name="./a.png"), "refused: REPEATED_ROW"),
    (row(file_name="../outside/secret.png"), "refused: OUTSIDE"),
    (row(file_name="/etc/passwd"), "refused: OUTSIDE"),
    (row(file_name="x/../../outside/secret.png"), "refused: OUTSIDE"),
    (row(file_name="..\\outside\\secret.png"), "refused: OUTSIDE"),
    (row(file_name="a.png\0.txt"), "refused: OUTSIDE"),
    (row(file_name="link.png"), "refused: OUTSIDE"),
    (row(file_name=""), "refused: BAD_ROW"),
    (row(file_name="."), "refused: OUTSIDE"),
    (row(file_name="folder.png"), "refused: NOT_A_FILE"),
    (row(file_name="none.png"), "refused: MISSING"),
    (row(file_name="n" * 5000), "refused: UNREADABLE"),
    (b'{"file_name": "\xff\xfe.png", "text": ""}', "refused: BAD_ROW"),
    (b'{"file_name": "\\ud800.png", "text": ""}', "refused: BAD_ROW"),
    (b'{"file_name": "c.png", "text": NaN}', "refused: BAD_ROW"),
    (b'{"file_name": "c.png", "text": 7}', "refused: BAD_ROW"),
    (b'{"file_name": ["c.png"]}', "refused: BAD_ROW"),
    (b'["c.png"]', "refused: BAD_ROW"),
    (b"not json", "refused: BAD_ROW"),
    (b'{"file_name": "c.png", "text": "unfinished', "refused: BAD_ROW"),
    (b'{"file_name": "c.png", "x": ' + b"[" * 100_000 + b"}", "refused: BAD_ROW"),
    (b'{"file_name": "c.png", "text": "' + b"x" * 2_000_000 + b'"}', "refused: BAD_ROW"),
    (row(file_name="c.png", text="a", caption="b"), "refused: BAD_ROW"),
    (row(file_name="c.png", consent="perhaps"), "refused: BAD_ROW"),
    (row(file_name="c.png", expires="tomorrow"), "refused: BAD_ROW"),
    (row(file_name="d.png", consent=False), "refused: NO_CONSENT"),
    (row(file_name="e.png", consent="until 2020-01-31"), "refused: EXPIRED"),
    (row(file_name="f.png", expires="2020-01-31"), "refused: EXPIRED"),
    (row(file_name="g.png", consent="until 2999-12-31"), "accepted"),
    (row(file_name="h.png", text="y" * 50_000), "refused: BAD_CAPTION"),
    (row(file_name="i.png", text="=cmd|' /C calc'!A0"), "accepted"),
    (row(file_name="j.png", text=f"{CANARY}@example.org"), "converted"),
    (row(file_name="k.png", label="../../etc"), "accepted"),
)
"""Lines of ``metadata.jsonl`` and what becomes of what they name."""


def write_rows(folder: Path) -> list[str]:
    """Pictures, links and a byte order mark, CRLF line ends and all rows; the expected outcomes in order."""
    for number, letter in enumerate("abcdefghijkl"):
        (folder / f"{letter}.png").write_bytes(picture(100 + number))
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(picture(80))
    (folder / "link.png").symlink_to(outside / "secret.png")
    (folder / "folder.png").mkdir()
    lines = b"\r\n".join(line for line, _ in ROWS)
    (folder / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + lines + b"\r\n\r\n")
    return [outcome for _, outcome in ROWS]
