from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from common.adapter.model import BaseModel, Family
from common.adapter.text import added_conditions, encode_captions, overlong_captions, unconditional
from tests.tiny_base import MAX_TOKENS

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

CAPTIONS = ["a red apple", "", "Zwei Hunde im Schnee, 3×4 Felder", "two  dogs\n" * 30]


def test_captions_are_encoded_as_the_stock_pipeline_encodes_them(base: BaseModel) -> None:
    got = encode_captions(base.load_tokenizers(), base.load_text_encoders(), base.family, CAPTIONS)
    answer = base.pipeline().encode_prompt(
        CAPTIONS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    assert got.embeddings.dtype == torch.float32
    assert not got.embeddings.requires_grad
    assert torch.equal(got.embeddings, answer[0])
    assert got.embeddings.shape[:2] == (len(CAPTIONS), MAX_TOKENS)
    if base.family is Family.SDXL:
        assert got.pooled is not None
        assert torch.equal(got.pooled, answer[2])
    else:
        assert got.pooled is None


def test_an_attention_mask_is_used_where_the_encoder_s_configuration_says_so(
    tiny_bases: dict[Family, BaseModel],
) -> None:
    base = tiny_bases[Family.SD1]
    encoders = base.load_text_encoders()
    plain = encode_captions(base.load_tokenizers(), encoders, base.family, CAPTIONS[:1])
    encoders[0].config.use_attention_mask = True
    masked = encode_captions(base.load_tokenizers(), encoders, base.family, CAPTIONS[:1])
    answer = base.pipeline(text_encoders=encoders).encode_prompt(
        CAPTIONS[:1], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    assert torch.equal(masked.embeddings, answer[0])
    assert not torch.equal(masked.embeddings, plain.embeddings)


def test_the_unconditional_text_is_what_stock_sampling_guides_away_from(base: BaseModel) -> None:
    got = unconditional(base.load_tokenizers(), base.load_text_encoders(), base.family, zeros=base.zero_unconditional)
    answer = base.pipeline().encode_prompt(
        ["a red apple"], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
    )
    assert torch.equal(got.embeddings, answer[1])
    if base.family is Family.SDXL:
        assert got.pooled is not None
        assert torch.equal(got.pooled, answer[3])


def test_the_captions_that_are_cut_are_found(base: BaseModel) -> None:
    letters = MAX_TOKENS - 2  # one token a letter, beside start and end
    captions = ["a" * letters, "a" * (letters + 1), "short", "two dogs " * 30]
    assert overlong_captions(base.load_tokenizers(), captions) == [1, 3]
    encoded = encode_captions(base.load_tokenizers(), base.load_text_encoders(), base.family, captions).embeddings
    other = [captions[0], captions[1][:-1] + "bbb", *captions[2:]]
    again = encode_captions(base.load_tokenizers(), base.load_text_encoders(), base.family, other).embeddings
    assert not torch.equal(encoded[0], encoded[1])  # "a" inside a word and at its end are two tokens
    assert torch.equal(encoded[1], again[1])


def test_sdxl_is_told_the_sizes_as_its_pipeline_tells_them(tiny_bases: dict[Family, BaseModel]) -> None:
    base = tiny_bases[Family.SDXL]
    pooled = torch.randn(3, 24)
    got = added_conditions(base.family, pooled, resolution=32, batch=3)
    assert got is not None
    wanted = base.pipeline()._get_add_time_ids(
        (32, 32), (0, 0), (32, 32), dtype=torch.float32, text_encoder_projection_dim=24
    )
    assert torch.equal(got["time_ids"], wanted.expand(3, -1))
    assert torch.equal(got["text_embeds"], pooled)


def test_one_pooled_text_serves_a_batch(tiny_bases: dict[Family, BaseModel]) -> None:
    got = added_conditions(Family.SDXL, torch.randn(1, 24), resolution=32, batch=3)
    assert got is not None
    assert got["text_embeds"].shape == (3, 24)
    tiny_bases[Family.SDXL].load_unet()(
        torch.randn(3, 4, 8, 8), 5, encoder_hidden_states=torch.randn(3, MAX_TOKENS, 64), added_cond_kwargs=got
    )


@pytest.mark.parametrize("family", [Family.SD1, Family.SD2])
def test_other_families_have_no_added_conditions(family: Family) -> None:
    assert added_conditions(family, None, resolution=32, batch=3) is None


@pytest.mark.parametrize("pooled", [None, torch.zeros(2, 24)])
def test_pooled_text_that_does_not_fit_is_refused(pooled: Tensor | None) -> None:
    with pytest.raises(ValueError, match="pooled text of 3 rows"):
        added_conditions(Family.SDXL, pooled, resolution=32, batch=3)


def test_the_probe_reacts_to_its_captions(base: BaseModel, probe: Callable[..., Tensor]) -> None:
    # the other tests of this folder would show nothing if the UNet ignored the text
    unet = base.load_unet()
    plain = probe(unet)
    probe.text.embeddings.neg_()  # type: ignore[attr-defined]
    assert not torch.allclose(probe(unet), plain)
    probe.text.embeddings.neg_()  # type: ignore[attr-defined]
    assert torch.equal(probe(unet), plain)
