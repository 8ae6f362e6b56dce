"""A folder's pictures and captions as latents, encoded once and kept in clear: what only a simulation may do.

The numbers are those of :func:`client.training.vault_latents.encode_vault` on the same pictures in the same order. An
institution keeps what it encodes sealed, in its vault.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from client.training.latents import CaptionTable, LatentShard, encode_caption_table, encode_pixels, square_pixels
from common.adapter.text import overlong_captions
from common.errors import EmptyFolder
from common.host.progress import bar
from simulations.scenario.imagefolder import check_images, decode

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from client.training.latents import EncodingPlan
    from common.adapter.model import BaseModel
    from simulations.scenario.imagefolder import Picture

_log: Final = logging.getLogger(__name__)
_DECODED: Final = "by the intake"
"""How files became pixels; what was kept of pixels that came about in another way is encoded anew."""


def load_pixels(folder: Path, picture: Picture, resolution: int) -> NDArray[np.uint8]:
    """One picture as RGB uint8 [resolution, resolution, 3]: upright, its centre square.

    Raises:
        BadImage: As :func:`simulations.scenario.imagefolder.decode`.

    """
    return square_pixels(Image.fromarray(decode(folder, picture)), resolution)


def encode_folder(
    base: BaseModel, folder: Path, pictures: Sequence[Picture], plan: EncodingPlan, *, cache: Path | None = None
) -> LatentShard:
    """Encode every picture and caption of a folder, or read them from ``cache``, a directory that keeps them in clear.

    Raises:
        EmptyFolder: No pictures.
        DataError: Pictures that cannot be used; the text lists each of them.

    """
    if not pictures:
        raise EmptyFolder(f"{folder}: no pictures to encode; put images and their metadata.jsonl there")
    kept = None if cache is None else cache / f"{_cache_key(base, folder, pictures, plan)}.safetensors"
    if kept is not None and (found := _cached(kept)) is not None:
        return found
    shard = _encode(base, folder, pictures, plan)
    if kept is not None:
        save_shard(shard, kept)
    return shard


def _encode(base: BaseModel, folder: Path, pictures: Sequence[Picture], plan: EncodingPlan) -> LatentShard:
    check_images(folder, pictures)
    pixels = (load_pixels(folder, picture, plan.resolution) for picture in pictures)
    with bar("encoding pictures", len(pictures)) as advance:
        encoded = []
        for both in encode_pixels(base, pixels, plan, source=str(folder)):
            encoded.append(both)
            advance(1)
    mean, std = (torch.stack(parts) for parts in zip(*encoded, strict=True))
    distinct = sorted({picture.caption for picture in pictures} - {""})
    place = {"": 0} | {caption: row for row, caption in enumerate(distinct, start=1)}
    rows = torch.tensor([place[picture.caption] for picture in pictures])
    return LatentShard(mean, std, rows, encode_caption_table(base, distinct, plan))


def overlong(base: BaseModel, pictures: Sequence[Picture]) -> tuple[str, ...]:
    """File names of pictures whose caption is longer than the text encoder reads; the rest of it is cut off."""
    rows = overlong_captions(base.load_tokenizers(), [picture.caption for picture in pictures])
    return tuple(pictures[row].file_name for row in rows)


def _cache_key(base: BaseModel, folder: Path, pictures: Sequence[Picture], plan: EncodingPlan) -> str:
    """Digest of everything the encoding depends on, contents of the files included."""
    state = hashlib.sha256()
    for part in (_DECODED, plan.made_by(), base.digest, str(plan.resolution), str(plan.horizontal_flips)):
        state.update(part.encode() + b"\0")
    for picture in pictures:
        state.update(f"{_content(folder / picture.file_name)}\0{picture.caption}\0".encode())
    return state.hexdigest()


def _content(path: Path) -> str:
    """Digest of a file; empty for one that cannot be read, which the check before the encoding then names."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def _cached(path: Path) -> LatentShard | None:
    """The shard that is kept there, if there is one and it is whole."""
    if not path.exists():
        return None
    try:
        return load_shard(path)
    except (OSError, SafetensorError, KeyError) as error:
        _log.warning("%s: a damaged cache is made anew (%s)", path, error)
        return None


def save_shard(shard: LatentShard, path: Path) -> None:
    """Write the shard as safetensors, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"mean": shard.mean, "std": shard.std, "rows": shard.caption_rows, "text": shard.captions.embeddings}
    if shard.captions.pooled is not None:
        arrays["pooled"] = shard.captions.pooled
    partial = path.with_suffix(f".{os.getpid()}.partial")  # two runs may share a cache
    try:
        save_file({key: np.ascontiguousarray(value.numpy()) for key, value in arrays.items()}, partial)
    except SafetensorError as error:  # as on a full disk; it names no file
        partial.unlink(missing_ok=True)
        raise OSError(errno.EIO, str(error), str(path)) from error
    partial.replace(path)


def load_shard(path: Path) -> LatentShard:
    """Read a shard that ``save_shard`` wrote."""
    arrays = {key: torch.from_numpy(value) for key, value in load_file(path).items()}
    captions = CaptionTable(arrays["text"], arrays.get("pooled"))
    return LatentShard(arrays["mean"], arrays["std"], arrays["rows"], captions)


def concatenate(shards: Sequence[LatentShard]) -> LatentShard:
    """One shard of several, with one caption table; captions that two shards share may stand in it twice."""
    if not shards:
        raise EmptyFolder("no shards to join")
    offsets = np.cumsum([0, *(len(shard.captions.embeddings) for shard in shards[:-1])])
    rows = [
        # row 0 is the empty caption everywhere: it stays row 0, which caption dropout relies on
        torch.where(shard.caption_rows == 0, 0, shard.caption_rows + int(offset))
        for shard, offset in zip(shards, offsets, strict=True)
    ]
    pooled = [shard.captions.pooled for shard in shards if shard.captions.pooled is not None]
    captions = CaptionTable(
        torch.cat([shard.captions.embeddings for shard in shards]), torch.cat(pooled) if pooled else None
    )
    mean, std = torch.cat([shard.mean for shard in shards]), torch.cat([shard.std for shard in shards])
    return LatentShard(mean, std, torch.cat(rows), captions)
