"""Hard-concrete gates over the parts of a transformer tower, and the size that they leave of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from training.methods.parts.inheritance import Kept
from training.slim_config import SlimTower

Unit = Literal["channels", "layers", "heads", "mlp"]
UNITS: tuple[Unit, ...] = ("channels", "layers", "heads", "mlp")
# Louizos et al., 2018, "Learning Sparse Neural Networks through L0 Regularization", section 4; TinyCLIP has the same.
TEMPERATURE, LOWEST, HIGHEST = 2 / 3, -0.1, 1.1
_EDGE = 1e-6
_SHIFTED, _HALVINGS, _EXACT = 4.0, 14, 0.005


class HardConcrete(nn.Module):
    """n gates in [0, 1], each a hard-concrete random number with its own log_alpha [n].

    kept: bool [n], which gates are open for good, once `fix` was called.
    """

    def __init__(self, count: int, *, start: float, learned: bool) -> None:
        """start: of log_alpha. learned: False for gates that are always open."""
        super().__init__()
        self.learned = learned
        self.log_alpha = nn.Parameter(torch.full((count,), start), requires_grad=learned)
        self.register_buffer("kept", torch.ones(count, dtype=torch.bool))
        self.kept: Tensor
        self.register_buffer("noise", torch.zeros(count), persistent=False)
        self.noise: Tensor

    def open_probability(self, shift: float = 0.0) -> Tensor:
        """[n]: the probability that a gate is not 0 (equation 12), with `shift` added to log_alpha."""
        if not self.learned:
            return torch.ones_like(self.log_alpha)
        return (self.log_alpha + shift - TEMPERATURE * math.log(-LOWEST / HIGHEST)).sigmoid()

    def draw(self, stream: torch.Generator) -> None:
        """Draw the noise of the next samples from a stream of the CPU."""
        uniform = torch.rand(len(self.log_alpha), generator=stream).clamp(_EDGE, 1 - _EDGE)
        self.noise = uniform.logit().to(self.log_alpha.device)

    def sampled(self) -> Tensor:
        """[n] in [0, 1] of the noise that was drawn last (equations 10 and 11)."""
        if not self.learned:
            return torch.ones_like(self.log_alpha)
        stretched = ((self.noise + self.log_alpha) / TEMPERATURE).sigmoid() * (HIGHEST - LOWEST) + LOWEST
        return stretched.clamp(0, 1)

    def decided(self, shift: float = 0.0) -> Tensor:
        """bool [n]: as many gates as are open on average, those with the largest log_alpha; at least one."""
        if not self.learned:
            return torch.ones_like(self.kept)
        probability = self.open_probability(shift).detach()
        count = max(1, round(float(probability.double().sum())))
        kept = torch.zeros_like(self.kept)
        kept[probability.argsort(descending=True, stable=True)[:count]] = True
        return kept


@dataclass(frozen=True, kw_only=True)
class GateValues:
    """What gates multiply: channels [width], layers [L], and of each layer heads [h] and MLP units [m]."""

    channels: Tensor
    layers: Tensor
    heads: Sequence[Tensor]
    mlp: Sequence[Tensor]


class TowerGates(nn.Module):
    """The gates of one tower of `shape`: its channels, its layers, and the heads and MLP units of each layer.

    over: which of them are learned; the others stay open.
    """

    def __init__(self, shape: SlimTower, *, start: float, over: Sequence[Unit] = UNITS) -> None:
        super().__init__()
        self.shape = shape
        self.channels = HardConcrete(shape.width, start=start, learned="channels" in over)
        self.layers = HardConcrete(len(shape.heads), start=start, learned="layers" in over)
        self.heads = nn.ModuleList(HardConcrete(count, start=start, learned="heads" in over) for count in shape.heads)
        self.mlp = nn.ModuleList(HardConcrete(count, start=start, learned="mlp" in over) for count in shape.mlp)
        self.register_buffer("fixed", torch.tensor(False))
        self.fixed: Tensor

    def gates(self) -> Iterator[HardConcrete]:
        return (module for module in self.modules() if isinstance(module, HardConcrete))

    def draw(self, stream: torch.Generator) -> None:
        for gate in self.gates():
            gate.draw(stream)

    @torch.no_grad()
    def fix(self) -> None:
        """Decide which gates stay open; from now on nothing about them changes."""
        if not self.fixed:
            shift = self._shift()
            for gate in self.gates():
                gate.kept.copy_(gate.decided(shift))
            self.fixed.fill_(True)

    def values(self) -> GateValues:
        """Samples in training; 0 or 1 once the gates are fixed, and in eval mode."""
        return self._each(HardConcrete.sampled) if self.training and not self.fixed else self._closed_or_open()

    def kept(self) -> Kept:
        """What of the tower stays, if training ended now."""
        found = self._closed_or_open()
        layers = _places(found.layers)
        return Kept(
            layers=layers,
            channels=_places(found.channels),
            heads=tuple(_places(found.heads[at]) for at in layers),
            mlp=tuple(_places(found.mlp[at]) for at in layers),
        )

    def sparsity(self) -> Tensor:
        """The share of the blocks' parameters that is expected to be gone, a scalar."""
        probability = self._each(HardConcrete.open_probability)
        whole = block_parameters(self.shape)
        return 1 - expected_parameters(probability, head_width=self.shape.head_width) / whole

    def _closed_or_open(self) -> GateValues:
        if self.fixed:
            return self._each(lambda gate: gate.kept.to(gate.log_alpha.dtype))
        return self._decided(self._shift())

    def _decided(self, shift: float) -> GateValues:
        return self._each(lambda gate: gate.decided(shift).to(gate.log_alpha.dtype))

    @torch.no_grad()
    def _shift(self) -> float:
        """What to add to every log_alpha, so that what is decided has the expected size as nearly as can be.

        Without it every gate's number of open ones is rounded by itself, and in a tower of few heads all of them the
        same way. The size grows with the shift, so it is found by halving.
        """
        width = self.shape.head_width
        expected = float(expected_parameters(self._each(HardConcrete.open_probability), head_width=width))

        def missed(shift: float) -> float:
            return float(expected_parameters(self._decided(shift), head_width=width)) - expected

        low, high = -_SHIFTED, _SHIFTED
        if abs(missed(0.0)) <= _EXACT * expected:
            return 0.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if missed(middle) < 0 else (low, middle)
        return low if abs(missed(low)) < abs(missed(high)) else high

    def _each(self, value: Callable[[HardConcrete], Tensor]) -> GateValues:
        return GateValues(
            channels=value(self.channels),
            layers=value(self.layers),
            heads=[value(gate) for gate in self.heads if isinstance(gate, HardConcrete)],
            mlp=[value(gate) for gate in self.mlp if isinstance(gate, HardConcrete)],
        )


