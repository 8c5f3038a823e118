"""Low-rank changes of a frozen model's weights: which weights, and what they are with the change.

Hu et al., 2022, "LoRA: Low-Rank Adaptation of Large Language Models". A weight W becomes W + alpha / rank * up @ down.
Of a convolution this is a second one beside it, k x k to `rank` channels and then 1 x 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from training.exporting.graphs import EncoderGraph
from training.methods.parts.tower_parameters import Towers, tower_parameters
from training.models.towers import DualEncoder

_PACKED = 3


@dataclass(frozen=True)
class LowRankTarget:
    """A parameter by name; `parts`: so many equal pieces of its rows each have a change of their own."""

    name: str
    shape: tuple[int, ...]
    parts: int = 1


def low_rank_targets(model: DualEncoder, towers: Towers) -> tuple[LowRankTarget, ...]:
    """Queries, keys and values of all attention layers, and convolutions over all channels.

    Raises:
        ValueError: there are none.
    """
    names = {id(each): name for name, each in tower_parameters(model, towers).items()}
    found: dict[str, LowRankTarget] = {}
    for module in model.modules():
        for weight, parts in _weights_of(module):
            if (name := names.get(id(weight))) is not None:
                found[name] = LowRankTarget(name, tuple(weight.shape), parts)
    if not found:
        where = "model" if towers == "both" else f"{towers} tower"
        raise ValueError(f"the {where} has neither attention nor a convolution over all channels that could be changed")
    return tuple(found.values())


def _weights_of(module: nn.Module) -> list[tuple[Tensor, int]]:
    """Weights of one module that a change is for, each with its number of parts."""
    packed = getattr(module, "in_proj_weight", None)
    if isinstance(packed, nn.Parameter):
        return [(packed, _PACKED)]
    if isinstance(both := getattr(module, "qkv", None), nn.Linear):
        return [(both.weight, _PACKED)]
    apart = [getattr(module, name, None) for name in ("query", "key", "value")]
    if all(isinstance(each, nn.Linear) for each in apart):
        return [(each.weight, 1) for each in apart if isinstance(each, nn.Linear)]
    if isinstance(module, nn.Conv2d) and module.groups == 1:
        return [(module.weight, 1)]
    return []


class LowRankChange(nn.Module):
    """The two factors of every target's change; it is zero at first, because `up` is."""

    def __init__(self, targets: Sequence[LowRankTarget], *, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.targets, self.scale, self.dropout = tuple(targets), alpha / rank, dropout
        self.down, self.up = nn.ParameterList(), nn.ParameterList()
        for target in self.targets:
            for _ in range(target.parts):
                down = torch.empty(rank, math.prod(target.shape[1:]))
                nn.init.kaiming_uniform_(down, a=math.sqrt(5))
                self.down.append(nn.Parameter(down))
                self.up.append(nn.Parameter(torch.zeros(target.shape[0] // target.parts, rank)))

    def changed(self, weights: Mapping[str, Tensor], *, training: bool = False) -> dict[str, Tensor]:
        """The targets among `weights` with their change.

        training: input channels of the change are dropped, the same ones for all rows and positions of a step, so that
        a change stays a matrix; the original drops every number by itself.
        """
        found, at = dict[str, Tensor](), 0
        for target in self.targets:
            pieces: list[Tensor] = []
            for down, up in zip(self.down[at : at + target.parts], self.up[at : at + target.parts], strict=True):
                kept = functional.dropout(torch.ones(target.shape[1], device=down.device), self.dropout, training)
                pieces.append(up @ (down.unflatten(1, (target.shape[1], -1)) * kept[:, None]).flatten(1))
            at += target.parts
            found[target.name] = weights[target.name] + self.scale * torch.cat(pieces).view(target.shape)
        return found


class LowRankTowers(nn.Module):
    """A frozen base read with changed weights; the change is no submodule, so freezing leaves it alone."""

    def __init__(self, base: DualEncoder, change: LowRankChange) -> None:
        super().__init__()
        self.base, self._change = base, (change,)
        self.doors = nn.ModuleDict({door: EncoderGraph(base, door) for door in ("encode_image", "encode_text")})

    def weights(self, *, training: bool = False) -> dict[str, Tensor]:
        """The changed weights, by their names in the base."""
        return self._change[0].changed(dict(self.base.named_parameters()), training=training)

    def encode(
        self, door: Literal["encode_image", "encode_text"], inputs: Tensor, weights: Mapping[str, Tensor]
    ) -> Tensor:
        """What the base's function `door` says with these weights."""
        return functional_call(self.doors[door], {f"model.{name}": each for name, each in weights.items()}, (inputs,))

    def encode_image(self, pixels: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> [B, D]."""
        return self.encode("encode_image", pixels, self.weights())

    def encode_text(self, ids: Tensor) -> Tensor:
        """int64 [B, L] -> [B, D]."""
        return self.encode("encode_text", ids, self.weights())
