from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
import torch

from client.training.latents import EncodingPlan
from common.adapter.model import Family
from common.errors import NotRepeatable
from simulations.scenario.folder_latents import (
    encode_folder,
    load_pixels,
)
from simulations.scenario.imagefolder import read_imagefolder

if TYPE_CHECKING:
    from tests.client.sites import Site


def test_latents_are_the_vaes_own(site: Site) -> None:
    vae = site.base.load_vae()
    for row, picture in enumerate(read_imagefolder(site.folder)):
        pixels = load_pixels(site.folder, picture, site.base.resolution)
        for view, shown in enumerate((pixels, pixels[:, ::-1].copy())):
            image = torch.from_numpy(shown).permute(2, 0, 1)[None].float() / 127.5 - 1
            with torch.no_grad():
                posterior = vae.encode(image).latent_dist
            scale = vae.config.scaling_factor
            torch.testing.assert_close(site.shard.mean[row, view], (posterior.mean[0] * scale).half())
            torch.testing.assert_close(site.shard.std[row, view], (posterior.std[0] * scale).half())


def test_each_picture_points_to_its_captions_embedding(site: Site) -> None:
    pipeline = site.base.pipeline()
    for row, picture in enumerate(read_imagefolder(site.folder)):
        encoded = pipeline.encode_prompt(
            picture.caption, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
        )
        caption = site.shard.captions.embeddings[site.shard.caption_rows[row]]
        torch.testing.assert_close(caption, encoded[0][0], atol=1e-5, rtol=1e-4)
        # row 0 is what caption dropout shows, which must be what sampling guides away from
        torch.testing.assert_close(site.shard.captions.embeddings[0], encoded[1][0], atol=1e-5, rtol=1e-4)
        if site.base.family is Family.SDXL:
            assert site.shard.captions.pooled is not None
            pooled = site.shard.captions.pooled[site.shard.caption_rows[row]]
            torch.testing.assert_close(pooled, encoded[2][0], atol=1e-5, rtol=1e-4)


def test_without_flips_there_is_one_view(site: Site) -> None:
    plan = EncodingPlan(resolution=site.base.resolution, horizontal_flips=False)
    shard = encode_folder(site.base, site.folder, read_imagefolder(site.folder), plan)
    assert shard.mean.shape[1] == 1
    torch.testing.assert_close(shard.mean[:, 0], site.shard.mean[:, 0])


@pytest.mark.parametrize("part", ["load_vae", "load_text_encoders"])
def test_a_device_that_encodes_one_thing_in_two_ways_is_refused(
    site: Site, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    loaded, calls = getattr(site.base, part)(), itertools.count()

    def waver(*_: object) -> None:
        models[0].get_parameter(name).data.mul_(1 + 1e-3 * next(calls))

    models = loaded if isinstance(loaded, tuple) else (loaded,)
    name = next(name for name, _ in models[0].named_parameters())
    layer = models[0].encoder if part == "load_vae" else models[0]
    layer.register_forward_pre_hook(waver)
    monkeypatch.setattr(type(site.base), part, lambda _: loaded)
    with pytest.raises(NotRepeatable, match="twice gives two results"):
        encode_folder(
            site.base,
            site.folder,
            read_imagefolder(site.folder),
            EncodingPlan(resolution=site.base.resolution, horizontal_flips=False),
        )


def test_each_view_and_caption_passes_alone_and_without_subnormals(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, bool]] = []

    def watch(_module: object, given: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor]) -> None:
        (batch, *_), tiny = (*given, *named.values()), torch.full((1,), 1e-39) * 0.5
        seen.append((len(batch), bool(tiny.view(torch.int32))))

    vae, texts = site.base.load_vae(), site.base.load_text_encoders()
    vae.encoder.register_forward_pre_hook(watch, with_kwargs=True)
    for each in texts:
        each.register_forward_pre_hook(watch, with_kwargs=True)
    monkeypatch.setattr(type(site.base), "load_vae", lambda _: vae)
    monkeypatch.setattr(type(site.base), "load_text_encoders", lambda _: texts)
    plan = EncodingPlan(resolution=site.base.resolution, horizontal_flips=True)
    encode_folder(site.base, site.folder, read_imagefolder(site.folder), plan)
    assert set(seen) == {(1, False)}
    assert len(seen) >= 2 * 6 + 3


def test_a_shards_repr_tells_nothing(site: Site) -> None:
    assert repr(site.shard) == "LatentShard(…)"
