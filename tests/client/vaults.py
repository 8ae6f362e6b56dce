"""Records and keys for tests of the vault."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from client.vault.errors import VaultDamaged
from client.vault.master_key import KeyFile, create_key_file
from client.vault.records import NewRecord
from client.vault.vault import Vault

if TYPE_CHECKING:
    from pathlib import Path

    from client.vault.records import RecordId


def png(seed: int, side: int = 8) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def record(number: int, subject: str | None = None, **changes: Any) -> NewRecord:
    image = png(number)
    values: dict[str, Any] = {
        "image": image,
        "caption": f"caption {number}",
        "subject_id": subject or f"patient {number}",
        "label": f"label {number % 2}",
        "source_name": f"file{number}.dcm",
        "exact_hash": hashlib.sha256(image).digest(),
        "perceptual_hash": number * 0x0123456789ABCDEF % (1 << 64),
    }
    return NewRecord(**values | changes)


def key_file(folder: Path, name: str = "key") -> KeyFile:
    path = folder / name
    return KeyFile(path) if path.exists() else create_key_file(path)


def filled(folder: Path, count: int = 6, name: str = "vault") -> Vault:
    """A vault of pictures of three subjects, two items computed from each of the first two pictures, and a run."""
    vault = Vault.create(folder / name, key_file(folder))
    ids = vault.add([record(number, f"patient {number % 3}") for number in range(count)])
    vault.put_derived("latents", {each: b"latent of " + each.encode() for each in ids[:2]})
    vault.put_derived("caption", {each: b"embedding of " + each.encode() for each in ids[:2]})
    vault.note_run("run one")
    return vault


def damaged(vault: Vault) -> tuple[RecordId, ...]:
    """Open every picture; the ids of those that cannot be."""
    bad = []
    for info in vault.infos():
        try:
            vault.read(info.record_id)
        except VaultDamaged:
            bad.append(info.record_id)
    return tuple(bad)
