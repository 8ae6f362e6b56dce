from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from common.adapter.model import BaseModel, Family, open_base
from common.errors import BadModelDirectory
from tests.tiny_base import write_tiny_base

if TYPE_CHECKING:
    from collections.abc import Callable


def test_each_family_is_told_apart(tiny_bases: dict[Family, BaseModel]) -> None:
    predictions = {Family.SD1: "epsilon", Family.SD2: "v_prediction", Family.SDXL: "epsilon"}
    for family, base in tiny_bases.items():
        assert base.family is family
        assert base.prediction_type == predictions[family]
        assert (base.resolution, base.scale_factor, base.latent_channels) == (32, 4, 4)
        assert base.zero_unconditional == (family is Family.SDXL)


def test_prediction_type_does_not_decide_the_family(copied: Callable[..., Path]) -> None:
    directory = copied(Family.SD1)
    path = directory / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": "v_prediction"}))
    opened = open_base(directory)
    assert (opened.family, opened.prediction_type) == (Family.SD1, "v_prediction")


def test_parts_are_loaded_frozen_in_float32_and_evaluation_mode(base: BaseModel) -> None:
    parts = [base.load_unet(), base.load_vae(), *base.load_text_encoders()]
    assert len(parts) == (4 if base.family is Family.SDXL else 3)
    assert len(base.load_tokenizers()) == len(parts) - 2
    for part in parts:
        assert not part.training
        assert {(one.dtype, one.requires_grad) for one in part.parameters()} == {(torch.float32, False)}


def test_the_vae_shrinks_by_the_scale_factor(base: BaseModel) -> None:
    pixels = torch.zeros(1, 3, base.resolution, base.resolution)
    side = base.resolution // base.scale_factor
    assert base.load_vae().encode(pixels).latent_dist.mean.shape == (1, base.latent_channels, side, side)


def test_training_has_the_sampler_s_noise_schedule(base: BaseModel) -> None:
    training, sampler = base.load_scheduler(), base.load_sampler()
    torch.testing.assert_close(training.alphas_cumprod, sampler.alphas_cumprod, rtol=0, atol=0)
    assert training.config.prediction_type == base.prediction_type
    assert (training.alphas_cumprod[-1].item() == 0) == (base.family is Family.SD2)


def test_a_schedule_of_another_sampler_is_understood(copied: Callable[..., Path]) -> None:
    directory = copied(Family.SD1)
    sampler = diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", use_karras_sigmas=True)
    sampler.save_pretrained(directory / "scheduler")
    index = directory / "model_index.json"
    table = json.loads(index.read_text())
    index.write_text(json.dumps({**table, "scheduler": ["diffusers", "EulerDiscreteScheduler"]}))
    opened = open_base(directory)
    assert isinstance(opened.load_sampler(), diffusers.EulerDiscreteScheduler)
    torch.testing.assert_close(opened.load_scheduler().alphas_cumprod, sampler.alphas_cumprod)


@pytest.mark.parametrize("name", ["NoSuchScheduler", "AutoencoderKL", "__version__"])
def test_a_scheduler_that_is_none_is_refused(copied: Callable[..., Path], name: str) -> None:
    directory = copied()
    index = directory / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "scheduler": ["diffusers", name]}))
    with pytest.raises(BadModelDirectory, match=name):
        open_base(directory).load_sampler()


def test_a_schedule_that_cannot_be_made_is_refused(copied: Callable[..., Path]) -> None:
    directory = copied()
    path = directory / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "beta_schedule": "no such"}))
    opened = open_base(directory)
    with pytest.raises(BadModelDirectory, match="no such"):
        opened.load_scheduler()
    with pytest.raises(BadModelDirectory, match="no such"):
        opened.load_sampler()


