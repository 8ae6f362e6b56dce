from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from client.training import latents
from client.training.latents import EncodingPlan
from common.errors import DataError, EmptyFolder
from simulations.scenario.folder_latents import concatenate, encode_folder, load_shard, overlong, save_shard
from simulations.scenario.imagefolder import read_imagefolder
from tests.client.sites import write_folder

if TYPE_CHECKING:
    from pathlib import Path

    from tests.client.sites import Site


def test_shards_survive_the_disk(site: Site, tmp_path: Path) -> None:
    save_shard(site.shard, tmp_path / "shard.safetensors")
    back = load_shard(tmp_path / "shard.safetensors")
    assert torch.equal(back.mean, site.shard.mean)
    assert torch.equal(back.captions.embeddings, site.shard.captions.embeddings)
    assert torch.equal(back.caption_rows, site.shard.caption_rows)


def test_the_cache_is_used_and_a_changed_picture_or_caption_misses_it(site: Site, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mine")
    plan = EncodingPlan(resolution=site.base.resolution, horizontal_flips=False)

    def kept() -> int:
        encode_folder(site.base, folder, read_imagefolder(folder), plan, cache=tmp_path / "cache")
        return len(list((tmp_path / "cache").iterdir()))

    assert [kept(), kept()] == [1, 1]
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(folder / "00.png")
    assert kept() == 2
    metadata = folder / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("picture 1", "picture one"))
    assert kept() == 3


def test_a_damaged_cache_is_made_anew(site: Site, tmp_path: Path) -> None:
    plan = EncodingPlan(resolution=site.base.resolution, horizontal_flips=False)
    pictures = read_imagefolder(site.folder)
    encoded = encode_folder(site.base, site.folder, pictures, plan, cache=tmp_path)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:50])
    assert torch.equal(encode_folder(site.base, site.folder, pictures, plan, cache=tmp_path).mean, encoded.mean)
    assert torch.equal(load_shard(kept).mean, encoded.mean)


def test_what_an_earlier_format_or_another_arithmetic_left_in_the_cache_is_not_read(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = EncodingPlan(resolution=site.base.resolution, horizontal_flips=True)
    pictures = read_imagefolder(site.folder)
    for name, value in (("ENCODING_FORMAT", "1"), ("arithmetic_of", lambda device: f"another {device}")):
        with monkeypatch.context() as other:
            other.setattr(latents, name, value)
            encode_folder(site.base, site.folder, pictures, plan, cache=tmp_path)
    for kept in tmp_path.iterdir():
        save_shard(replace(site.shard, mean=site.shard.mean + 1), kept)
    assert torch.equal(encode_folder(site.base, site.folder, pictures, plan, cache=tmp_path).mean, site.shard.mean)
    assert len(list(tmp_path.iterdir())) == 3


def test_pictures_gone_since_the_metadata_was_read_are_named(site: Site, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "gone")
    pictures = read_imagefolder(folder)
    (folder / "01.png").unlink()
    plan = EncodingPlan(resolution=site.base.resolution, horizontal_flips=False)
    with pytest.raises(DataError, match=r"(?s)1 of 6 pictures.*01\.png"):
        encode_folder(site.base, folder, pictures, plan, cache=tmp_path / "cache")


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
    plan = EncodingPlan(resolution=site.base.resolution, horizontal_flips=False)
    with pytest.raises(DataError, match=r"(?s)2 of 6 pictures.*01\.png.*03\.png"):
        encode_folder(site.base, folder, read_imagefolder(folder), plan, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_no_pictures_is_an_error(site: Site, tmp_path: Path) -> None:
    with pytest.raises(EmptyFolder):
        encode_folder(site.base, tmp_path, [], EncodingPlan(resolution=32, horizontal_flips=False))
