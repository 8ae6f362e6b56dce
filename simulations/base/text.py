"""The base's tokenizer, a CLIP-format byte-pair encoding trained on captions, and its small CLIP text encoder.

CLIP's own vocabulary of 49 408 tokens would cost 6.3 million parameters in the embedding table alone.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from tokenizers import pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from simulations.base.concepts import ICON_CAPTIONS, STYLE_WORDS, captions_for

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_TOKENS: Final = 32
VOCABULARY: Final = 1400
START: Final = "<|startoftext|>"
END: Final = "<|endoftext|>"


def train_tokenizer(icon_names: Iterable[str]) -> CLIPTokenizer:
    """Learn merges on every caption, every icon's name and every byte; any text can be encoded."""
    blank = CLIPTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=1,
        show_progress=False,
        special_tokens=[START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        end_of_word_suffix="</w>",
    )
    backend = blank.backend_tokenizer
    backend.train_from_iterator(_corpus(icon_names), trainer)
    model = json.loads(backend.to_str())["model"]
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    vocabulary = _complete(model["vocab"])
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


def _corpus(icon_names: Iterable[str]) -> list[str]:
    captions = [
        caption for phrase in ICON_CAPTIONS.values() for style in STYLE_WORDS for caption in captions_for(phrase, style)
    ]
    names = sorted({name.replace("-", " ") for name in icon_names})
    return captions * 3 + names


def _complete(vocabulary: dict[str, int]) -> dict[str, int]:
    """Add the word-final form of every byte, so that no text falls back to the unknown token."""
    complete = dict(vocabulary)
    for symbol in sorted(pre_tokenizers.ByteLevel.alphabet()):
        for token in (symbol, f"{symbol}</w>"):
            complete.setdefault(token, len(complete))
    return complete


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two transformer layers of width 128."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        projection_dim=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)
