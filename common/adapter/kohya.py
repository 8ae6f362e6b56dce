"""The saved adapter under the names that kohya's scripts, A1111 and ComfyUI use, for programs that are not diffusers.

``lora_unet_<module, dots as underscores>.lora_down.weight``, ``.lora_up.weight`` and ``.alpha``: the same values as in
diffusers' file. Modules go by diffusers' names, which these programs know for every family, SDXL included. Only the
UNet is adapted, so there is no ``lora_te_`` key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from safetensors.numpy import save

from common.adapter.export import SPEC_KEY, WEIGHTS_FILE, in_order, read_tensors, weight_key
from common.adapter.spec import A, AdapterSpec, B, Family
from common.errors import AdapterError

if TYPE_CHECKING:
    from pathlib import Path

_FACTORS: Final = {A: "lora_down", B: "lora_up"}
_VERSIONS: Final = {Family.SD1: "sd_v1", Family.SD2: "sd_v2", Family.SDXL: "sdxl_base_v1-0"}
_ARCHITECTURES: Final = {
    Family.SD1: "stable-diffusion-v1/lora",
    Family.SD2: "stable-diffusion-v2/lora",
    Family.SDXL: "stable-diffusion-xl-v1-base/lora",
}


def kohya_bytes(directory: Path, spec: AdapterSpec, *, title: str) -> bytes:
    """The file's bytes, from the adapter that :func:`common.adapter.export.save_adapter` left in the directory.

    Guarantee: the same adapter and title give the same bytes; every value is diffusers' file's, bit for bit.

    Raises:
        AdapterError: The directory's weights cannot be read, or are of another adapter.

    """
    path = directory / WEIGHTS_FILE
    modules = sorted({tensor.name.rpartition(".")[0] for tensor in spec.tensors})
    places = {
        f"{_name(module)}.{theirs}.weight": weight_key(module, ours)
        for module in modules
        for ours, theirs in _FACTORS.items()
    }
    file = read_tensors(path, set(places.values()))
    if missing := sorted(set(places.values()) - file.names):
        raise AdapterError(
            f"{path}: cannot be read as this adapter's weights: {missing[0]} is missing; export it again"
        )
    made = {theirs: file.tensors[ours] for theirs, ours in places.items()}
    made |= {f"{_name(module)}.alpha": np.array(spec.config.alpha, dtype=np.float32) for module in modules}
    return in_order(save(made, metadata=_metadata(spec, title)))


def _name(module: str) -> str:
    return f"lora_unet_{module.replace('.', '_')}"


def _metadata(spec: AdapterSpec, title: str) -> dict[str, str]:
    """What the programs show, and what tells them the base's kind where shapes do not."""
    return {
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(spec.config.rank),
        "ss_network_alpha": str(spec.config.alpha),
        "ss_base_model_version": _VERSIONS[spec.family],
        "ss_v2": str(spec.family is Family.SD2),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": _ARCHITECTURES[spec.family],
        "modelspec.implementation": "diffusers",
        "modelspec.title": title,
        SPEC_KEY: spec.digest,
    }
