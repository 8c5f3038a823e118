"""The head of CLIP-Adapter: zero-shot behind a small network that changes the image vector."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from evaluation.metrics import normalize
from training.exporting.derived_graphs import linear_head
from training.methods.parts.class_heads import F32, ClassHead

NARROWER, FIRST_RATIO = 4, 0.2
_SURE = 1e-9


class Bottleneck(nn.Module):
    """Unit vectors [n, D] -> the unit vectors of r relu(relu(x down) up) + (1 - r) x, where the middle is D / 4 wide.

    Gao et al., 2021, "CLIP-Adapter", equations 4 to 7; the second ReLU is of the authors' code. One logistic layer says
    r of each x: always `ratio`, for it is not trained; or None: it is, and starts at .2 for every x.
    """

    def __init__(self, dim: int, *, ratio: float | None) -> None:
        super().__init__()
        hidden = max(1, dim // NARROWER)
        self.down, self.up = nn.Linear(dim, hidden, bias=False), nn.Linear(hidden, dim, bias=False)
        self.gate = nn.Linear(dim, 1).requires_grad_(ratio is None)
        share = min(max(FIRST_RATIO if ratio is None else ratio, _SURE), 1 - _SURE)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, float(np.log(share / (1 - share))))

    def forward(self, vectors: Tensor) -> Tensor:
        ratio = self.gate(vectors).sigmoid()
        changed = self.up(self.down(vectors).relu()).relu()
        return functional.normalize(ratio * changed + (1 - ratio) * vectors, dim=-1)


@dataclass(frozen=True, kw_only=True)
class AdapterHead(ClassHead):
    """logits [n, C] = unit(r relu(relu(x @ down) @ up) + (1 - r) x) @ weight + bias, of unit vectors x [n, D].

    down [D, H], up [H, D]; r = sigmoid(x @ gate + gate_bias), gate [D] and gate_bias [].
    """

    down: F32
    up: F32
    gate: F32
    gate_bias: F32

    def __post_init__(self) -> None:
        super().__post_init__()
        dim, hidden = len(self.weight), self.down.shape[-1]
        wanted = (dim, hidden), (hidden, dim), (dim,), ()
        found = self.down.shape, self.up.shape, self.gate.shape, self.gate_bias.shape
        if found != wanted:
            raise ValueError(f"down, up, gate and gate_bias have shapes {found}, expected {wanted}")

    def __call__(self, vectors: NDArray[np.floating]) -> F32:
        x = vectors.astype(np.float32)
        ratio = (0.5 * (1 + np.tanh(0.5 * (x @ self.gate + self.gate_bias))))[:, None]
        changed = np.maximum(np.maximum(x @ self.down, 0) @ self.up, 0)
        return normalize(ratio * changed + (1 - ratio) * x) @ self.weight + self.bias

    def module(self) -> nn.Module:
        bottleneck = Bottleneck(len(self.weight), ratio=0.5)
        stored = {"down.weight": self.down.T, "up.weight": self.up.T, "gate.weight": self.gate[None]}
        state = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in stored.items()}
        bottleneck.load_state_dict({**state, "gate.bias": torch.from_numpy(self.gate_bias.reshape(1))})
        labels = [str(at) for at in range(len(self.bias))]
        linear = linear_head(self.weight.T, self.bias, labels).module
        return nn.Sequential(bottleneck, linear).eval().requires_grad_(False)


def adapter_head(bottleneck: Bottleneck, *, weight: F32, bias: F32) -> AdapterHead:
    """The head that reads `weight` [D, C] and `bias` [C] behind the bottleneck as it is now."""
    state = {name: tensor.detach().numpy().copy() for name, tensor in bottleneck.state_dict().items()}
    return AdapterHead(
        weight=weight,
        bias=bias,
        down=np.ascontiguousarray(state["down.weight"].T),
        up=np.ascontiguousarray(state["up.weight"].T),
        gate=state["gate.weight"][0],
        gate_bias=state["gate.bias"].reshape(()),
    )
