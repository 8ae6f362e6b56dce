"""The steps that are compared: plain LoRA, ours, and Opacus in each of its modes, all on the same model and rows.

Each is a context that gives a function: called, it does everything that one step needs up to the gradient, clipped and
summed where it is private. Only the function is timed.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleExpandedWeights
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping

from common.privacy.clipping import clipped_sum

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from torch import Tensor

    from simulations.bench.dp_models import Subject

Step: TypeAlias = "Callable[[], Tensor]"
Contestant: TypeAlias = "Callable[[Subject, int], AbstractContextManager[Step]]"
CLIP: Final = 0.01


@contextmanager
def plain(subject: Subject, draws: int) -> Iterator[Step]:
    """Diffusers and PEFT as they come: one gradient of the mean loss."""

    def step() -> Tensor:
        (subject.losses(subject.rows).sum() / draws).backward()  # type: ignore[no-untyped-call]
        return _take_gradients(subject)

    yield step


@contextmanager
def ours(subject: Subject, draws: int) -> Iterator[Step]:
    """Per-unit gradients in the same pass, clipped and summed."""

    def step() -> Tensor:
        total = clipped_sum(subject.unet, subject.parameters, [subject.rows], subject.losses, clip=CLIP, draws=draws)
        return torch.from_numpy(total.vector)

    yield step


def _per_sample(wrapper: Any) -> Contestant:  # noqa: ANN401 - Opacus's wrapper classes
    """Opacus with per-row gradients, which its optimiser would clip."""

    @contextmanager
    def contestant(subject: Subject, draws: int) -> Iterator[Step]:
        wrapped = _quietly(wrapper, subject, loss_reduction="sum")

        def step() -> Tensor:
            (subject.losses(subject.rows, wrapped).sum() / draws).backward()  # type: ignore[no-untyped-call]
            return _clip_samples(subject, draws)

        yield step
        _unwrap(wrapped)

    return contestant


@contextmanager
def _two_passes(subject: Subject, draws: int, *, ghost: bool) -> Iterator[Step]:
    """Opacus's fast gradient clipping: norms in one backward pass, the clipped sum in a second.

    Ghost norms need no per-unit gradients.
    """
    if draws != 1:
        raise NotImplementedError("the mean over draws would have to be clipped, which needs per-unit gradients")
    wrapped: Any = _quietly(
        GradSampleModuleFastGradientClipping,
        subject,
        loss_reduction="sum",
        max_grad_norm=CLIP,
        use_ghost_clipping=ghost,
    )

    def step() -> Tensor:
        wrapped.enable_hooks()
        losses = subject.losses(subject.rows, wrapped)
        losses.sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
        factors = wrapped.get_clipping_coef()
        for parameter in subject.parameters:
            parameter.grad = None
        wrapped.disable_hooks()
        (factors * losses).sum().backward()
        return _take_gradients(subject)

    yield step
    _unwrap(wrapped)


def _quietly(kind: Any, subject: Subject, **options: Any) -> Any:  # noqa: ANN401 - Opacus's wrapper classes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind(subject.unet, **options)


def _unwrap(wrapped: Any) -> None:  # noqa: ANN401 - Opacus's wrapper classes
    for name in ("remove_hooks", "_close"):
        if hasattr(wrapped, name):
            getattr(wrapped, name)()
            break
    for parameter in wrapped.parameters():
        for attribute in ("grad_sample", "_norm_sample", "_forward_counter", "_current_grad_sample"):
            if hasattr(parameter, attribute):
                delattr(parameter, attribute)
        parameter.grad = None


def _take_gradients(subject: Subject) -> Tensor:
    total = torch.cat([parameter.grad.flatten() for parameter in subject.parameters if parameter.grad is not None])
    for parameter in subject.parameters:
        parameter.grad = None
    return total


def _clip_samples(subject: Subject, draws: int) -> Tensor:
    """What Opacus's optimiser does with per-row gradients, after the mean over a unit's draws."""
    samples: list[Tensor] = []
    for parameter in subject.parameters:
        held: Any = parameter
        sample = held.grad_sample
        samples.append(sample if draws == 1 else sample.reshape(-1, draws, *sample.shape[1:]).sum(1))
        held.grad_sample = None
        parameter.grad = None
    norms = torch.stack([sample.flatten(1).norm(2, dim=1) for sample in samples], dim=1).norm(2, dim=1)
    factors = (CLIP / (norms + 1e-6)).clamp(max=1.0)
    return torch.cat([torch.einsum("i,i...", factors, sample).flatten() for sample in samples])


STEPS: Final[dict[str, Contestant]] = {
    "plain": plain,
    "ours": ours,
    "opacus_hooks": _per_sample(GradSampleModule),
    "opacus_expanded": _per_sample(GradSampleModuleExpandedWeights),
    "opacus_fast_gradient": partial(_two_passes, ghost=False),
    "opacus_ghost": partial(_two_passes, ghost=True),
}
