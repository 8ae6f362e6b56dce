"""Resumable training loops of the base model: a step counter, an atomic checkpoint, a progress bar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import nn
from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SAVE_EVERY: Final = 200
"""Steps between checkpoints."""


@dataclass(frozen=True)
class Stage:
    """One training stage: what is saved, how many steps it takes, and where it keeps its checkpoint."""

    name: str
    steps: int
    modules: dict[str, nn.Module]
    optimizer: torch.optim.Optimizer
    checkpoint: Path

    def restore(self) -> int:
        """Load the checkpoint if there is one; returns the number of steps already done."""
        if not self.checkpoint.exists():
            return 0
        saved = torch.load(self.checkpoint, weights_only=True)
        for key, module in self.modules.items():
            module.load_state_dict(saved[key])
        self.optimizer.load_state_dict(saved["optimizer"])
        return int(saved["step"])

    def save(self, step: int) -> None:
        """Write the checkpoint beside itself and rename, so that a kill leaves the old or the new one."""
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        partial = self.checkpoint.with_suffix(".partial")
        state = {key: module.state_dict() for key, module in self.modules.items()}
        torch.save({**state, "optimizer": self.optimizer.state_dict(), "step": step}, partial)
        partial.replace(self.checkpoint)


def run_stage(stage: Stage, step: Callable[[int], float]) -> None:
    """Call ``step(i)`` (which trains and returns a loss) for every remaining step, saving as it goes."""
    done = stage.restore()
    with tqdm(total=stage.steps, initial=done, desc=stage.name, mininterval=10) as bar:
        smooth = 0.0
        for index in range(done, stage.steps):
            loss = step(index)
            smooth = loss if index == done else 0.98 * smooth + 0.02 * loss
            bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
            bar.update()
            if (index + 1) % SAVE_EVERY == 0 or index + 1 == stage.steps:
                stage.save(index + 1)


def cosine_rate(peak: float, step: int, steps: int, warmup: int = 100) -> float:
    """Linear warm-up, then half a cosine down to 2 % of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    share = (step - warmup) / max(1, steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * share)))))


def descend(loss: torch.Tensor, module: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """One step down the loss, with the gradient clipped to norm 1; the loss."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def set_rate(optimizer: torch.optim.Optimizer, *rates: float) -> None:
    """Set the learning rate of each parameter group."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
