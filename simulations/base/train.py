"""Rebuild the small base model from its public pictures: ``python -m simulations.base.train``.

Takes two to three CPU-hours; stop it at any time and the same command goes on where it was. Needs ``npm`` and the extra
``darkroom[base]``. The result is a diffusers directory in float16 with a contact sheet of samples beside it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
import typer
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import make_image_grid
from PIL import Image

from simulations.base.autoencoder import psnr, train_autoencoder
from simulations.base.denoiser import build_lesson, new_scheduler, train_denoiser
from simulations.base.pictures import ICON_SETS, concept_icons, fetch_icon_set
from simulations.base.text import train_tokenizer
from simulations.base.textures import autoencoder_pool

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

MODEL_DIRECTORY = Path(__file__).parent / "model"
SAMPLE_PROMPTS = (
    "a red apple",
    "a cat",
    "a sunflower",
    "a rocket",
    "a house",
    "a pizza",
    "a panda",
    "an airplane",
    "a cactus",
    "a red heart",
    "a sailboat",
    "a smiling face",
    "a guitar",
    "an owl",
    "a birthday cake",
    "a red car",
)


def main(
    work: Annotated[Path, typer.Option(help="Where pictures and checkpoints are kept.")] = Path(".cache/base"),
    out: Annotated[Path, typer.Option(help="The model directory to write.")] = MODEL_DIRECTORY,
    autoencoder_steps: Annotated[int, typer.Option(min=1)] = 4000,
    decoder_steps: Annotated[int, typer.Option(min=1)] = 800,
    denoiser_steps: Annotated[int, typer.Option(min=1)] = 7500,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads for torch.")] = 2,
) -> None:
    """Train tokenizer, autoencoder, text encoder and UNet, and write the pipeline."""
    torch.set_num_threads(threads)
    pool = _cached_pool(work)
    vae = train_autoencoder(pool, work / "work", autoencoder_steps, decoder_steps)
    typer.echo(f"autoencoder: {psnr(vae, pool[::40]):.2f} dB on its own pool")
    names = (name for style in ICON_SETS for name in fetch_icon_set(style, work)["icons"])
    tokenizer = train_tokenizer(names)
    lesson = build_lesson(concept_icons(work), vae, tokenizer)
    unet, text = train_denoiser(lesson, tokenizer, work / "work", denoiser_steps)
    pipeline = assemble(vae, tokenizer, text, unet)
    write_model(pipeline, out)
    contact_sheet(pipeline).save(out.parent / "samples.png")
    typer.echo(f"wrote {out} and {out.parent / 'samples.png'}")


def _cached_pool(work: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The autoencoder's pictures; rendering them takes a quarter of a minute."""
    kept = work / "pool.npy"
    if not kept.exists():
        pool = autoencoder_pool(work, np.random.default_rng(0))
        np.save(kept, pool)
    loaded: np.ndarray[Any, np.dtype[np.uint8]] = np.load(kept)
    return loaded


def assemble(
    vae: AutoencoderKL, tokenizer: CLIPTokenizer, text: CLIPTextModel, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """A stock pipeline of the parts, without safety checker (the base knows only icons)."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def write_model(pipeline: StableDiffusionPipeline, out: Path) -> None:
    """Save in float16, with the tokenizer in CLIP's own two files as well."""
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.to(dtype=torch.float16).save_pretrained(partial)
    pipeline.to(dtype=torch.float32)
    model = json.loads(pipeline.tokenizer.backend_tokenizer.to_str())["model"]
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]]
    (partial / "tokenizer" / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    (partial / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


def contact_sheet(pipeline: StableDiffusionPipeline) -> Image.Image:
    """Eight pictures a row, twice their size, one per prompt, fixed seed."""
    pipeline.set_progress_bar_config(disable=True)
    pictures = pipeline(
        list(SAMPLE_PROMPTS),
        num_inference_steps=30,
        guidance_scale=3.0,
        height=48,
        width=48,
        generator=[torch.Generator().manual_seed(i) for i in range(len(SAMPLE_PROMPTS))],
    ).images
    shown = [picture.resize((96, 96), Image.Resampling.LANCZOS) for picture in pictures]
    sheet: Image.Image = make_image_grid(shown, rows=len(shown) // 8, cols=8)
    return sheet


if __name__ == "__main__":
    typer.run(main)
