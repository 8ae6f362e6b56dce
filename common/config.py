"""The run configuration: what coordinator and institutions must agree on before a run starts.

Everything here is public. A site's own rules and paths are not part of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
from msgspec import Meta

if TYPE_CHECKING:
    from collections.abc import Iterator

Positive = Annotated[float, Meta(gt=0)]
NonNegative = Annotated[float, Meta(ge=0)]
PositiveInt = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(ge=0, le=1)]
Digest = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}$")]

ATTENTION_TARGETS: Final = ("to_q", "to_k", "to_v", "to_out.0")

PLAIN_WORDS: Final = "the coordinator sees every institution's update in the clear"
"""What a run without privacy must repeat word for word, so that nobody starts one by accident."""


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of configuration tables: immutable, no unknown keys."""


class BaseModelConfig(Config, frozen=True, kw_only=True):
    """Which Stable Diffusion pipeline is fine-tuned."""

    path: str
    """A diffusers directory, ``bundled`` for the small base in this repository, or a hub id."""
    digest: Digest | None = None
    """Content digest that the directory must have; printed by ``darkroom-client digest``."""
    family: Literal["sd1", "sd2", "sdxl"] | None = None


class AdapterConfig(Config, frozen=True, kw_only=True):
    """The LoRA that is trained."""

    rank: Annotated[int, Meta(ge=1, le=256)] = 8
    alpha: Positive = 8.0
    train: Literal["B", "AB", "core"] = "B"
    targets: tuple[str, ...] = ATTENTION_TARGETS
    """Suffixes of UNet module names (Linear or Conv2d)."""
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    """Public seed of the frozen factors."""

    def faults(self) -> Iterator[str]:
        """Rules that types cannot say."""
        if not self.targets:
            yield "targets: wanted at least one module-name suffix, got none"


class LossConfig(Config, frozen=True, kw_only=True):
    """The denoising loss."""

    min_snr_gamma: Positive | None = None
    """Min-SNR weighting (Hang et al. 2023, arXiv:2303.09556); off if absent."""
    caption_dropout: Share = 0.1
    """Share of draws trained on the empty caption, which classifier-free guidance needs."""


class TrainingConfig(Config, frozen=True, kw_only=True):
    """What each institution does in a round."""

    mode: Literal["fedsgd", "fedavg"] = "fedsgd"
    batch_size: PositiveInt = 16
    """Expected number of pictures per institution and step."""
    local_steps: PositiveInt = 1
    """Steps of local SGD per round; fedavg only."""
    local_learning_rate: Positive = 1e-3
    """Learning rate of the local steps; fedavg only."""
    horizontal_flips: bool = False
    gradient_checkpointing: bool = False
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """``auto``: bfloat16 autocast where the device computes it, float32 elsewhere."""
    resolution: Annotated[int, Meta(ge=16, le=2048)] | None = None
    """Pixels per side; absent: the base's own."""
    loss: LossConfig = LossConfig()

    def faults(self) -> Iterator[str]:
        """Rules that types cannot say."""
        if self.mode == "fedsgd" and self.local_steps != 1:
            yield f"local_steps: one round of fedsgd is one step; got {self.local_steps}; use mode = 'fedavg' for more"
        if self.resolution is not None and self.resolution % 8:
            yield f"resolution: wanted a multiple of 8, got {self.resolution}"


class ServerConfig(Config, frozen=True, kw_only=True):
    """What the coordinator does with the mean update."""

    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: Positive = 3e-3
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    """Momentum of SGD, or Adam's β1."""
    beta2: Annotated[float, Meta(ge=0, lt=1)] = 0.99
    epsilon: Positive = 1e-8
    schedule: Literal["constant", "cosine"] = "cosine"
    institutions_per_round: PositiveInt | None = None
    """Asked per round, drawn afresh; absent: all."""
    minimum_institutions: PositiveInt = 1
    """A round with fewer answers is repeated."""
    round_timeout_s: Positive = 3600.0
    attempts: PositiveInt = 5
    """Attempts at one round before the run stops with an error; it can be resumed."""


class EvaluationConfig(Config, frozen=True, kw_only=True):
    """Hold-out loss and sample pictures."""

    every: PositiveInt = 10
    """Rounds between evaluations; the first and last round are always evaluated."""
    draws: PositiveInt = 4
    """Fixed (timestep, noise) draws per hold-out picture."""
    prompts: tuple[str, ...] = ()
    sample_seed: Annotated[int, Meta(ge=0)] = 0
    sample_steps: PositiveInt = 20
    guidance_scale: NonNegative = 3.0


class RunConfig(Config, frozen=True, kw_only=True):
    """One federated run, as in a scenario's or a manifest's TOML file."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
    title: str = ""
    rounds: PositiveInt
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    privacy: Literal["none"]
    acknowledge: str = ""
    """With ``privacy = "none"``: the sentence :data:`PLAIN_WORDS`."""
    base: BaseModelConfig
    adapter: AdapterConfig = AdapterConfig()
    training: TrainingConfig = TrainingConfig()
    server: ServerConfig = ServerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    def faults(self) -> Iterator[str]:
        """Rules that types cannot say."""
        if self.acknowledge != PLAIN_WORDS:
            yield f'acknowledge: privacy = "none" needs acknowledge = "{PLAIN_WORDS}"; got {self.acknowledge!r}'
        asked = self.server.institutions_per_round
        if asked is not None and asked < self.server.minimum_institutions:
            yield f"server.institutions_per_round: {asked} is below server.minimum_institutions"
