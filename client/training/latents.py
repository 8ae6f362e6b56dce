"""Encode an institution's pictures and captions once; train on the cached latents ever after.

The VAE and the text encoder are loaded, used and dropped here, so that neither is in memory during training. For each
picture the posterior's mean and standard deviation are kept, and each training draw samples the latent from them,
exactly as if the picture were encoded afresh. For each distinct caption one text embedding is kept.

Guarantee: what is encoded of a picture or caption is a function of it, the plan, the base and
:func:`common.privacy.arithmetic.arithmetic_of` the device, to the last bit; no other picture or caption has a part in
it. Each passes its encoder by itself, because kernels choose by a batch's size how they round: with neighbours, up to
six coordinates of a latent came out another way, and an adapter made for the purpose turned that into a change of the
*other* picture's clipped gradient by up to twice the clip. Alone is the one rule that needs no trust in kernels. What
was kept under another arithmetic is made anew. Assumed: the device repeats itself; a public picture and the empty
caption are encoded twice to see it.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from simulations.scenario.imagefolder import check_images, load_pixels
from common.adapter.text import encode_captions, overlong_captions, unconditional
from common.errors import BadImage, DataError, EmptyFolder, NotRepeatable
from common.host.progress import bar
from common.privacy.arithmetic import arithmetic_of, computed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from simulations.scenario.imagefolder import Picture
    from common.adapter.model import BaseModel
    from common.adapter.text import TextConditioning

_log: Final = logging.getLogger(__name__)
ENCODING_FORMAT: Final = "2"
"""Of what is kept; another one is encoded anew. Format 1 was encoded in company."""


@dataclass(frozen=True)
class CaptionTable:
    """Text conditioning of distinct captions; row 0 is what guidance guides away from: the empty caption, or zeros.

    Shapes: ``embeddings`` float32 [captions, tokens, width]; ``pooled`` float32 [captions, width] for SDXL, else None.
    """

    embeddings: torch.Tensor
    pooled: torch.Tensor | None


@dataclass(frozen=True)
class LatentShard:
    """One institution's encoded pictures. Never leaves the institution; its repr shows no content.

    Shapes: ``mean`` and ``std`` float16 [pictures, views, channels, height, width], already multiplied by the VAE's
    scaling factor; ``caption_rows`` int64 [pictures] into ``captions``.
    """

    mean: torch.Tensor
    std: torch.Tensor
    caption_rows: torch.Tensor
    captions: CaptionTable

    def __repr__(self) -> str:
        """Neither content nor count."""
        return "LatentShard(…)"

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.mean)

    def select(self, rows: Sequence[int]) -> LatentShard:
        """The shard of some of the pictures; the caption table is shared, not copied."""
        chosen = torch.as_tensor(list(rows), dtype=torch.int64)
        return LatentShard(self.mean[chosen], self.std[chosen], self.caption_rows[chosen], self.captions)


@dataclass(frozen=True)
class EncodingPlan:
    """How pictures are encoded: pixels per side, and whether a mirrored view of each is cached as well."""

    resolution: int
    horizontal_flips: bool
    cache: Path | None = None
    """Directory that keeps encoded shards between runs; None keeps nothing."""
    device: str = "cpu"

    def made_by(self) -> str:
        """Digest of the way in which bits come about; what has another one may not stand beside what is encoded now."""
        return hashlib.sha256(f"{ENCODING_FORMAT}\0{arithmetic_of(self.device)}".encode()).hexdigest()


def encode_folder(base: BaseModel, folder: Path, pictures: Sequence[Picture], plan: EncodingPlan) -> LatentShard:
    """Encode every picture and caption of a folder, or read them from the cache.

    Raises:
        EmptyFolder: No pictures.
        DataError: Pictures that cannot be used; the text lists each of them.

    """
    if not pictures:
        raise EmptyFolder(f"{folder}: no pictures to encode; put images and their metadata.jsonl there")
    kept = None if plan.cache is None else plan.cache / f"{_cache_key(base, folder, pictures, plan)}.safetensors"
    if kept is not None and (found := _cached(kept)) is not None:
        return found
    shard = _encode(base, folder, pictures, plan)
    if kept is not None:
        save_shard(shard, kept)
    return shard


def _encode(base: BaseModel, folder: Path, pictures: Sequence[Picture], plan: EncodingPlan) -> LatentShard:
    bad = check_images(folder, pictures)
    if bad:
        listed = "\n".join(f"  - {fault}" for fault in bad)
        raise DataError(f"{folder}: {len(bad)} of {len(pictures)} pictures cannot be used:\n{listed}")
    mean, std = _encode_pictures(base, folder, pictures, plan)
    distinct = sorted({picture.caption for picture in pictures} - {""})
    place = {"": 0} | {caption: row for row, caption in enumerate(distinct, start=1)}
    rows = torch.tensor([place[picture.caption] for picture in pictures])
    return LatentShard(mean, std, rows, encode_caption_table(base, distinct, plan))


def _encode_pictures(
    base: BaseModel, folder: Path, pictures: Sequence[Picture], plan: EncodingPlan
) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = (load_pixels(folder, picture, plan.resolution) for picture in pictures)
    with bar("encoding pictures", len(pictures)) as advance:
        means, stds = [], []
        for mean, std in encode_pixels(base, pixels, plan, source=str(folder)):
            means.append(mean)
            stds.append(std)
            advance(1)
    return torch.stack(means), torch.stack(stds)


def encode_pixels(
    base: BaseModel, pictures: Iterable[NDArray[np.uint8]], plan: EncodingPlan, *, source: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Encode pictures of ``plan.resolution`` as they come, each view alone; the autoencoder goes with the iterator.

    Yields:
        ``mean`` and ``std`` of one picture, [views, channels, height, width].

    Raises:
        BadImage: A latent is not finite; ``source`` says whose.
        NotRepeatable: This device encodes one picture in two ways.

    """
    vae = base.load_vae().to(plan.device)
    scale = vae.config.scaling_factor

    def encode(view: NDArray[np.uint8]) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            posterior = vae.encode(_to_tensor(view).to(plan.device)).latent_dist
        return posterior.mean.cpu() * scale, posterior.std.cpu() * scale

    first, other = np.random.default_rng(0).integers(0, 256, (2, plan.resolution, plan.resolution, 3), dtype=np.uint8)
    before, _, after = (computed(partial(encode, each)) for each in (first, other, first))
    _check_repeats(before, after, f"a picture on {plan.device}")
    for pixels in pictures:
        means, stds = zip(*(computed(partial(encode, view)) for view in _views(pixels, plan)), strict=True)
        mean, std = torch.cat(means), torch.cat(stds)
        if not (torch.isfinite(mean).all() and torch.isfinite(std).all()):
            raise BadImage(f"{source}: the autoencoder gave non-finite latents; is the base model intact?")
        yield mean.half(), std.half()


