"""The optimizer of a run: its groups, its rate at every step, and the watch over a loss that leaves the numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from training.method import ParamGroup
from training.run_config import OptimConfig


def rate_at(step: int, optim: OptimConfig) -> float:
    """Learning rate of a 0-based step: linear warm-up, then half a cosine down to `final_rate_share` of the peak."""
    if step < optim.warmup_steps:
        return optim.rate * (step + 1) / optim.warmup_steps
    share = (step - optim.warmup_steps) / max(1, optim.steps - optim.warmup_steps)
    floor = optim.rate * optim.final_rate_share
    return floor + (optim.rate - floor) * (1 + math.cos(math.pi * share)) / 2


def adamw(groups: Sequence[ParamGroup], optim: OptimConfig) -> tuple[torch.optim.AdamW, dict[nn.Parameter, str]]:
    """AdamW with decay on matrices and none on vectors and scalars (norms, biases, the temperature), and every
    parameter's name. The rate of a group is `rate_at` times its `rate_share`."""
    made: list[dict[str, Any]] = []
    names: dict[nn.Parameter, str] = {}
    for group in groups:
        decay = optim.weight_decay if group.weight_decay is None else group.weight_decay
        names |= {parameter: name for name, parameter in group.parameters.items()}
        for is_matrix in (True, False):
            chosen = [p for p in group.parameters.values() if (p.ndim >= 2) == is_matrix]
            made.append(
                {
                    "params": chosen,
                    "weight_decay": decay if is_matrix else 0.0,
                    "rate_share": group.rate_share,
                    "maximize": group.maximize,
                }
            )
    filled = [group for group in made if group["params"]]
    return torch.optim.AdamW(filled, lr=optim.rate, betas=optim.betas, eps=optim.epsilon, fused=True), names


class LossWatch:
    """Remembers on the device the first loss that is no finite number, so that not every step waits to see it."""

    def __init__(self, device: str, *, at_once: bool) -> None:
        """at_once: look at every loss as it comes, which costs nothing where the device is the CPU."""
        self._step = torch.full((), -1, dtype=torch.int64, device=device)
        self._loss = torch.zeros((), device=device)
        self._at_once = at_once

    def note(self, step: int, loss: Tensor) -> None:
        """The loss of a 0-based step.

        Raises:
            ValueError: as `check`, where losses are looked at at once.
        """
        first = ~torch.isfinite(loss) & (self._step < 0)
        self._step = torch.where(first, step, self._step)
        self._loss = torch.where(first, loss, self._loss)
        if self._at_once:
            self.check()

    def check(self) -> None:
        """Raises:
        ValueError: a loss so far was no finite number.
        """
        if (step := int(self._step)) >= 0:
            raise ValueError(f"loss is {self._loss.item()} at step {step}: lower optim.rate or look at the data")
