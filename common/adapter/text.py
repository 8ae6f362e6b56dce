"""Captions as the UNet is conditioned on them, number for number what the stock pipelines' ``encode_prompt`` gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from common.adapter.spec import Family

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class TextConditioning:
    """Encoded captions."""

    embeddings: Tensor
    """``float32[n, tokens, dim]``."""
    pooled: Tensor | None
    """``float32[n, p]``, SDXL only."""


@torch.no_grad()
def encode_captions(
    tokenizers: Sequence[PreTrainedTokenizerBase],
    text_encoders: Sequence[PreTrainedModel],
    family: Family,
    captions: Sequence[str],
) -> TextConditioning:
    """Encode captions; longer ones than the encoder takes are cut, see :func:`overlong_captions`.

    SD 1 and SD 2: the encoder's last hidden state. SDXL: the last but one of both encoders side by side, and the second
    encoder's pooled output.

    Args:
        tokenizers: As loaded from the base, in order.
        text_encoders: As loaded from the base, in order; the result is on their device.
        family: The base's family.
        captions: n ≥ 1 captions.

    """
    pairs = list(zip(tokenizers, text_encoders, strict=True))
    if family is not Family.SDXL:
        return TextConditioning(_forward(*pairs[0], captions)[0].float(), None)
    outputs = [_forward(tokenizer, encoder, captions, hidden=True) for tokenizer, encoder in pairs]
    embeddings = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    return TextConditioning(embeddings.float(), outputs[1].text_embeds.float())


def unconditional(
    tokenizers: Sequence[PreTrainedTokenizerBase],
    text_encoders: Sequence[PreTrainedModel],
    family: Family,
    *,
    zeros: bool,
) -> TextConditioning:
    """What stock sampling guides away from, n = 1: the empty caption, or zeros.

    Args:
        tokenizers: As loaded from the base, in order.
        text_encoders: As loaded from the base, in order.
        family: The base's family.
        zeros: The base's ``zero_unconditional``.

    """
    empty = encode_captions(tokenizers, text_encoders, family, [""])
    if not zeros:
        return empty
    pooled = None if empty.pooled is None else torch.zeros_like(empty.pooled)
    return TextConditioning(torch.zeros_like(empty.embeddings), pooled)


def overlong_captions(tokenizers: Sequence[PreTrainedTokenizerBase], captions: Sequence[str]) -> list[int]:
    """Positions of the captions that some tokenizer has to cut."""
    return [
        position
        for position, caption in enumerate(captions)
        if any(len(one(caption, verbose=False).input_ids) > one.model_max_length for one in tokenizers)
    ]


def added_conditions(family: Family, pooled: Tensor | None, *, resolution: int, batch: int) -> dict[str, Tensor] | None:
    """The UNet's ``added_cond_kwargs``: SDXL's pooled text and sizes for uncropped square pictures, else None.

    Args:
        family: The base's family.
        pooled: ``[batch, p]``, or ``[1, p]`` for all alike; SDXL only.
        resolution: Pixels per side.
        batch: Number of pictures.

    Raises:
        ValueError: SDXL without pooled text, or with another number of rows.

    """
    if family is not Family.SDXL:
        return None
    if pooled is None or pooled.shape[0] not in {1, batch}:
        raise ValueError(f"SDXL needs pooled text of {batch} rows, got {None if pooled is None else pooled.shape}")
    original_crop_target = [resolution, resolution, 0, 0, resolution, resolution]
    time_ids = torch.tensor([original_crop_target], dtype=pooled.dtype, device=pooled.device).expand(batch, -1)
    return {"text_embeds": pooled.expand(batch, -1), "time_ids": time_ids}


def _forward(
    tokenizer: PreTrainedTokenizerBase, encoder: PreTrainedModel, captions: Sequence[str], *, hidden: bool = False
) -> Any:  # noqa: ANN401 - an untyped library's output
    tokens = tokenizer(
        list(captions),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    masked = not hidden and getattr(encoder.config, "use_attention_mask", False)  # SDXL's pipeline never masks
    mask = tokens.attention_mask.to(encoder.device) if masked else None
    return encoder(tokens.input_ids.to(encoder.device), attention_mask=mask, output_hidden_states=hidden)
