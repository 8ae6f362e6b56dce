"""Open a Stable Diffusion pipeline on disk, know what it is before loading it, and load its parts one by one."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import diffusers
import torch
import transformers
from safetensors import SafetensorError

from common.adapter.directory import COMPONENTS, INDEX, WEIGHTS, check_files, content_digest, read_json, weight_files
from common.adapter.lora import unet_family
from common.adapter.spec import Family
from common.errors import BadModelDirectory, DigestMismatch, WrongFamily

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from common.adapter.diffusion import PredictionType

__all__ = ["BaseModel", "Family", "content_digest", "open_base"]

_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TRAINING_KEYS: Final = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)
_LOADING_ERRORS: Final = (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError, SafetensorError)


@dataclass(frozen=True)
class BaseModel:
    """A checked pipeline directory. Parts are read from disk at each call; keep what is needed again."""

    directory: Path
    digest: str
    family: Family
    prediction_type: PredictionType
    """``epsilon`` or ``v_prediction``."""
    resolution: int
    """Pixels per side that the UNet was trained for."""
    scale_factor: int
    """Pixels per latent and side."""
    latent_channels: int
    zero_unconditional: bool
    """Whether stock sampling without a negative prompt guides away from zeros (SDXL) instead of the empty caption."""

    def load_unet(self, *, dtype: torch.dtype = torch.float32) -> diffusers.UNet2DConditionModel:
        """The frozen UNet.

        Raises:
            BadModelDirectory: Weights that are missing, corrupt or of another shape.

        """
        return self._load(diffusers.UNet2DConditionModel, "unet", torch_dtype=dtype)

    def load_vae(self, *, dtype: torch.dtype = torch.float32) -> diffusers.AutoencoderKL:
        """The frozen autoencoder.

        Raises:
            BadModelDirectory: Weights that are missing, corrupt or of another shape.

        """
        return self._load(diffusers.AutoencoderKL, "vae", torch_dtype=dtype)

    def load_text_encoders(self, *, dtype: torch.dtype = torch.float32) -> tuple[transformers.PreTrainedModel, ...]:
        """The frozen text encoders: one, or SDXL's two.

        Raises:
            BadModelDirectory: Weights that are missing, corrupt or of another shape.

        """
        first = self._load(transformers.CLIPTextModel, "text_encoder", dtype=dtype)
        if self.family is not Family.SDXL:
            return (first,)
        return (first, self._load(transformers.CLIPTextModelWithProjection, "text_encoder_2", dtype=dtype))

    def load_tokenizers(self) -> tuple[transformers.PreTrainedTokenizerBase, ...]:
        """One CLIP tokenizer for each text encoder.

        Raises:
            BadModelDirectory: A vocabulary that cannot be read.

        """
        names = ("tokenizer", "tokenizer_2") if self.family is Family.SDXL else ("tokenizer",)
        return tuple(self._tokenizer(name) for name in names)

    def load_scheduler(self) -> diffusers.DDPMScheduler:
        """The noise schedule of training, with ``alphas_cumprod`` of ``[num_train_timesteps]``, whatever the sampler.

        Raises:
            BadModelDirectory: A schedule that cannot be made.

        """
        config = self._config("scheduler/scheduler_config.json")
        try:
            return diffusers.DDPMScheduler(**{key: config[key] for key in _TRAINING_KEYS if key in config})
        except (NotImplementedError, *_LOADING_ERRORS) as error:
            raise BadModelDirectory(f"{self.directory}/scheduler/scheduler_config.json: {error}") from error

    def load_sampler(self) -> diffusers.SchedulerMixin:
        """The scheduler that the pipeline's index names for sampling.

        Raises:
            BadModelDirectory: No scheduler of diffusers, or one that cannot be made.

        """
        name = self._config(INDEX)["scheduler"][1]
        kind: Any = getattr(diffusers, name, None)
        if not hasattr(kind, "add_noise"):
            raise BadModelDirectory(f"{self.directory / INDEX}: scheduler {name!r} is none that diffusers has")
        try:
            return kind.from_pretrained(self.directory / "scheduler", local_files_only=True)
        except (NotImplementedError, *_LOADING_ERRORS) as error:
            raise BadModelDirectory(f"{self.directory}/scheduler: {error}") from error

    def pipeline(
        self,
        unet: diffusers.UNet2DConditionModel | None = None,
        *,
        vae: diffusers.AutoencoderKL | None = None,
        text_encoders: Sequence[nn.Module] | None = None,
    ) -> diffusers.DiffusionPipeline:
        """A stock sampling pipeline without safety checker, watermark or progress bar; parts not given are loaded.

        Raises:
            BadModelDirectory: A part that cannot be loaded.

        """
        encoders = self.load_text_encoders() if text_encoders is None else text_encoders
        tokenizers = self.load_tokenizers()
        parts = {
            "vae": vae or self.load_vae(),
            "text_encoder": encoders[0],
            "tokenizer": tokenizers[0],
            "unet": unet or self.load_unet(),
            "scheduler": self.load_sampler(),
        }
        if self.family is Family.SDXL:
            parts |= {"text_encoder_2": encoders[1], "tokenizer_2": tokenizers[1]}
            made = diffusers.StableDiffusionXLPipeline(
                **parts, force_zeros_for_empty_prompt=self.zero_unconditional, add_watermarker=False
            )
        else:
            unused = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
            made = diffusers.StableDiffusionPipeline(**parts, **unused)
        made.set_progress_bar_config(disable=True)
        return made

    def _config(self, relative: str) -> dict[str, Any]:
        return read_json(self.directory, relative)

    def _tokenizer(self, component: str) -> transformers.PreTrainedTokenizerBase:
        try:
            return transformers.CLIPTokenizer.from_pretrained(self.directory / component, local_files_only=True)
        except _LOADING_ERRORS as error:
            raise BadModelDirectory(f"{self.directory / component}: no CLIP tokenizer: {error}") from error

    def _load(self, kind: Any, component: str, **options: Any) -> Any:  # noqa: ANN401 - classes of two untyped libraries
        folder = self.directory / component
        variant = "fp16" if ".fp16" in weight_files(self.directory, component)[0] else None
        options |= {"variant": variant, "use_safetensors": True, "local_files_only": True, "output_loading_info": True}
        try:
            with _no_progress_bars():
                model, found = kind.from_pretrained(folder, **options)
        except _LOADING_ERRORS as error:
            raise BadModelDirectory(f"{folder}: cannot be loaded: {error}") from error
        for fault in ("missing_keys", "mismatched_keys"):
            if found[fault]:
                raise BadModelDirectory(
                    f"{folder}: {fault.replace('_', ' ')} in the weights: {sorted(found[fault])[:3]}"
                )
        broken = [name for name, value in model.named_parameters() if not torch.isfinite(value).all()]
        if broken:  # every loss would be NaN, and the run would end as if the institutions had failed
            raise BadModelDirectory(f"{folder}: weights that are not finite: {broken[:3]}; get the model again")
        return model.eval().requires_grad_(requires_grad=False)


def open_base(
    path: str | Path,
    *,
    digest: str | None = None,
    family: Family | str | None = None,
    allow_download: bool = False,
) -> BaseModel:
    """Check a pipeline directory without loading weights, and say what it is.

    A ``StableDiffusionXLPipeline`` is SDXL. A ``StableDiffusionPipeline`` is SD 2 if its UNet projects linearly and
    SD 1 otherwise; the prediction type is read from the scheduler and does not decide the family.

    Args:
        path: A diffusers directory, or a hub id ``owner/name``.
        digest: Content digest that is wanted.
        family: Family that is wanted.
        allow_download: Whether a hub id may be fetched; only then is the network touched.

    Raises:
        BadModelDirectory: Missing, truncated, unreadable, or no text-to-image Stable Diffusion.
        DigestMismatch: Other content than wanted.
        WrongFamily: Another family than wanted.

    """
    directory = _locate(str(path), allow_download=allow_download)
    check_files(directory)
    base = _describe(directory)
    if family is not None and base.family != Family(family):
        raise WrongFamily(f"{directory}: wanted a pipeline of family {Family(family)}, got {base.family}")
    if digest is not None and base.digest != digest:
        raise DigestMismatch(
            f"{directory}: wanted content {digest}, got {base.digest}; get the very model that the run names"
        )
    return base


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing a bar on standard error for every part that is loaded."""
    bars = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def _locate(path: str, *, allow_download: bool) -> Path:
    if Path(path).is_dir():
        return Path(path)
    if Path(path).exists():
        raise BadModelDirectory(f"{path}: is a file; wanted a diffusers directory with a {INDEX}")
    if not _HUB_ID.fullmatch(path):
        raise BadModelDirectory(f"{path}: no such directory; wanted a diffusers directory with a {INDEX}")
    if not allow_download:
        raise BadModelDirectory(
            f"{path}: no such directory; wanted a diffusers directory with a {INDEX}. If it is a name on the hub, say "
            "--download, or download = true under [base]"
        )
    return _download(path)


