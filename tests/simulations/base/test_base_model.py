from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from common.adapter.model import BaseModel, open_base
from simulations.base.autoencoder import new_autoencoder, psnr
from simulations.base.concepts import ICON_CAPTIONS, captions_for
from simulations.base.denoiser import new_scheduler, new_unet, tokenise, velocity_target
from simulations.base.progress import Stage, run_stage
from simulations.base.text import MAX_TOKENS, train_tokenizer
from simulations.scenario.folder_latents import load_pixels
from simulations.scenario.imagefolder import read_imagefolder
from simulations.scenario.medical import build_institutions
from simulations.scenario.scenario import load_scenario

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return open_base(load_scenario("three-institutions").base_path())


def test_the_shipped_scenario_pins_the_shipped_base(base: BaseModel) -> None:
    assert load_scenario("three-institutions").base.digest == base.digest


def test_the_card_names_the_digest(base: BaseModel) -> None:
    assert base.digest in (base.directory.parent / "README.md").read_text()


def test_the_base_is_small_and_stock_diffusers_opens_it(base: BaseModel) -> None:
    assert sum(path.stat().st_size for path in base.directory.rglob("*") if path.is_file()) <= 16_000_000
    pipeline = StableDiffusionPipeline.from_pretrained(base.directory, dtype=torch.float32)
    assert type(pipeline.tokenizer).__name__.startswith("CLIPTokenizer")
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a red apple", height=48, width=48, num_inference_steps=2).images[0]
    assert picture.size == (48, 48)


def test_a_red_apple_is_red_and_a_blue_heart_blue(base: BaseModel) -> None:
    pipeline = base.pipeline()
    prompts = ["a red apple", "a blue heart", "a green apple"]
    seeds = [torch.Generator().manual_seed(i) for i in range(3)]
    pictures = pipeline(prompts, height=48, width=48, num_inference_steps=20, guidance_scale=3.0, generator=seeds)
    for picture, channel in zip(pictures.images, (0, 2, 1), strict=True):
        pixels = np.asarray(picture, dtype=float).reshape(-1, 3)
        coloured = pixels[np.ptp(pixels, axis=1) > 60]
        assert len(coloured) > 200
        assert coloured.mean(axis=0).argmax() == channel


def test_the_autoencoder_reconstructs_every_institutions_holdout(base: BaseModel) -> None:
    cache = Path(".cache")
    if not (cache / "institutions-48").is_dir():
        pytest.skip("the institutions' pictures are not built; run 'darkroom-sim fetch'")
    vae = base.load_vae()
    for made in build_institutions(cache / "institutions-48", cache / "sources", resolution=48):
        pixels = np.stack([load_pixels(made.holdout, p, 48) for p in read_imagefolder(made.holdout)])
        assert psnr(vae, pixels) >= 23, made.name


def test_any_text_has_tokens_and_every_caption_fits() -> None:
    tokenizer = train_tokenizer(["red-apple", "wind-chime"])
    assert tokenizer.unk_token_id not in tokenizer("naïve 漢字 🙂", add_special_tokens=False).input_ids
    for phrase in ICON_CAPTIONS.values():
        for caption in captions_for(phrase, "noto"):
            assert len(tokenizer(caption).input_ids) < MAX_TOKENS
    assert tokenise(tokenizer, ("a", "a red apple")).shape == (2, MAX_TOKENS)


def test_the_recipes_parts_fit_together() -> None:
    vae, unet = new_autoencoder(), new_unet()
    latents = vae.encode(torch.zeros(1, 3, 48, 48)).latent_dist.mode()
    assert latents.shape == (1, unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    scheduler = new_scheduler()
    assert float(scheduler.alphas_cumprod[-1]) == 0
    noise = torch.ones_like(latents)
    expected = scheduler.alphas_cumprod[500]
    velocity = velocity_target(torch.zeros_like(latents), noise, expected[None])
    torch.testing.assert_close(velocity, expected.sqrt() * noise)


def test_training_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    def train(checkpoint: Path, until: int) -> torch.Tensor:
        torch.manual_seed(0)
        module = torch.nn.Linear(2, 1)
        optimizer = torch.optim.AdamW(module.parameters())

        def step(index: int) -> float:
            optimizer.zero_grad()
            loss = module(torch.full((1, 2), float(index))).pow(2).sum()
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        run_stage(Stage("toy", until, {"module": module}, optimizer, checkpoint), step)
        return torch.cat([module.weight.detach().flatten(), module.bias.detach()])

    train(tmp_path / "stopped.pt", 3)
    assert torch.equal(train(tmp_path / "stopped.pt", 7), train(tmp_path / "whole.pt", 7))
