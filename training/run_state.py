"""Everything that a step changes: weights as they are and on average, the optimizer's moments, the scaler of fp16."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from training.checkpoint import optimizer_state, restore_optimizer
from training.method import ModuleUse
from training.precision import MixedPrecision

Tensors = dict[str, Tensor]


class RunState:
    """The tensors of a run by name, `<module>.<path>`; frozen modules are none of it.

    live: the tensors themselves. average: what is judged and shipped, an exponential moving average of them. names: of
    the parameters that the optimizer moves.
    """

    def __init__(
        self,
        modules: Mapping[str, tuple[nn.Module, ModuleUse]],
        optimizer: torch.optim.Optimizer,
        names: dict[nn.Parameter, str],
        precision: MixedPrecision,
    ) -> None:
        self.live: Tensors = {
            f"{prefix}.{name}": tensor
            for prefix, (module, use) in modules.items()
            if use != "frozen"
            for name, tensor in module.state_dict(keep_vars=True).items()
        }
        # What is locked never changes, and may be most of a model.
        self._moving = {n: t for n, t in self.live.items() if t.requires_grad or not isinstance(t, nn.Parameter)}
        self.average = self.copied()
        self._optimizer, self._names, self._precision = optimizer, names, precision

    def copied(self) -> Tensors:
        """The live tensors as they are now."""
        return {name: tensor.detach().clone() for name, tensor in self.live.items()}

    def follow(self, step: int, *, decay: float) -> None:
        """Move the average towards the live weights, after 0-based `step`.

        Young averages follow fast, or the first hundreds of steps would stay in them.
        """
        decay = min(decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, tensor in self._moving.items():
                if tensor.is_floating_point():
                    self.average[name].lerp_(tensor, 1 - decay)
                else:
                    self.average[name].copy_(tensor)

    @contextmanager
    def placed(self, other: Tensors) -> Iterator[None]:
        """Run a block with `other` in place of the live weights, and put the live ones back whatever happens."""
        kept = self.copied()
        self._put(other)
        try:
            yield
        finally:
            self._put(kept)

    def saved(self) -> Tensors:
        """What resuming needs, for a checkpoint."""
        parts = {
            "live": self.live,
            "average": self.average,
            "optimizer": optimizer_state(self._optimizer, self._names),
            "scaler": self._precision.state(),
        }
        return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}

    def restore(self, state: Tensors) -> None:
        """Inverse of `saved`."""
        self._put(_below("live/", state))
        with torch.no_grad():
            for name, tensor in _below("average/", state).items():
                self.average[name].copy_(tensor)
        restore_optimizer(self._optimizer, self._names, _below("optimizer/", state))
        self._precision.restore(_below("scaler/", state))

    def _put(self, tensors: Tensors) -> None:
        with torch.no_grad():
            for name, tensor in self.live.items():
                tensor.copy_(tensors[name])


def _below(prefix: str, tensors: Tensors) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
