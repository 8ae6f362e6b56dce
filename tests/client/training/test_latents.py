from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from simulations.scenario.imagefolder import load_pixels, read_imagefolder
from client.training import latents
from client.training.latents import EncodingPlan, concatenate, encode_folder, load_shard, overlong, save_shard
from common.adapter.model import Family
from common.errors import DataError, EmptyFolder, NotRepeatable
from tests.client.sites import write_folder

if TYPE_CHECKING:
    from pathlib import Path

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


def test_shards_survive_the_disk(site: Site, tmp_path: Path) -> None:
    save_shard(site.shard, tmp_path / "shard.safetensors")
    back = load_shard(tmp_path / "shard.safetensors")
    assert torch.equal(back.mean, site.shard.mean)
    assert torch.equal(back.captions.embeddings, site.shard.captions.embeddings)
    assert torch.equal(back.caption_rows, site.shard.caption_rows)


def test_the_cache_is_used_and_a_changed_picture_or_caption_misses_it(site: Site, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mine")
    plan = EncodingPlan(resolution=site.base.resolution, horizontal_flips=False, cache=tmp_path / "cache")

    def kept() -> int:
        encode_folder(site.base, folder, read_imagefolder(folder), plan)
        return len(list((tmp_path / "cache").iterdir()))

    assert [kept(), kept()] == [1, 1]
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(folder / "00.png")
    assert kept() == 2
    metadata = folder / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("picture 1", "picture one"))
    assert kept() == 3


def test_a_damaged_cache_is_made_anew(site: Site, tmp_path: Path) -> None:
    plan = EncodingPlan(resolution=site.base.resolution, horizontal_flips=False, cache=tmp_path)
    pictures = read_imagefolder(site.folder)
    encoded = encode_folder(site.base, site.folder, pictures, plan)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:50])
    assert torch.equal(encode_folder(site.base, site.folder, pictures, plan).mean, encoded.mean)
    assert torch.equal(load_shard(kept).mean, encoded.mean)


def test_what_an_earlier_format_or_another_arithmetic_left_in_the_cache_is_not_read(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = EncodingPlan(resolution=site.base.resolution, horizontal_flips=True, cache=tmp_path)
    pictures = read_imagefolder(site.folder)
    for name, value in (("ENCODING_FORMAT", "1"), ("arithmetic_of", lambda device: f"another {device}")):
        with monkeypatch.context() as other:
            other.setattr(latents, name, value)
            encode_folder(site.base, site.folder, pictures, plan)
    for kept in tmp_path.iterdir():
        save_shard(replace(site.shard, mean=site.shard.mean + 1), kept)
    assert torch.equal(encode_folder(site.base, site.folder, pictures, plan).mean, site.shard.mean)
    assert len(list(tmp_path.iterdir())) == 3


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


def test_pictures_gone_since_the_metadata_was_read_are_named(site: Site, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "gone")
    pictures = read_imagefolder(folder)
    (folder / "01.png").unlink()
    plan = EncodingPlan(resolution=site.base.resolution, horizontal_flips=False, cache=tmp_path / "cache")
    with pytest.raises(DataError, match=r"(?s)1 of 6 pictures.*01\.png"):
        encode_folder(site.base, folder, pictures, plan)


def test_a_joined_shard_keeps_each_pictures_caption(site: Site) -> None:
    joined = concatenate([site.shard, site.shard.select([4, 1])])
    assert len(joined) == 8
    for row, source in [(0, 0), (5, 5), (6, 4), (7, 1)]:
        torch.testing.assert_close(
            joined.captions.embeddings[joined.caption_rows[row]],
            site.shard.captions.embeddings[site.shard.caption_rows[source]],
        )


def test_captions_beyond_the_token_limit_are_named(site: Site, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "long", count=2)
    metadata = folder / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("picture 1", "word " * 300))
    pictures = read_imagefolder(folder)
    assert overlong(site.base, pictures) == ("01.png",)
    plan = EncodingPlan(resolution=site.base.resolution, horizontal_flips=False)
    assert len(encode_folder(site.base, folder, pictures, plan)) == 2


def test_every_bad_picture_is_named_and_nothing_is_encoded(site: Site, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "bad")
    (folder / "01.png").write_bytes(b"")
    (folder / "03.png").write_bytes((folder / "02.png").read_bytes()[:200])
    plan = EncodingPlan(resolution=site.base.resolution, horizontal_flips=False, cache=tmp_path / "cache")
    with pytest.raises(DataError, match=r"(?s)2 of 6 pictures.*01\.png.*03\.png"):
        encode_folder(site.base, folder, read_imagefolder(folder), plan)
    assert not (tmp_path / "cache").exists()


def test_no_pictures_is_an_error(site: Site, tmp_path: Path) -> None:
    with pytest.raises(EmptyFolder):
        encode_folder(site.base, tmp_path, [], EncodingPlan(resolution=32, horizontal_flips=False))


def test_a_shards_repr_tells_nothing(site: Site) -> None:
    assert repr(site.shard) == "LatentShard(…)"
