"""One institution of the pilot: a folder of its own, made with the commands that an institution uses."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from PIL import Image

from client.imagefolder import load_pixels, read_imagefolder
from client.open_site import link_to_steward
from client.site import read_site
from client.site_vault import open_vault
from client.vault.records import NewRecord
from common.errors import StewardUnavailable
from simulations.processes import client_command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from client.imagefolder import Picture
    from common.supervision import Command

_AT_ONCE: Final = 48


@dataclass(frozen=True, kw_only=True)
class PilotSite:
    """An institution and the pictures that it starts from."""

    name: str
    root: Path
    pictures: Path
    """An image folder."""
    port: int
    """Loopback port of its SuperNode."""

    @property
    def site_file(self) -> Path:
        """Its settings."""
        return self.root / "site.toml"

    @property
    def request_file(self) -> Path:
        """What it sends to the coordinator."""
        return self.root / f"{self.name}.request"

    def fill_in(self, *, base: Path, base_digest: str, coordinator: str, unit: str) -> None:
        """What ``darkroom-client init`` leaves to people."""
        _replace(self.site_file, 'base = "base"', f'base = "{base}"')
        policy = self.root / "policy.toml"
        _replace(policy, "coordinators = []", f'coordinators = ["{coordinator}"]')
        _replace(policy, "base_digests = []", f'base_digests = ["{base_digest}"]')
        _replace(policy, 'units = ["subject"]', f'units = ["{unit}"]')
        _replace(policy, 'adapter_kinds = ["B", "core"]', 'adapter_kinds = ["AB", "B", "core"]')

    def fill_vault(self, *, resolution: int) -> int:
        """Put the pictures into the vault; how many."""
        config = read_site(self.site_file).vault
        pictures = read_imagefolder(self.pictures)
        with open_vault(config, access="write") as vault:
            for part in _parts(pictures):
                vault.add([_record(self.pictures, picture, resolution) for picture in part])
        return len(pictures)

    def steward(self) -> Command:
        """The steward's process."""
        return client_command(f"{self.name}-steward", self.root, "steward", "--config", str(self.site_file))

    def supernode(self, *, join_file: Path, bundle: Path, fingerprint: str, as_root: bool) -> Command:
        """The process that keeps the connection."""
        given = ("join", str(join_file), "--bundle", str(bundle), "--fingerprint", fingerprint)
        place = ("--directory", str(self.root), "--port", str(self.port))
        return client_command(f"{self.name}-join", self.root, *given, *place, *(("--allow-root",) if as_root else ()))

    def serves(self) -> bool:
        """Whether the steward answers on its socket."""
        try:
            return link_to_steward(read_site(self.site_file)).health().serving
        except StewardUnavailable:
            return False


def _replace(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new, 1))


def _parts(pictures: tuple[Picture, ...]) -> Iterator[tuple[Picture, ...]]:
    for start in range(0, len(pictures), _AT_ONCE):
        yield pictures[start : start + _AT_ONCE]


def _record(folder: Path, picture: Picture, resolution: int) -> NewRecord:
    stream = io.BytesIO()
    Image.fromarray(load_pixels(folder, picture, resolution)).save(stream, "PNG")
    image = stream.getvalue()
    exact = hashlib.sha256(image).digest()
    return NewRecord(
        image=image,
        caption=picture.caption,
        subject_id=picture.subject_id,
        label=picture.label,
        source_name=picture.file_name,
        exact_hash=exact,
        perceptual_hash=int.from_bytes(exact[:8], "big"),
    )