def test_the_pipeline_loads_and_draws_without_a_word(base: BaseModel, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    pictures = base.pipeline()("a cat", num_inference_steps=2, output_type="np").images
    assert pictures.shape == (1, 32, 32, 3)
    assert capfd.readouterr() == ("", "")
    assert transformers.utils.logging.is_progress_bar_enabled()


def test_the_pipeline_takes_the_parts_it_is_given(base: BaseModel) -> None:
    unet, vae, encoders = base.load_unet(), base.load_vae(), base.load_text_encoders()
    pipeline = base.pipeline(unet, vae=vae, text_encoders=encoders)
    assert pipeline.unet is unet
    assert pipeline.vae is vae
    assert pipeline.text_encoder is encoders[0]


def _drop(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(list(tensors.items())[1:])


def _reshape(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    name = next(name for name, value in tensors.items() if value.ndim == 2)
    return {**tensors, name: tensors[name][:, :-1].contiguous()}


def _poison(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    name, value = next(iter(tensors.items()))
    return {**tensors, name: torch.full_like(value, float("nan"))}


@pytest.mark.parametrize("damage", [_drop, _reshape, _poison], ids=["missing", "reshaped", "not-finite"])
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_weights_that_do_not_fit_are_refused_on_loading(
    copied: Callable[..., Path], damage: Callable[..., dict[str, torch.Tensor]], part: str
) -> None:
    directory = copied(Family.SDXL)
    path = next((directory / part).glob("*.safetensors"))
    save_file(damage(load_file(path)), path, metadata={"format": "pt"})
    opened = open_base(directory)
    load = opened.load_text_encoders if part.startswith("text") else getattr(opened, f"load_{part}")
    with pytest.raises(BadModelDirectory, match=str(directory / part)):
        load()


def test_a_broken_vocabulary_is_refused_on_loading(copied: Callable[..., Path]) -> None:
    directory = copied()
    (directory / "tokenizer" / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(BadModelDirectory, match="no CLIP tokenizer"):
        open_base(directory).load_tokenizers()


def test_half_precision_and_sharded_weights_are_loaded(tiny_bases: dict[Family, BaseModel], tmp_path: Path) -> None:
    source = tiny_bases[Family.SD1]
    pipeline = source.pipeline()
    pipeline.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert (tmp_path / "shards" / "unet" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    pipeline.to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    assert (tmp_path / "half" / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    wanted = source.load_unet().state_dict()
    for directory, tolerance in ((tmp_path / "shards", 0.0), (tmp_path / "half", 1e-3)):
        opened = open_base(directory)
        assert opened.digest != source.digest
        opened.load_text_encoders()
        got = opened.load_unet().state_dict()
        assert got.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(got[name], value, rtol=tolerance, atol=tolerance)


def test_a_missing_shard_is_named(tiny_bases: dict[Family, BaseModel], tmp_path: Path) -> None:
    tiny_bases[Family.SD1].pipeline().save_pretrained(tmp_path, max_shard_size="100KB")
    shard = next((tmp_path / "unet").glob("*-00002-of-*.safetensors"))
    shard.unlink()
    with pytest.raises(BadModelDirectory, match=f"{shard.name}: missing"):
        open_base(tmp_path)


def test_a_hub_id_is_not_fetched_unless_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: Any, **__: Any) -> str:
        raise AssertionError("no download was allowed")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    with pytest.raises(BadModelDirectory, match="If it is a name on the hub, say"):
        open_base("someone/some-model")


def test_only_safetensors_and_text_are_fetched(
    tiny_bases: dict[Family, BaseModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[str]]] = []

    def fetch(name: str, *, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(tiny_bases[Family.SD1].directory)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    opened = open_base("someone/some-model", allow_download=True)
    assert opened.digest == tiny_bases[Family.SD1].digest
    assert [name for name, _ in asked] == ["someone/some-model"]
    assert {Path(pattern).suffix for pattern in asked[0][1]} == {".json", ".txt", ".safetensors"}


def test_a_failed_download_is_a_model_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    with pytest.raises(BadModelDirectory, match="no route"):
        open_base("someone/some-model", allow_download=True)


@pytest.mark.parametrize("path", ["../x", "a/b/c", "~/model", "owner/..", "-x/y"])
def test_a_path_is_never_taken_for_a_hub_id(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")  # where none of these exists
    with pytest.raises(BadModelDirectory, match="no such directory; wanted"):
        open_base(path, allow_download=True)


def test_tiny_bases_are_reproducible_and_leave_the_generator_alone(
    tiny_bases: dict[Family, BaseModel], tmp_path: Path
) -> None:
    before = torch.random.get_rng_state()
    again = open_base(write_tiny_base(tmp_path / "again", Family.SD2))
    other = open_base(write_tiny_base(tmp_path / "other", Family.SD2, seed=1))
    assert again.digest == tiny_bases[Family.SD2].digest != other.digest
    assert torch.equal(before, torch.random.get_rng_state())
