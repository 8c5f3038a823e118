"""The numbers that towers compute with: fp32, or bf16 and fp16 under autocast; fp16 with a scaled loss."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from training.run_config import Precision

_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class MixedPrecision:
    """Autocast for a run, and for fp16 the scaler of its loss (Micikevicius et al., 2018, 3.2).

    Weights, gradients, moments and losses are fp32 in any case. fp16 ends at 65,504 and below 6e-8: the loss is
    multiplied by a large number, gradients are divided by it again, and a step whose gradients have overflowed is
    skipped while the number is halved.
    """

    def __init__(self, name: Precision, *, device: str) -> None:
        """device: "cpu" or "cuda"; "auto" is bf16 on a GPU, fp32 elsewhere."""
        if name == "auto":
            name = "bf16" if device == "cuda" else "fp32"
        self._device, self._dtype = device, _DTYPES[name]
        self._scaler = torch.amp.GradScaler(device, enabled=name == "fp16")
        self._skipped = 0

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self._device, dtype=self._dtype or torch.bfloat16, enabled=self._dtype is not None)

    def scaled(self, loss: Tensor) -> Tensor:
        """What backward starts from."""
        return self._scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Bring gradients back to their size, and note whether one of them has overflowed."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the step, or skip it. Only with fp16 this waits for the device."""
        self._scaler.step(optimizer)
        if self._scaler.is_enabled():
            before = self._scaler.get_scale()
            self._scaler.update()
            self._skipped += self._scaler.get_scale() < before

    def numbers(self) -> dict[str, float]:
        """For the log: the factor of the loss, and how many steps were skipped since the run began; fp16 only."""
        if not self._scaler.is_enabled():
            return {}
        return {"loss_scale": self._scaler.get_scale(), "skipped_steps": self._skipped}

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of it; nothing but for fp16."""
        if not self._scaler.is_enabled():
            return {}
        found = self._scaler.state_dict()
        kept = {"scale": found["scale"], "growth_tracker": found["_growth_tracker"], "skipped": self._skipped}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in kept.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Inverse of `state`; without one (another precision until now) the scaler starts anew."""
        if not state or not self._scaler.is_enabled():
            return
        tracker, self._skipped = int(state["growth_tracker"]), int(state["skipped"])
        known = {**self._scaler.state_dict(), "scale": float(state["scale"]), "_growth_tracker": tracker}
        self._scaler.load_state_dict(known)
