"""Draw pictures with a base model and a released adapter, through the stock pipeline and its stock LoRA loading.

Every picture says in its metadata that it is generated, and with what; on request also below it, and signed.
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING

from client.drawing.credentials import read_picture_key, signed_png
from client.drawing.marks import Origin, labelled, marked_png
from common.adapter.export import WEIGHTS_FILE, read_adapter_spec, read_adapter_vector
from common.adapter.generate import SamplePlan, check_plan, generate
from common.adapter.model import open_base
from common.adapter.spec import vector_digest
from common.adapter.weights_check import check_adapter_weights, compare_with_base
from common.errors import ConfigError, WrongAdapterSpec
from common.manifest.words import printable
from common.release.folder import RELEASE_FILE, ReleaseFolder
from common.release.statement import ReleaseError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from common.adapter.model import BaseModel
    from common.release.statement import Release


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """What to draw, with what, and where to put it."""

    base: str
    adapter: Path
    prompts: tuple[str, ...]
    out: Path
    seed: int
    steps: int
    guidance_scale: float
    resolution: int | None
    download: bool = False
    picture_key: Path | None = None
    """Folder of the institution's key for pictures; None: they are not signed."""
    label: bool = False
    """Whether a line below each picture says that it is generated."""
    write_prompt: bool = False
    """Whether each picture holds its prompt, in its metadata and in the file's name."""


def generate_pictures(request: GenerationRequest) -> Iterator[Path]:
    """Write one PNG per prompt; yields their paths.

    Guarantee: a signed picture names a release only if the adapter's folder is that release, file for file, and an
    adapter's digest only if the weights that are loaded are those of that adapter.

    Raises:
        ModelError: The base cannot be used.
        AdapterError: The adapter cannot be used, or is not made for this base.
        ReleaseError: It came in a release whose statement or files are altered, or of another adapter.
        ConfigErrors: A resolution, seed or number of steps that cannot be drawn.
        ConfigError: Pictures cannot be signed, or not be written.

    """
    # what is told at once goes before what reads gigabytes
    _check_out(request.out)
    key = None if request.picture_key is None else read_picture_key(request.picture_key)
    read_adapter_spec(request.adapter)
    base = open_base(request.base, allow_download=request.download)
    origin = _origin(base, request)
    pipeline = base.pipeline()
    plan = SamplePlan(
        prompts=request.prompts,
        seed=request.seed,
        steps=request.steps,
        guidance_scale=request.guidance_scale,
        resolution=request.resolution or base.resolution,
    )
    check_plan(pipeline, plan)
    # the file by name: diffusers would else fall back on a pickle, or on a download
    pipeline.load_lora_weights(request.adapter, weight_name=WEIGHTS_FILE, use_safetensors=True, local_files_only=True)
    request.out.mkdir(parents=True, exist_ok=True)
    for index, picture in enumerate(generate(pipeline, plan)):
        prompt = request.prompts[index] if request.write_prompt else None
        told = replace(origin, prompt=prompt)
        png = marked_png(labelled(picture) if request.label else picture, told)
        path = request.out / f"{_stem(index, prompt)}.png"
        path.write_bytes(png if key is None else signed_png(png, told, key))
        yield path


def _check_out(folder: Path) -> None:
    """Refuse where no picture can be written: else the first would be drawn for nothing. Nothing is left there."""
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        if new:  # what is refused later leaves no empty folder
            folder.rmdir()
    except OSError as error:
        raise ConfigError(
            f"--out: {folder}: no pictures can be written here ({error.strerror}); give a folder of your own"
        ) from error


def _stem(index: int, prompt: str | None) -> str:
    if prompt is None:
        return f"{index:02d}"
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40]
    return f"{index:02d}-{words or 'empty'}"


def _origin(base: BaseModel, request: GenerationRequest) -> Origin:
    """What is drawn with; an adapter on another base than its own would draw noise without a word of warning."""
    adapter = request.adapter
    release = _release(adapter)
    spec = read_adapter_spec(adapter)
    if spec.base_digest != base.digest:
        raise WrongAdapterSpec(
            f"{adapter}: made for the base {spec.base_digest}, got the base {base.digest}; give its own base"
        )
    check_adapter_weights(adapter, spec)
    if request.picture_key is not None and spec.config.train == "core":  # the digest is of another file's values
        compare_with_base(adapter, spec, base)
    digest = vector_digest(read_adapter_vector(adapter, spec))
    if release is not None and release.adapter != digest:
        raise ReleaseError(f"{adapter}: holds adapter {digest}, but its release is of {release.adapter}")
    return Origin(
        version=version("darkroom"),
        adapter=digest,
        base=base.digest,
        release=None if release is None else release.digest().hex(),
    )


def _release(adapter: Path) -> Release | None:
    """The release that the folder is, every file as it was signed; None: it is none."""
    if not os.path.lexists(adapter / RELEASE_FILE):
        return None
    folder = ReleaseFolder(adapter)
    release = folder.release()
    if faults := list(folder.file_faults(release)):
        listed = "\n".join(f"  - {printable(fault)}" for fault in faults)
        raise ReleaseError(
            f"{adapter}: is not the release that its {RELEASE_FILE} states; get it again, or take that file away to "
            f"draw without naming a release:\n{listed}"
        )
    return release