class Multipliers(nn.Module):
    """The two Lagrange multipliers of a tower; the optimizer climbs with them."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.linear, self.quadratic = nn.Parameter(torch.tensor(start)), nn.Parameter(torch.tensor(start))

    def forward(self, sparsity: Tensor, target: float) -> Tensor:
        """linear * gap + quadratic * gap^2, a scalar, with the gap max(target - sparsity, 0): more sparsity than the
        target costs nothing (Wang et al., 2020, "Structured Pruning of Large Language Models", section 3.3, one-sided).
        """
        gap = (target - sparsity).clamp(min=0)
        return self.linear * gap + self.quadratic * gap.square()


def expected_parameters(open_: GateValues, *, head_width: int) -> Tensor:
    """Expected number of weights and biases of the blocks, a scalar, of the probabilities that gates are open.

    A block has its attention, its MLP and two norms (a LayerScale is not counted). Gates are independent, so that the
    expectation of a product is the product of the expectations.
    """
    width = open_.channels.sum()
    total = torch.zeros_like(width)
    for layer, heads, mlp in zip(open_.layers, open_.heads, open_.mlp, strict=True):
        attention = heads.sum() * head_width * (4 * width + 3)
        total = total + layer * (attention + mlp.sum() * (2 * width + 1) + 6 * width)
    return total


def block_parameters(shape: SlimTower) -> int:
    """Number of weights and biases of a tower's blocks, as `expected_parameters` counts them."""
    return sum(
        heads * shape.head_width * (4 * shape.width + 3) + mlp * (2 * shape.width + 1) + 6 * shape.width
        for heads, mlp in zip(shape.heads, shape.mlp, strict=True)
    )


def _places(gates: Tensor) -> tuple[int, ...]:
    return tuple(gates.nonzero().flatten().tolist())
