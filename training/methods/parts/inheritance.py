"""Weight inheritance of TinyCLIP: a smaller transformer tower whose weights are a part of a larger one's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from training.models.tower_plans import BLOCK_AXES, Axis, TowerPlan
from training.options import Options
from training.slim_config import SlimTower


class TowerSize(Options):
    """How much of a tower is inherited; None: all of it. width: channels of the residual stream. heads, mlp: attention
    heads and hidden units of the MLP in each layer.
    """

    layers: int | None = Field(default=None, ge=1)
    width: int | None = Field(default=None, ge=1)
    heads: int | None = Field(default=None, ge=1)
    mlp: int | None = Field(default=None, ge=1)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What of a tower stays, as ascending indices; heads and mlp are those of each layer that stays."""

    layers: tuple[int, ...]
    channels: tuple[int, ...]
    heads: tuple[tuple[int, ...], ...]
    mlp: tuple[tuple[int, ...], ...]


def chosen(shape: SlimTower, size: TowerSize, *, channels: Literal["first", "random"], stream: torch.Generator) -> Kept:
    """Layers at even intervals, the first one included; the first channels, heads and units, or random ones (Wu et al.,
    2023, section 3.2, "manual inheritance").

    Layer i of n is layer floor(i * L / n) of the larger tower's L. Random heads and units are others in every layer.

    Raises:
        ValueError: more of something than the tower has.
    """
    depth = len(shape.heads)
    layers = size.layers or depth
    _refuse_more("layers", layers, depth)
    places = tuple(at * depth // layers for at in range(layers))

    def pick(what: str, wanted: int | None, there: int) -> tuple[int, ...]:
        count = there if wanted is None else wanted
        _refuse_more(what, count, there)
        if channels == "first":
            return tuple(range(count))
        return tuple(sorted(torch.randperm(there, generator=stream)[:count].tolist()))

    return Kept(
        layers=places,
        channels=pick("width", size.width, shape.width),
        heads=tuple(pick("heads", size.heads, shape.heads[at]) for at in places),
        mlp=tuple(pick("mlp", size.mlp, shape.mlp[at]) for at in places),
    )


def kept_shape(shape: SlimTower, kept: Kept) -> SlimTower:
    positions = shape.position_channels
    return SlimTower(
        width=len(kept.channels),
        head_width=shape.head_width,
        heads=tuple(len(each) for each in kept.heads),
        mlp=tuple(len(each) for each in kept.mlp),
        position_channels=None if positions is None else tuple(positions[at] for at in kept.channels),
    )


def inherited_state(state: Mapping[str, Tensor], plan: TowerPlan, shape: SlimTower, kept: Kept) -> dict[str, Tensor]:
    """The state of a model whose tower keeps only a part of itself; everything outside of the tower is as it was.

    state: of the whole model, whose tower has `shape`.
    """
    blocks = plan.block_name(0, "").removesuffix("0.")
    made = {name: tensor for name, tensor in state.items() if not name.startswith(blocks)}
    for name, axis in plan.around.items():
        made[name] = _taken(state[name], axis, kept.channels)
    for place, layer in enumerate(kept.layers):
        inner = shape.heads[layer] * shape.head_width
        heads = [head * shape.head_width + at for head in kept.heads[place] for at in range(shape.head_width)]
        taken: dict[Axis, Sequence[int]] = {
            "channels": kept.channels,
            "heads": heads,
            "packed": [part * inner + at for part in range(3) for at in heads],
            "mlp": kept.mlp[place],
        }
        for weight, axes in BLOCK_AXES.items():
            tensor = state.get(plan.block_name(layer, weight))
            if tensor is None:  # not every block has a LayerScale
                continue
            for axis, kind in enumerate(axes):
                tensor = _taken(tensor, axis, taken[kind])
            made[plan.block_name(place, weight)] = tensor
    return made


def _taken(tensor: Tensor, axis: int, places: Sequence[int]) -> Tensor:
    return tensor.index_select(axis, torch.tensor(places, device=tensor.device))


def _refuse_more(what: str, wanted: int, there: int) -> None:
    if wanted > there:
        raise ValueError(f"{what} = {wanted}, but the base has {there}")
