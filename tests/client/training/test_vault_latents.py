from __future__ import annotations

import hashlib
from datetime import date
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save

from client.training import latents
from client.training.latents import EncodingPlan
from client.training.vault_latents import VaultShard, encode_vault
from client.vault.records import NewRecord
from client.vault.vault import Vault
from common.errors import EmptyFolder
from simulations.scenario.folder_latents import encode_folder
from simulations.scenario.imagefolder import read_imagefolder
from tests.client.vaults import key_file

if TYPE_CHECKING:
    from pathlib import Path

    from client.training.latents import LatentShard
    from tests.client.sites import Site

TODAY = date(2030, 6, 1)


@pytest.fixture
def vault(site: Site, tmp_path: Path) -> Vault:
    """The site's six pictures, of two subjects."""
    vault = Vault.create(tmp_path / "vault", key_file(tmp_path))
    vault.add(
        [
            NewRecord(
                image=(site.folder / picture.file_name).read_bytes(),
                caption=picture.caption,
                subject_id="even" if row % 2 == 0 else "odd",
                label="",
                source_name=picture.file_name,
                exact_hash=hashlib.sha256(picture.file_name.encode()).digest(),
                perceptual_hash=row,
                expires=date(2030, 7, 1) if row == 5 else None,
            )
            for row, picture in enumerate(read_imagefolder(site.folder))
        ]
    )
    return vault


def plan_of(site: Site) -> EncodingPlan:
    return EncodingPlan(resolution=site.base.resolution, horizontal_flips=True)


def assert_same(one: LatentShard, other: LatentShard) -> None:
    assert torch.equal(one.mean, other.mean)
    assert torch.equal(one.std, other.std)
    assert one.mean.dtype == one.std.dtype == torch.float16
    assert torch.equal(one.caption_rows, other.caption_rows)
    assert torch.equal(one.captions.embeddings, other.captions.embeddings)
    assert (one.captions.pooled is None) == (other.captions.pooled is None)
    if one.captions.pooled is not None and other.captions.pooled is not None:
        assert torch.equal(one.captions.pooled, other.captions.pooled)


def test_a_vault_encodes_to_what_its_folder_does_bit_by_bit(site: Site, vault: Vault) -> None:
    with vault:
        encoded = encode_vault(site.base, vault, plan_of(site), today=TODAY)
        assert_same(encoded.shard, encode_folder(site.base, site.folder, read_imagefolder(site.folder), plan_of(site)))
        assert encoded.record_ids == tuple(info.record_id for info in vault.infos())
        assert encoded.images == ((0,), (1,), (2,), (3,), (4,), (5,))
        assert encoded.subjects == ((0, 2, 4), (1, 3, 5))


