"""Small random-weight pipelines of each family, for tests and dry runs: every part is real, nothing is trained.

Pictures of 32×32 pixels, latents of 8×8; a directory takes under a megabyte and a denoising step a few milliseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import diffusers
import torch
import transformers

from common.adapter.spec import Family

if TYPE_CHECKING:
    from pathlib import Path

MAX_TOKENS: Final = 77
_TEXT_WIDTH: Final = 32
_POOLED_WIDTH: Final = 24
_SCHEDULE: Final = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def write_tiny_base(directory: Path, family: Family, *, seed: int = 0) -> Path:
    """Write a pipeline directory of that family and return it.

    SD 1 and SDXL predict the noise; SD 2 predicts the velocity, with zero terminal signal-to-noise ratio. The
    same seed gives the same weights; torch's global generator is left alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {"unet": _unet(family), "vae": _vae(), "scheduler": _scheduler(family)}
        if family is Family.SDXL:
            parts |= {"text_encoder": _text_encoder(), "tokenizer": _tokenizer()}
            parts |= {"text_encoder_2": _projecting_text_encoder(), "tokenizer_2": _tokenizer()}
            pipeline = diffusers.StableDiffusionXLPipeline(**parts, add_watermarker=False)
        else:
            parts |= {"text_encoder": _text_encoder(), "tokenizer": _tokenizer()}
            unused = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
            pipeline = diffusers.StableDiffusionPipeline(**parts, **unused)
    pipeline.save_pretrained(directory, safe_serialization=True)
    return directory


def _unet(family: Family) -> diffusers.UNet2DConditionModel:
    added: dict[str, Any] = {}
    if family is Family.SDXL:
        added = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + _POOLED_WIDTH,
            "transformer_layers_per_block": [1, 2],
        }
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=2 * _TEXT_WIDTH if family is Family.SDXL else _TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
        use_linear_projection=family is not Family.SD1,
        **added,
    )


def _vae() -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        sample_size=32,
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.5,
    )


def _scheduler(family: Family) -> diffusers.DDIMScheduler:
    if family is not Family.SD2:
        return diffusers.DDIMScheduler(**_SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    return diffusers.DDIMScheduler(
        **_SCHEDULE,
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,
    )


def _text_config(**more: Any) -> transformers.CLIPTextConfig:
    vocabulary = _vocabulary()
    return transformers.CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=_TEXT_WIDTH,
        intermediate_size=2 * _TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=vocabulary["<|startoftext|>"],
        eos_token_id=vocabulary["<|endoftext|>"],
        pad_token_id=vocabulary["<|endoftext|>"],
        **more,
    )


def _text_encoder() -> transformers.CLIPTextModel:
    return transformers.CLIPTextModel(_text_config())


def _projecting_text_encoder() -> transformers.CLIPTextModelWithProjection:
    return transformers.CLIPTextModelWithProjection(_text_config(projection_dim=_POOLED_WIDTH, hidden_act="gelu"))


def _tokenizer() -> transformers.CLIPTokenizer:
    return transformers.CLIPTokenizer(vocab=_vocabulary(), merges=[], model_max_length=MAX_TOKENS)


def _vocabulary() -> dict[str, int]:
    """CLIP's byte alphabet without merges: one token for each letter, inside and at the end of a word."""
    letters = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256))]
    letters += [chr(256 + i) for i in range(256 - len(letters))]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}
