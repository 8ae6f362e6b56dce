"""A tiny scenario of one's own pictures on a tiny base, for whole runs within seconds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from common.adapter.model import Family
from common.config import PLAIN_WORDS
from tests.tiny_base import write_tiny_base

if TYPE_CHECKING:
    from pathlib import Path

PLAIN = f'privacy = "none"\nacknowledge = "{PLAIN_WORDS}"'
MASKED = """
[privacy]
unit = "image"
epsilon = 2.0
delta = 1e-3
clip = 0.05
population = 18
largest_site = 8
sampling_rate = 0.5
repeats = 4
"""
"""Privacy of the three sites of :func:`write_world`, with masked sums; more keys of its table may follow."""
THREE = "[server]\nminimum_institutions = 3\n"
COLOURS = {"red": (200, 30, 30), "green": (30, 160, 40), "blue": (40, 50, 190)}


def write_world(
    root: Path, *, rounds: int = 4, pictures: int = 8, institutions: str = "", more: str = "", privacy: str = PLAIN
) -> Path:
    """A scenario file beside its base and pictures: three sites, each with pictures of one colour."""
    write_tiny_base(root / "base", Family.SD2)
    rng = np.random.default_rng(2)
    rows = []
    for colour, value in COLOURS.items():
        folder = root / "pictures" / colour
        folder.mkdir(parents=True)
        for index in range(pictures):
            pixels = np.clip(np.array(value) + rng.normal(0, 12, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
            rows.append(json.dumps({"file_name": f"{colour}/{index}.png", "text": f"{colour} noise"}))
    (root / "pictures" / "metadata.jsonl").write_text("\n".join(rows))
    scenario = root / "world.toml"
    scenario.write_text(f"""
name = "world"
rounds = {rounds}
{privacy}
[institutions]
source = "folder"
folder = "pictures"
holdout_share = 0.25
{institutions}
[base]
path = "base"
[adapter]
rank = 2
train = "AB"
[training]
batch_size = 4
[evaluation]
every = 2
draws = 2
prompts = ["red noise", "blue noise"]
sample_steps = 2
{more}
""")
    return scenario
