"""Put one LoRA into a UNet with PEFT, with factors that every institution computes alike.

Three ways to train (``AdapterConfig.train``), for an adapted weight W and ΔW = (α/r)·B·A:

* ``B``: A is frozen, drawn from the public seed with orthonormal rows; B starts at zero and is trained.
* ``AB``: ordinary LoRA, with A's start drawn from the public seed.
* ``core``: LoRA-XS, ΔW = (α/r)·U·R·V with frozen U = U_rΣ_r and V = V_rᵀ of W's singular value decomposition. R starts
  at zero and is trained. To PEFT, A is V and B is the product U·R.

In each, every trained tensor is the weight of a plain ``nn.Linear`` or ``nn.Conv2d`` without bias, used once per
adapted module in a forward pass. The vector lives outside: virtual institutions share one UNet by writing theirs to it.

Nothing about the factors is secret or private noise; the opposite is wanted, that all institutions get the same
numbers. The draws come from the raw words of a counter-based generator, whose stream is fixed, and not from a library's
normal sampler, whose stream may change between versions.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import numpy as np
import torch
from peft import LoraConfig
from torch import nn

from common.adapter.spec import ADAPTER_NAME, TRAINED, A, AdapterSpec, B, Family, TensorSpec
from common.config import AdapterConfig
from common.errors import AdapterError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from diffusers import UNet2DConditionModel
    from numpy.typing import NDArray
    from peft.tuners.lora import LoraLayer
    from torch import Tensor


Layer: TypeAlias = nn.Linear | nn.Conv2d


class CoredFactor(nn.Module):
    """LoRA-XS's U·R in the place of LoRA's B: a trained r×r core before a frozen factor.

    The core sits in B rather than in A because PEFT's forward pass reads the type of A's weight for every batch, and
    ``weight``, which PEFT needs only to merge, is computed here each time.
    """

    def __init__(self, frozen: Layer) -> None:
        """Put a core of zeros before ``frozen`` (``[out, r]``, or ``[out, r, 1, 1]``)."""
        super().__init__()
        rank = frozen.weight.shape[1]
        self.frozen = frozen
        convolution = isinstance(frozen, nn.Conv2d)
        self.core: Layer = nn.Conv2d(rank, rank, 1, bias=False) if convolution else nn.Linear(rank, rank, bias=False)
        self.core.to(frozen.weight.device, frozen.weight.dtype)
        nn.init.zeros_(self.core.weight)

    @property
    def weight(self) -> Tensor:
        """The product U·R in the shape of LoRA's B."""
        return (self.frozen.weight.flatten(1) @ self.core.weight.flatten(1)).reshape(self.frozen.weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Core, then frozen factor."""
        y: Tensor = self.frozen(self.core(x))
        return y


def inject_lora(unet: UNet2DConditionModel, config: AdapterConfig, *, base_digest: str) -> AdapterSpec:
    """Add the adapter to the UNet in place and freeze everything that is not trained.

    Guarantee: directly afterwards the UNet computes what it computed before, whatever the mode; exactly the tensors of
    the returned specification require gradients; and their values, and those of the frozen factors, depend on the
    configuration, the base's weights and the module names only (up to the last bit of float32 where linear algebra
    libraries differ), never on torch's global generator, whose state is left alone.

    Args:
        unet: A UNet without an adapter, already on its device.
        config: Rank, α, targets, mode and public seed.
        base_digest: Content digest of the pipeline that the UNet comes from.

    Raises:
        ConfigError: A target that is no Linear or Conv2d of this UNet, or a rank that a frozen factor cannot have.
        AdapterError: The UNet has an adapter already.

    """
    config = msgspec.convert(msgspec.to_builtins(config), AdapterConfig)  # alpha=8 and alpha=8.0 must have one digest
    if getattr(unet, "peft_config", None):
        raise AdapterError("this UNet has an adapter already; load a fresh one, or write another vector into it")
    modules = _adapted_modules(unet, config)
    with torch.random.fork_rng(devices=[]):  # new layers draw values that are overwritten at once
        unet.add_adapter(_peft_config(config), adapter_name=ADAPTER_NAME)
        for name in modules:
            _set_factors(unet.get_submodule(name), name, config)
    unet.requires_grad_(requires_grad=False)
    tensors: list[TensorSpec] = []
    for name in modules:
        for factor in TRAINED[config.train]:
            weight = trained_layer(unet, name, factor).weight.requires_grad_()
            tensors.append(TensorSpec(f"{name}.{factor}", tuple(weight.shape)))
    return AdapterSpec(
        config=config,
        base_digest=base_digest,
        family=unet_family(unet.config),
        tensors=tuple(sorted(tensors, key=lambda tensor: tensor.name)),
    )


def trained_layer(unet: nn.Module, module: str, factor: str) -> Layer:
    """The layer whose weight is that factor of an adapted module.

    Raises:
        AttributeError: There is no such module, adapter or factor.
        KeyError: The same.

    """
    adapted: LoraLayer = unet.get_submodule(module)
    if factor in {A, B}:
        layer: Layer = getattr(adapted, factor)[ADAPTER_NAME]
    else:
        layer = adapted.lora_B[ADAPTER_NAME].core
    return layer


def unet_family(config: Mapping[str, object]) -> Family:
    """The family that a UNet's configuration belongs to.

    SDXL's UNet is the one that takes the size as an added condition; SD 2 projects into its transformers with linear
    layers where SD 1 uses 1×1 convolutions. Width, text encoder and prediction type do not matter.
    """
    if config.get("addition_embed_type") == "text_time":
        return Family.SDXL
    return Family.SD2 if config.get("use_linear_projection") else Family.SD1


def _peft_config(config: AdapterConfig) -> LoraConfig:
    return LoraConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=list(config.targets), init_lora_weights=False
    )


@torch.no_grad()
def _set_factors(adapted: LoraLayer, name: str, config: AdapterConfig) -> None:
    """Overwrite PEFT's A and B by the mode's."""
    a, b = adapted.lora_A[ADAPTER_NAME].weight, adapted.lora_B[ADAPTER_NAME].weight
    if config.train == "core":
        left, right = principal_factors(adapted.base_layer.weight, config.rank)
        a.copy_(right.reshape(a.shape))
        b.copy_(left.reshape(b.shape))
        adapted.lora_B[ADAPTER_NAME] = CoredFactor(adapted.lora_B[ADAPTER_NAME])
        return
    draw = orthonormal_rows if config.train == "B" else kaiming_rows
    a.copy_(draw(tuple(a.shape), config.seed, name))
    b.zero_()


def _adapted_modules(unet: nn.Module, config: AdapterConfig) -> list[str]:
    """Names of the modules that the targets select, each checked."""
    found: set[str] = set()
    for target in config.targets:
        matches = [name for name, _ in unet.named_modules() if name == target or name.endswith(f".{target}")]
        if not matches:
            raise ConfigError(f"adapter.targets: no module is named {target!r}; this UNet has {_suffixes(unet)}")
        found.update(matches)
    for name in sorted(found):
        _check_module(unet.get_submodule(name), name, config)
    return sorted(found)


def _check_module(module: nn.Module, name: str, config: AdapterConfig) -> None:
    if not isinstance(module, nn.Linear | nn.Conv2d):
        raise ConfigError(
            f"adapter.targets: {name} is a {type(module).__name__}; wanted suffixes of Linear or Conv2d modules"
        )
    outputs, inputs = module.weight.flatten(1).shape
    limits = {"B": inputs, "AB": config.rank, "core": min(inputs, outputs)}
    if config.rank > limits[config.train]:
        raise ConfigError(
            f"adapter.rank: {config.rank} is above the {limits[config.train]} that {name} ({outputs}×{inputs}) allows "
            f"with train = {config.train!r}; lower the rank, leave {name} out of the targets, or train = 'AB'"
        )


def _suffixes(unet: nn.Module) -> str:
    """The shortest usable suffixes of the UNet's Linear and Conv2d names, for an error message."""
    names = [name for name, module in unet.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    parts = (name.split(".") for name in names)
    return ", ".join(sorted({".".join(part[-2:]) if part[-1].isdigit() else part[-1] for part in parts}))


def kaiming_rows(shape: tuple[int, ...], seed: int, name: str) -> Tensor:
    """LoRA's usual A: uniform within ±1/√(fan-in), as PEFT draws it, but from the public seed.

    Args:
        shape: ``[r, in]``, or ``[r, in, k, k]`` for a convolution.
        seed: The run's public adapter seed.
        name: The module's name in the UNet; each module has its own stream.

    """
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    values = (2 * _uniform(math.prod(shape), seed, name) - 1) * bound
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)


