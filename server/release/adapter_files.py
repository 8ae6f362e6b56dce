"""Where the coordinator needs the base model after all: to lay an adapter out, and to write the finished one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.adapter.export import save_adapter
from common.adapter.lora import inject_lora
from common.adapter.model import open_base
from common.adapter.vector import write_vector
from common.errors import CheckpointError, WrongAdapterSpec
from server.run.checkpoint import load_checkpoint
from server.run.coordinator import CHECKPOINTS

if TYPE_CHECKING:
    from pathlib import Path

    from common.adapter.spec import AdapterSpec
    from common.config import RunConfig
    from common.manifest.manifest import Manifest
    from server.federation.run_files import RunFiles
    from server.run.checkpoint import Checkpoint


def adapter_spec(base: Path, config: RunConfig) -> AdapterSpec:
    """Layout of the run's adapter in this base.

    Raises:
        ModelError: The base cannot be used, or is not the one that the configuration names.

    """
    opened = open_base(str(base), digest=config.base.digest, family=config.base.family)
    return inject_lora(opened.load_unet(), config.adapter, base_digest=opened.digest)


def write_adapter(files: RunFiles, base: Path, out: Path) -> int:
    """Write a run's adapter as its last checkpoint has it; the number of rounds behind it.

    Raises:
        CheckpointError: There is none, or it is another run's.
        ModelError: The base is not the run's.

    """
    manifest, digest = files.signed()
    checkpoint = load_checkpoint(files.directory / CHECKPOINTS)
    checkpoint.check_belongs(manifest.config, spec_digest=manifest.adapter_digest, manifest=digest.hex())
    if checkpoint.round == 0:
        raise CheckpointError(f"{files.directory}: no round is finished yet, so there is nothing to write")
    save_released(manifest, checkpoint, base=base, out=out)
    return checkpoint.round


def save_released(manifest: Manifest, checkpoint: Checkpoint, *, base: Path, out: Path) -> AdapterSpec:
    """Write a checkpoint's released adapter for stock diffusers; its specification.

    Raises:
        ModelError: The base is not the run's.
        WrongAdapterSpec: The base gives another adapter than the manifest's.

    """
    opened = open_base(str(base), digest=manifest.base_digest)
    unet = opened.load_unet()
    spec = inject_lora(unet, manifest.config.adapter, base_digest=opened.digest)
    if spec.digest != manifest.adapter_digest:
        raise WrongAdapterSpec(f"this base gives adapter {spec.digest}; the manifest says {manifest.adapter_digest}")
    write_vector(unet, spec, checkpoint.released)
    save_adapter(out, unet, spec)
    return spec