def _check_repeats(first: Sequence[torch.Tensor], again: Sequence[torch.Tensor], what: str) -> None:
    if not all(np.array_equal(one.numpy(), two.numpy()) for one, two in zip(first, again, strict=True)):
        raise NotRepeatable(
            f"encoding {what} twice gives two results, so a picture's encoding would not be its own alone; set "
            'device = "cpu", or update the driver and torch'
        )


def _views(pixels: NDArray[np.uint8], plan: EncodingPlan) -> list[NDArray[np.uint8]]:
    return [pixels, pixels[:, ::-1]] if plan.horizontal_flips else [pixels]


def _to_tensor(pixels: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float() / 127.5 - 1


def encode_caption_table(base: BaseModel, captions: Sequence[str], plan: EncodingPlan) -> CaptionTable:
    """Encode distinct captions, each alone; row 0 is what guidance guides away from, caption i is row i + 1.

    Raises:
        NotRepeatable: This device encodes one caption in two ways.

    """
    encoders = tuple(encoder.to(plan.device) for encoder in base.load_text_encoders())
    tokenizers = base.load_tokenizers()

    def alone(caption: str) -> tuple[torch.Tensor, ...]:
        return _parts(encode_captions(tokenizers, encoders, base.family, [caption]))

    def nothing() -> tuple[torch.Tensor, ...]:
        return _parts(unconditional(tokenizers, encoders, base.family, zeros=base.zero_unconditional))

    before, *rows, after = (computed(partial(alone, each)) for each in ("", *captions, ""))
    _check_repeats(before, after, f"a caption on {plan.device}")
    embeddings, *pooled = (torch.cat(parts) for parts in zip(computed(nothing), *rows, strict=True))
    return CaptionTable(embeddings, pooled[0] if pooled else None)


def _parts(made: TextConditioning) -> tuple[torch.Tensor, ...]:
    embeddings = made.embeddings.cpu()
    return (embeddings,) if made.pooled is None else (embeddings, made.pooled.cpu())


def overlong(base: BaseModel, pictures: Sequence[Picture]) -> tuple[str, ...]:
    """File names of pictures whose caption is longer than the text encoder reads; the rest of it is cut off."""
    rows = overlong_captions(base.load_tokenizers(), [picture.caption for picture in pictures])
    return tuple(pictures[row].file_name for row in rows)


def _cache_key(base: BaseModel, folder: Path, pictures: Sequence[Picture], plan: EncodingPlan) -> str:
    """Digest of everything the encoding depends on, contents of the files included."""
    state = hashlib.sha256()
    for part in (plan.made_by(), base.digest, str(plan.resolution), str(plan.horizontal_flips)):
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