def orthonormal_rows(shape: tuple[int, ...], seed: int, name: str) -> Tensor:
    """A frozen A whose flattened rows are orthonormal and span a uniformly random subspace.

    QR decomposition in float64 of a Gaussian matrix, with the signs that make R's diagonal positive, which makes the
    result unique and Haar-distributed (Mezzadri 2007, arXiv:math-ph/0609050). Needs r ≤ in·k·k.

    Args:
        shape: ``[r, in]``, or ``[r, in, k, k]`` for a convolution.
        seed: The run's public adapter seed.
        name: The module's name in the UNet; each module has its own stream.

    """
    rank, columns = shape[0], math.prod(shape[1:])
    q, r = np.linalg.qr(_gaussian(rank * columns, seed, name).reshape(columns, rank))
    rows = (q * np.where(np.diagonal(r) < 0, -1.0, 1.0)).T
    return torch.from_numpy(rows.astype(np.float32)).reshape(shape)


def principal_factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The truncated singular value decomposition of a base weight, split as LoRA-XS splits it.

    Bałazy et al. 2024, arXiv:2405.17604: the frozen factors are U_r·Σ_r and V_rᵀ. Computed in float64. Each singular
    pair has the sign that makes the largest entry of its right vector positive. Needs r ≤ min(out, in·k·k).

    Args:
        weight: ``[out, in]`` or ``[out, in, k, k]``.
        rank: Number r of singular pairs kept.

    Returns:
        U_r·Σ_r as ``[out, r]`` and V_rᵀ as ``[r, in·k·k]``, float32.

    """
    u, s, vh = torch.linalg.svd(weight.detach().to("cpu", torch.float64).flatten(1), full_matrices=False)
    left, right = u[:, :rank] * s[:rank], vh[:rank]
    largest = right.gather(1, right.abs().argmax(dim=1, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0).to(torch.float64)
    return (left * signs.T).float(), (right * signs).float()


def _uniform(count: int, seed: int, name: str) -> NDArray[np.float64]:
    """Numbers in [0, 1), multiples of 2⁻⁵³."""
    key = hashlib.sha256(f"darkroom/factors/{seed}/{name}".encode()).digest()[:16]
    words = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(count)
    return np.asarray(words >> np.uint64(11), dtype=np.float64) * 2.0**-53


def _gaussian(count: int, seed: int, name: str) -> NDArray[np.float64]:
    """Standard normal numbers by Box and Muller's transform."""
    uniform = _uniform(2 * count, seed, name)
    radius = np.sqrt(-2 * np.log1p(-uniform[:count]))
    return np.asarray(radius * np.cos(2 * np.pi * uniform[count:]), dtype=np.float64)