def test_what_was_encoded_is_not_encoded_again(site: Site, vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    with vault:
        first = encode_vault(site.base, vault, plan_of(site), today=TODAY)
        state = vault.state()
        monkeypatch.setattr(type(site.base), "load_vae", None)
        monkeypatch.setattr(type(site.base), "load_text_encoders", None)
        again = encode_vault(site.base, vault, plan_of(site), today=TODAY)
        assert_same(again.shard, first.shard)
        assert vault.state() == state


def test_another_plan_or_base_is_encoded_anew(site: Site, vault: Vault) -> None:
    with vault:
        encode_vault(site.base, vault, plan_of(site), today=TODAY)
        files = len(vault._interior.blobs.names())
        plan = EncodingPlan(resolution=site.base.resolution, horizontal_flips=False)
        one = encode_vault(site.base, vault, plan, today=TODAY)
        assert one.shard.mean.shape[1] == 1
        assert len(vault._interior.blobs.names()) == files + 6


def test_what_an_earlier_format_or_another_arithmetic_left_is_made_anew_and_replaced(
    site: Site, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, base = plan_of(site), site.base.digest
    with vault:
        ids = [info.record_id for info in vault.infos()]
        wrong = {"mean": site.shard.mean[0] + 1, "std": site.shard.std[0]}
        vault.put_derived(f"latents/1/{base}/{plan.resolution}/True", dict.fromkeys(ids, save(wrong)))
        texts = save({"text": site.shard.captions.embeddings[1] + 1})
        vault.put_derived(f"no caption/1/{base}", {ids[0]: texts})
        vault.put_derived(f"caption/1/{base}", dict.fromkeys(ids[:3], texts))
        files = vault._interior.blobs.names()
        assert_same(encode_vault(site.base, vault, plan, today=TODAY).shard, site.shard)
        anew = vault._interior.blobs.names()
        assert len(anew) == len(files) == 6 + 6 + 4
        assert len(anew & files) == 6  # the pictures
        monkeypatch.setattr(latents, "arithmetic_of", lambda device: f"another {device}")
        encode_vault(site.base, vault, plan, today=TODAY)
        assert len(vault._interior.blobs.names()) == 16
        assert len(vault._interior.blobs.names() & anew) == 6


def test_a_reader_encodes_and_keeps_nothing(site: Site, vault: Vault, tmp_path: Path) -> None:
    vault.close()
    with Vault.open(tmp_path / "vault", key_file(tmp_path)) as reader:
        encoded = encode_vault(site.base, reader, plan_of(site), today=TODAY)
        assert_same(encoded.shard, site.shard)
        assert len(reader._interior.blobs.names()) == 6


def test_the_rest_is_encoded_when_pictures_come_and_go(site: Site, vault: Vault) -> None:
    with vault:
        encode_vault(site.base, vault, plan_of(site), today=TODAY)
        vault.erase_subject("even")  # takes the encoding of the empty caption and of some captions with it
        left = encode_vault(site.base, vault, plan_of(site), today=TODAY)
        assert torch.equal(left.shard.mean, site.shard.mean[1::2])
        for row, source in enumerate((1, 3, 5)):
            torch.testing.assert_close(
                left.shard.captions.embeddings[left.shard.caption_rows[row]],
                site.shard.captions.embeddings[site.shard.caption_rows[source]],
            )
        assert left.subjects == ((0, 1, 2),)


def test_expired_and_held_out_pictures_are_left_out(site: Site, vault: Vault) -> None:
    with vault:
        assert len(encode_vault(site.base, vault, plan_of(site), today=date(2030, 6, 30)).shard) == 6
        assert len(encode_vault(site.base, vault, plan_of(site), today=date(2030, 7, 1)).shard) == 5
        with pytest.raises(EmptyFolder, match="no holdout picture"):
            encode_vault(site.base, vault, plan_of(site), today=TODAY, split="holdout")


def test_encoded_items_are_sealed_and_erased(site: Site, vault: Vault, tmp_path: Path) -> None:
    with vault:
        shard = encode_vault(site.base, vault, plan_of(site), today=TODAY).shard
        planted = [part.numpy().tobytes()[8:40] for part in (shard.mean[0], shard.std[1], shard.captions.embeddings[1])]
        contents = [each.read_bytes() for each in (tmp_path / "vault").rglob("*") if each.is_file()]
        assert not [each for each in planted if any(each in content for content in contents)]
        assert vault.plan_erasure("even").derived >= 3
        vault.erase_subject("even")
        vault.erase_subject("odd")
        assert vault._interior.blobs.names() == frozenset()


def test_the_shard_prints_no_content(site: Site, vault: Vault) -> None:
    with vault:
        encoded: VaultShard = encode_vault(site.base, vault, plan_of(site), today=TODAY)
        assert repr(encoded) == "VaultShard(shard=LatentShard(…))"


def test_a_damaged_encoding_is_made_anew(site: Site, vault: Vault, tmp_path: Path) -> None:
    with vault:
        first = encode_vault(site.base, vault, plan_of(site), today=TODAY)
        pictures = {vault._interior.record(info.record_id)[0].blob.hex() for info in vault.infos()}
        for each in (tmp_path / "vault" / "blobs").iterdir():
            if each.name not in pictures:
                each.write_bytes(each.read_bytes()[:-1])
        assert_same(encode_vault(site.base, vault, plan_of(site), today=TODAY).shard, first.shard)
        assert_same(encode_vault(site.base, vault, plan_of(site), today=TODAY).shard, first.shard)
        assert len(vault._interior.blobs.names()) == 6 + 6 + 4  # pictures, their encodings, three captions and none