def _download(name: str) -> Path:
    """Fetch index, configuration and full-precision safetensors, nothing else."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - only where a download was allowed
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError  # noqa: PLC0415

    wanted = [INDEX]
    for component in COMPONENTS["StableDiffusionXLPipeline"]:
        wanted += [f"{component}/*.json", f"{component}/*.txt"]
    for component, stem in WEIGHTS.items():
        wanted += [f"{component}/{stem}.safetensors", f"{component}/{stem}-*-of-*.safetensors"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise BadModelDirectory(f"{name}: cannot be fetched from the hub: {error}") from error


def _describe(directory: Path) -> BaseModel:
    index = read_json(directory, INDEX)
    unet, vae = read_json(directory, "unet/config.json"), read_json(directory, "vae/config.json")
    scheduler = read_json(directory, "scheduler/scheduler_config.json")
    family = unet_family(unet)
    if (family is Family.SDXL) != (index["_class_name"] == "StableDiffusionXLPipeline"):
        raise BadModelDirectory(f"{directory}: the index says {index['_class_name']}, its UNet is one of {family}")
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in {"epsilon", "v_prediction"}:
        raise BadModelDirectory(f"{directory}: prediction type {prediction!r}; wanted epsilon or v_prediction")
    channels, blocks, size = vae.get("latent_channels", 4), vae.get("block_out_channels"), unet.get("sample_size")
    if unet.get("in_channels", 4) != channels:
        raise BadModelDirectory(
            f"{directory}: the UNet takes {unet.get('in_channels', 4)} channels, the latents have {channels}; "
            "wanted a text-to-image model, not one for inpainting or editing"
        )
    if not (isinstance(blocks, list) and blocks and isinstance(size, int) and size > 0):
        raise BadModelDirectory(f"{directory}: wanted block_out_channels in vae and a whole sample_size in unet")
    scale = 2 ** (len(blocks) - 1)
    return BaseModel(
        directory=directory,
        digest=content_digest(directory),
        family=family,
        prediction_type=prediction,
        resolution=size * scale,
        scale_factor=scale,
        latent_channels=channels,
        zero_unconditional=family is Family.SDXL and bool(index.get("force_zeros_for_empty_prompt", True)),
    )
