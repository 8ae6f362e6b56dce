"""The sum over privacy units of clipped gradients: the one quantity that leaves an institution's data.

A unit's gradient is the mean over its K draws of (image of the unit, timestep, noise), taken at one and the same
adapter, and is scaled down to norm C if it is longer (Abadi et al. 2016, arXiv:1607.00133). The mean comes *before* the
clip: clipping each draw on its own lets one unit move the sum by K·C.

Example:
    Two units, of which one would pull two hundred times as hard:

    >>> import torch
    >>> from peft import LoraConfig, inject_adapter_in_model
    >>> lora = LoraConfig(r=1, target_modules=["0"], init_lora_weights=False)
    >>> model = inject_adapter_in_model(lora, torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False)))
    >>> for parameter in model.parameters():
    ...     _ = parameter.data.fill_(0.5)
    >>> trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    >>> units = torch.tensor([[1.0, 2.0], [200.0, 400.0]])
    >>> total = clipped_sum(model, trained, [units], lambda batch: model(batch).square().sum(1), clip=0.001)
    >>> total, round(float((total.vector**2).sum() ** 0.5), 6)  # both pull the same way
    (ClippedSum(sensitivity=0.001), 0.002)

"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import torch

from common.errors import ClippingError
from common.privacy.arithmetic import computed
from common.privacy.unit_gradients import record_units

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy as np
    import numpy.typing as npt
    from torch import Tensor, nn

    from common.privacy.unit_gradients import UnitRecorder

Batch = TypeVar("Batch")


@dataclass(frozen=True, kw_only=True)
class ClippedSum:
    """Σ over the sampled units of their clipped gradients; secret until noise is added.

    Attributes:
        vector: [d] float64, in the order of the trained parameters; never shown.
        sensitivity: The most that one unit moves ``vector`` when it is added or removed, in Euclidean norm.

    """

    vector: npt.NDArray[np.float64] = field(repr=False)
    sensitivity: float

    @property
    def coordinates(self) -> int:
        """Length d of the vector."""
        return self.vector.size


def clipped_sum(
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    batches: Iterable[Batch],
    losses: Callable[[Batch], Tensor],
    *,
    clip: float,
    draws: int = 1,
) -> ClippedSum:
    """Sum the clipped per-unit gradients over micro-batches of whole units.

    Guarantee: adding or removing one unit moves the result by at most ``clip`` in Euclidean norm, and by what float64
    rounds, whatever its data, if each unit's gradient has the same bits at every place of a micro-batch, in every one
    of them, and among any other units. Then all other terms are the same with and without it; its own is scaled, and
    all are added, in float64, which rounds by less than k²·2⁻⁵³·``clip`` for k units. A unit whose gradient is not
    finite counts as zero.

    Assumed, not shown here: that equality. A float32 gradient whose last bits follow its neighbours' company can be
    turned by a chosen adapter into one of another direction, which clipping does not bound. Micro-batches of one size,
    filled up with rows of weight 0, are what it takes on a processor; the steward asks its device before each run
    (:mod:`client.training.batch_invariance`), and takes one unit at a time where nothing else will do.

    Args:
        model: With PEFT LoRA layers, see :func:`common.privacy.unit_gradients.record_units`; its parameters' ``grad``
            is neither read nor changed.
        parameters: All trained parameters, in the order of the vector.
        batches: Micro-batches of whole units, of any sizes, though the guarantee wants one size; none at all gives the
            zero vector.
        losses: Runs the model on one micro-batch of u units and returns [u·draws] losses, a unit's draws next to each
            other. It may use autocast and gradient checkpointing; losses must not be scaled. It and the batches are
            called in another thread, see :func:`common.privacy.arithmetic.computed`.
        clip: C > 0.
        draws: K ≥ 1 rows per unit.

    Raises:
        ClippingError: A model or batch whose per-unit gradients cannot be had exactly.

    """
    if not (clip > 0 and math.isfinite(clip)):
        raise ClippingError(f"wanted a finite clip norm above 0, got {clip}")
    total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64, device=parameters[0].device)
    parts = torch.split(total, [p.numel() for p in parameters])

    def add_all() -> None:
        for batch in batches:
            _add_clipped(parts, _backward(recorder, losses(batch), draws), clip)

    with record_units(model, parameters, draws=draws) as recorder:
        computed(add_all)
    return ClippedSum(vector=total.cpu().numpy(), sensitivity=clip)


def unit_gradients(
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    batch: Batch,
    losses: Callable[[Batch], Tensor],
    *,
    draws: int = 1,
) -> Tensor:
    """The unclipped gradient of each unit of one micro-batch, [units, d], to the bit as :func:`clipped_sum` takes it.

    They are the data: for data that is public. Arguments and errors as for :func:`clipped_sum`.
    """
    with record_units(model, parameters, draws=draws) as recorder:
        parts = computed(lambda: _backward(recorder, losses(batch), draws))
    units = max(len(part) for part in parts if part is not None)
    return torch.cat(
        [
            torch.zeros(units, p.numel()) if part is None else part.cpu()
            for p, part in zip(parameters, parts, strict=True)
        ],
        1,
    )


def _backward(recorder: UnitRecorder, losses: Tensor, draws: int) -> list[Tensor | None]:
    """Each parameter's gradient per unit, [units, size], or None where no loss depends on it."""
    if losses.dim() != 1:
        raise ClippingError(f"wanted one loss per draw in one dimension, got {losses.dim()} dimensions")
    units = recorder.units_in(losses.shape[0], "losses")
    mean = losses.to(torch.promote_types(losses.dtype, torch.float32)).sum() / draws
    mean.backward()  # type: ignore[no-untyped-call]
    return [None if one is None else one.reshape(units, -1) for one in recorder.collect()]


def _norms(gradients: Sequence[Tensor | None]) -> Tensor:
    """Norm of each unit's whole gradient, [units] float64: squares are summed in float64 whatever the gradients are."""
    parts = [torch.linalg.vector_norm(g, dim=1, dtype=torch.float64) for g in gradients if g is not None]
    if not parts:
        raise ClippingError("wanted losses that depend on the adapter, got none that does")
    norms: Tensor = torch.linalg.vector_norm(torch.stack(parts), dim=0)
    return norms


def _add_clipped(parts: Sequence[Tensor], gradients: Sequence[Tensor | None], clip: float) -> None:
    norms = _norms(gradients).tolist()
    for part, gradient in zip(parts, gradients, strict=True):
        if gradient is None:
            continue
        for row, norm in zip(gradient, norms, strict=True):
            if math.isfinite(norm):  # a NaN or infinity times a factor of zero would still be NaN
                part.add_(row, alpha=1.0 if norm <= clip else clip / norm)
