"""Public pictures for training the base model: fetch icon sets by package name, render them, widen them with textures.

Only needed to rebuild the base. None of the pictures that the demonstration's institutions hold is read here, so the
base knows nothing about them.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import resvg_py
from PIL import Image

from common.errors import ConfigError, SourceUnavailable
from simulations.base.concepts import ICON_CAPTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

RESOLUTION: Final = 48
ICON_SETS: Final[dict[str, str]] = {
    "noto": "@iconify-json/noto@1.2.9",
    "fluent-emoji-flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "emojione": "@iconify-json/emojione@1.2.3",
}
"""Training styles and the npm packages that hold them (Apache-2.0, MIT, CC-BY-4.0, CC-BY-4.0)."""

_SKIN_TONES: Final = ("light-skin", "medium-skin", "dark-skin", "medium-light", "medium-dark")


@dataclass(frozen=True)
class Icon:
    """One rendered icon: RGB uint8 [size, size, 3] on white, its style and its icon name."""

    style: str
    name: str
    pixels: NDArray[np.uint8]


def fetch_icon_set(style: str, cache: Path) -> dict[str, Any]:
    """The parsed ``icons.json`` of one icon set, fetched with ``npm pack`` on first use."""
    package = ICON_SETS[style]
    name, version = package.rsplit("@", 1)
    archive = cache / f"{name.strip('@').replace('/', '-')}-{version}.tgz"
    if not archive.exists():
        _npm_pack(package, cache)
    with tarfile.open(archive) as tar:
        member = tar.extractfile("package/icons.json")
        if member is None:
            raise SourceUnavailable(f"{archive}: no package/icons.json inside; delete the file and run again")
        icons: dict[str, Any] = json.load(member)
    return icons


def _npm_pack(package: str, cache: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise SourceUnavailable(
            "rebuilding the base model needs 'npm' to fetch the icon sets; install Node.js and run again"
        )
    cache.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(  # noqa: S603 - fixed argument list, no shell
        [npm, "pack", "--silent", package],
        cwd=cache,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        raise SourceUnavailable(f"npm pack {package} failed: {done.stderr.strip()[-300:]}")


def render(icons: dict[str, Any], name: str, size: int) -> NDArray[np.uint8]:
    """Render one icon to RGB uint8 [size, size, 3] on white."""
    entry = _resolve(icons, name)
    width = entry.get("width", icons.get("width", 16))
    height = entry.get("height", icons.get("height", 16))
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    box = f'width="{size}" height="{size}" viewBox="0 0 {width} {height}"'
    svg = f"<svg {spaces} {box}>{entry['body']}</svg>"
    with Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size)))) as picture:
        rgba = picture.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"), dtype=np.uint8)


def _resolve(icons: dict[str, Any], name: str) -> dict[str, Any]:
    aliases = icons.get("aliases", {})
    while name in aliases:
        name = aliases[name]["parent"]
    entry: dict[str, Any] = icons["icons"][name]
    return entry


def has_icon(icons: dict[str, Any], name: str) -> bool:
    """Whether the set draws this icon, under its own name or an alias."""
    return name in icons["icons"] or name in icons.get("aliases", {})


def concept_icons(cache: Path, size: int = RESOLUTION) -> list[Icon]:
    """Every taught subject in every training style that draws it."""
    found: list[Icon] = []
    for style in ICON_SETS:
        icons = fetch_icon_set(style, cache)
        found += [Icon(style, name, render(icons, name, size)) for name in ICON_CAPTIONS if has_icon(icons, name)]
    if not found:
        raise ConfigError("no icon of the concept list was found in any icon set")
    return found


def all_icons(cache: Path, size: int) -> Iterator[NDArray[np.uint8]]:
    """Every icon of every training style without skin-tone variants, for the autoencoder."""
    for style in ICON_SETS:
        icons = fetch_icon_set(style, cache)
        for name in icons["icons"]:
            if not any(tone in name for tone in _SKIN_TONES):
                yield render(icons, name, size)
