"""The run configuration, and how a TOML file becomes a typed struct, here and wherever there are settings.

A run's settings are what coordinator and institutions must agree on before it starts. All of it is public; a site's own
rules and paths are not part of it.

:func:`parse_config` reports every fault of a file at once: msgspec stops at the first, and somebody who mends a file
wants the whole list. So each key is converted by itself, unknown keys are named with the nearest known one, and
``faults`` methods add what types cannot say.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar, get_args, get_origin

import msgspec
from msgspec import Meta

from common import bounds
from common.crypto.randomness import REPEATABLE_WORDS
from common.errors import ConfigError, ConfigErrors
from common.field_words import not_wanted, wanted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


Digest = Annotated[
    str, Meta(pattern=r"^sha256:[0-9a-f]{64}\Z", description='a digest, "sha256:" and 64 hexadecimal digits')
]
RunName = Annotated[
    str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,63}\Z", description="1 to 64 small letters, digits and hyphens")
]

ATTENTION_TARGETS: Final = ("to_q", "to_k", "to_v", "to_out.0")

PLAIN_WORDS: Final = "the coordinator sees every institution's update in the clear"
"""What a run without privacy must repeat word for word, so that nobody starts one by accident."""


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of configuration tables: immutable, no unknown keys."""

    def faults(self) -> Iterator[str]:
        """One sentence for each rule that is broken, of those that types cannot say."""
        yield from ()


class BaseModelConfig(Config, frozen=True, kw_only=True):
    """Which Stable Diffusion pipeline is fine-tuned."""

    path: str
    """A diffusers directory, ``bundled`` for the small base in this repository, or with ``download`` a hub id."""
    download: bool = False
    """Whether a hub id may be fetched; without it nothing touches the network."""
    digest: Digest | None = None
    """Content digest that the directory must have; printed by ``darkroom-client digest``."""
    family: Literal["sd1", "sd2", "sdxl"] | None = None


class AdapterConfig(Config, frozen=True, kw_only=True):
    """The LoRA that is trained."""

    rank: bounds.Rank = 16
    alpha: bounds.Factor = 16.0
    train: Literal["B", "AB", "core"] = "core"
    """Kind, rank and ``privacy.draws`` default to what lost least to the noise in ``darkroom-sim sweep``."""
    targets: tuple[str, ...] = ATTENTION_TARGETS
    """Suffixes of UNet module names (Linear or Conv2d)."""
    seed: bounds.Seed = 0
    """Public seed of the frozen factors."""

    def faults(self) -> Iterator[str]:
        """Rules that types cannot say."""
        if not self.targets:
            yield "targets: wanted at least one module-name suffix, got none"


class LossConfig(Config, frozen=True, kw_only=True):
    """The denoising loss."""

    min_snr_gamma: bounds.Factor | None = None
    """Min-SNR weighting (Hang et al. 2023, arXiv:2303.09556); off if absent."""
    caption_dropout: bounds.Share = 0.1
    """Share of draws trained on the empty caption, which classifier-free guidance needs."""


class TrainingConfig(Config, frozen=True, kw_only=True):
    """What each institution does in a round."""

    mode: Literal["fedsgd", "fedavg"] = "fedsgd"
    batch_size: bounds.BatchSize = 16
    """Pictures per institution and step, without privacy; with it, ``privacy.sampling_rate`` decides."""
    local_steps: bounds.Steps = 1
    """Steps of local SGD per round; fedavg only."""
    local_learning_rate: bounds.LearningRate = 1e-3
    """Learning rate of the local steps; fedavg only."""
    horizontal_flips: bool = False
    gradient_checkpointing: bool = False
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """``auto``: bfloat16 autocast where the device computes it, float32 elsewhere."""
    resolution: bounds.Pixels | None = None
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
    learning_rate: bounds.LearningRate = 3e-3
    momentum: bounds.Decay = 0.9
    """Momentum of SGD, or Adam's β1."""
    beta2: bounds.Decay = 0.99
    epsilon: bounds.AdamEpsilon = 1e-8
    subtract_noise: bool = False
    """With privacy and Adam: take the known variance of the noise off the mean of squared gradients."""
    noise_floor: bounds.NoiseFloor = 0.1
    """What is left of that mean, at least, as a share of the noise's variance."""
    average: bounds.Decay = 0.0
    """Decay of the moving average of adapters that is evaluated and released in place of the last one; 0: the last."""
    schedule: Literal["constant", "cosine"] = "cosine"
    institutions_per_round: bounds.Institutions | None = None
    """Asked per round, drawn afresh; absent: all."""
    minimum_institutions: bounds.Institutions = 1
    """A round with fewer answers is repeated."""
    round_timeout_s: bounds.Seconds = 3600.0
    attempts: bounds.Attempts = 5
    """Attempts at one round before the run stops with an error; it can be resumed."""


