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

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from PIL import Image

from common.adapter.text import encode_captions, unconditional
from common.errors import BadImage, NotRepeatable
from common.privacy.arithmetic import arithmetic_of, computed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from common.adapter.model import BaseModel
    from common.adapter.text import TextConditioning

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
    device: str = "cpu"

    def made_by(self) -> str:
        """Digest of the way in which bits come about; what has another one may not stand beside what is encoded now."""
        return hashlib.sha256(f"{ENCODING_FORMAT}\0{arithmetic_of(self.device)}".encode()).hexdigest()


def square_pixels(image: Image.Image, resolution: int) -> NDArray[np.uint8]:
    """The centre square of an RGB picture, shrunk or enlarged by Lanczos: uint8 [resolution, resolution, 3]."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.array(square.resize((resolution, resolution), Image.Resampling.LANCZOS))


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