class PrivacyConfig(Config, frozen=True, kw_only=True):
    """Differential privacy of every contribution. All of it is public, and all sides work out the noise from it."""

    unit: Literal["image", "subject"] = "image"
    """What is protected: one picture, or all pictures of one subject."""
    epsilon: bounds.Epsilon
    """For the whole run, against the coordinator and the tolerated colluders, given secure aggregation."""
    delta: bounds.Delta
    clip: bounds.Clip
    """Norm to which each unit's gradient is clipped; not to be chosen by looking at private data."""
    draws: bounds.DrawsOfUnit = 2
    """Draws of (picture of the unit, timestep, noise) whose mean is a unit's gradient."""
    colluders: bounds.Colluders = 1
    """Institutions whose shares of the noise do not count, because they may be known."""
    population: bounds.Population
    """Privacy units of all institutions together: fewest that the promise counts on."""
    largest_site: bounds.Population | None = None
    """Most units that one institution may have; absent: ``population``. An institution with more does not take part."""
    sampling_rate: bounds.SamplingRate
    """Chance of each unit to be in a round's sample."""
    repeats: bounds.Repeats = 2
    """Attempts beyond one a round that the noise is sized for; the run stops when they are used up."""
    repeatable: str = ""
    """For tests: the sentence :data:`common.crypto.randomness.REPEATABLE_WORDS`; noise is then the run's seed's."""

    @property
    def is_private(self) -> bool:
        """False where noise is repeatable, so that nothing is protected."""
        return not self.repeatable

    @property
    def expected_batch(self) -> float:
        """Units expected in a round's sample over all institutions: what the server divides by."""
        return self.sampling_rate * self.population

    def faults(self) -> Iterator[str]:
        """Rules that types cannot say."""
        if self.delta * self.population >= 1:
            yield (
                f"delta: {self.delta:g} is not below 1/population = {1 / self.population:g}: publishing one whole unit "
                "would satisfy it"
            )
        if self.largest_site is not None and self.largest_site > self.population:
            yield f"largest_site: {self.largest_site} is more than population, {self.population}"
        if self.repeatable not in {"", REPEATABLE_WORDS}:
            yield f'repeatable: wanted nothing, or for tests "{REPEATABLE_WORDS}"; got {self.repeatable!r}'


class EvaluationConfig(Config, frozen=True, kw_only=True):
    """Hold-out loss and sample pictures."""

    every: bounds.Rounds = 10
    """Rounds between evaluations; the first and last round are always evaluated."""
    draws: bounds.HoldoutDraws = 4
    """Fixed (timestep, noise) draws per hold-out picture."""
    prompts: tuple[str, ...] = ()
    sample_seed: bounds.Seed = 0
    sample_steps: bounds.Steps = 20
    guidance_scale: bounds.Guidance = 3.0


class RunConfig(Config, frozen=True, kw_only=True):
    """One federated run, as in a scenario's or a manifest's TOML file."""

    name: RunName
    title: str = ""
    rounds: bounds.Rounds
    seed: bounds.Seed = 0
    privacy: Literal["none"] | PrivacyConfig
    """A table of settings, or ``"none"`` together with ``acknowledge``."""
    acknowledge: str = ""
    """With ``privacy = "none"``: the sentence :data:`PLAIN_WORDS`."""
    aggregation: Literal["secure", "clear"] | None = None
    """``secure``: the coordinator learns the sum alone; absent: so with a table ``privacy``. ``clear``: it sees each
    institution's answer."""
    base: BaseModelConfig
    adapter: AdapterConfig = AdapterConfig()
    training: TrainingConfig = TrainingConfig()
    server: ServerConfig = ServerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @property
    def is_secure(self) -> bool:
        """Whether sums are masked."""
        return self.aggregation == "secure" or (self.aggregation is None and self.privacy != "none")

    def faults(self) -> Iterator[str]:
        """Rules that types cannot say."""
        yield from self._plain_faults() if self.privacy == "none" else self._private_faults(self.privacy)
        asked = self.server.institutions_per_round
        if asked is not None and asked < self.server.minimum_institutions:
            yield f"server.institutions_per_round: {asked} is below server.minimum_institutions"

    def _plain_faults(self) -> Iterator[str]:
        if self.acknowledge != PLAIN_WORDS:
            yield f'acknowledge: privacy = "none" needs acknowledge = "{PLAIN_WORDS}"; got {self.acknowledge!r}'
        if self.server.subtract_noise:
            yield "server.subtract_noise: there is no noise without a table privacy"
        if self.aggregation == "secure":
            yield 'aggregation: wanted "secure" with a table privacy only: a sum without noise protects nobody in it'

    def _private_faults(self, privacy: PrivacyConfig) -> Iterator[str]:
        server = self.server
        if not (self.rounds + privacy.repeats) * privacy.expected_batch <= bounds.MAX_SAMPLED:
            yield (
                f"privacy: rounds × sampling_rate × population is above {bounds.MAX_SAMPLED:g} units; no run trains on "
                "so many"
            )
        if self.acknowledge:
            yield 'acknowledge: wanted with privacy = "none" only'
        if self.training.mode != "fedsgd":
            yield 'training.mode: wanted "fedsgd" with a table privacy: local steps would each need noise of their own'
        if privacy.colluders >= server.minimum_institutions:
            yield (
                f"privacy.colluders: {privacy.colluders} of server.minimum_institutions = "
                f"{server.minimum_institutions}: someone honest must add noise"
            )
        if self.is_secure and server.minimum_institutions < privacy.colluders + 2:
            # with one honest institution left, the sum less the colluders' own answers is that institution's update
            yield (
                f"server.minimum_institutions: secure sums need at least colluders + 2 = {privacy.colluders + 2}, got "
                f'{server.minimum_institutions}; or say aggregation = "clear"'
            )
        if server.institutions_per_round not in {None, server.minimum_institutions}:
            yield "server.institutions_per_round: with a table privacy every round has exactly minimum_institutions"
        if server.subtract_noise and server.optimizer != "adam":
            yield 'server.subtract_noise: wanted with optimizer = "adam" only'


T = TypeVar("T", bound=Config)


def read_toml(path: Path) -> dict[str, Any]:
    """The file's tables as plain values.

    Raises:
        ConfigError: The file is missing, unreadable or not TOML.

    """
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))  # with the mark that Windows editors write first
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a TOML file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except (ValueError, RecursionError) as error:  # TOML's and Unicode's are ValueErrors, and so is a huge number
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def parse_config(table: Mapping[str, Any], into: type[T], *, source: str) -> T:
    """Convert a table to the struct.

    Raises:
        ConfigErrors: Every unknown key, missing key, wrong type, value out of range and broken rule.

    """
    faults: list[str] = []
    parsed = _parse(table, into, "", faults)
    if faults or parsed is None:
        raise ConfigErrors(source, tuple(faults))
    return parsed


def _parse(table: Mapping[str, Any], into: type[T], prefix: str, faults: list[str]) -> T | None:
    """The struct, or None where a fault was added."""
    fields = {field.encode_name: field for field in msgspec.structs.fields(into)}
    before = len(faults)
    faults += [_unknown(prefix + key, key, list(fields)) for key in table if key not in fields]
    values: dict[str, Any] = {}
    for key, field in fields.items():
        if key in table:
            values[field.name] = _parse_value(table[key], field.type, prefix + key, faults)
        elif field.required:
            faults.append(f"{prefix}{key}: missing; wanted {wanted(field.type)}")
    if len(faults) > before:
        return None
    made = into(**values)
    faults += [f"{prefix}{fault}" for fault in made.faults()]
    return made


def _parse_value(value: Any, kind: Any, key: str, faults: list[str]) -> Any:  # noqa: ANN401 - TOML values
    struct = _struct_in(kind)
    if struct is not None and isinstance(value, dict):
        return _parse(value, struct, f"{key}.", faults)
    if get_origin(_bare(kind)) is tuple and isinstance(value, list):
        return _parse_list(value, kind, key, faults)
    if isinstance(value, float) and not math.isfinite(value):  # TOML has inf and nan, JSON and a range check do not
        faults.append(not_wanted(key, kind, value))
        return None
    try:
        return msgspec.convert(value, kind, dec_hook=_decoded)
    except msgspec.ValidationError:  # its own words are of Python's types
        faults.append(not_wanted(key, kind, value))
        return None


def _parse_list(value: list[Any], kind: Any, key: str, faults: list[str]) -> Any:  # noqa: ANN401 - as above
    """Each entry by itself, so that the one at fault is named; then how many there are."""
    before, member = len(faults), get_args(_bare(kind))[0]
    entries = tuple(_parse_value(item, member, f"{key}[{place}]", faults) for place, item in enumerate(value))
    if len(faults) > before:
        return None
    try:
        return msgspec.convert(entries, kind, dec_hook=_decoded)
    except msgspec.ValidationError:
        faults.append(not_wanted(key, kind, value))
        return None


def _decoded(kind: Any, value: Any) -> Path:  # noqa: ANN401 - a type, and a TOML value
    """A path, which TOML has as text; 4096 bytes are what the kernel takes."""
    if kind is Path and isinstance(value, str) and 0 < len(value) <= 4096 and "\0" not in value:
        return Path(value)
    raise ValueError(kind)


def _bare(kind: Any) -> Any:  # noqa: ANN401 - a type annotation
    return get_args(kind)[0] if hasattr(kind, "__metadata__") else kind


def _struct_in(kind: Any) -> type[Config] | None:  # noqa: ANN401 - a type annotation
    """The struct type of an annotation ``S`` or ``S | …``, if there is exactly one."""
    options = [kind, *get_args(kind)] if get_origin(kind) is not tuple else []
    structs = [option for option in options if isinstance(option, type) and issubclass(option, Config)]
    return structs[0] if len(structs) == 1 else None


def _unknown(path: str, key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
    return f"{path}: unknown key; {hint}"
