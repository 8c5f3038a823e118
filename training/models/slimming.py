"""Builds the towers of a slim model: the architecture's own modules, narrower, with slim blocks inside."""

# torch gives every submodule the type Tensor | Module; open_clip builds on that.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportIndexIssue=false

from __future__ import annotations

from torch import nn

from training.models.slim_blocks import SlimBlock
from training.models.tower_plans import TowerPlan, plan_of, shape_of
from training.models.towers import DualEncoder
from training.models.trunks import scale_init
from training.slim_config import SlimShape, SlimTower

# What modules note of the shape of their weights.
_NOTED = {
    nn.Linear: (("in_features", 1), ("out_features", 0)),
    nn.Embedding: (("embedding_dim", 1),),
    nn.Conv2d: (("out_channels", 0),),
}


def slim_towers(model: DualEncoder, shape: SlimShape) -> None:
    """Give a freshly built model the towers of `shape`; their blocks start anew, with CLIP's initialisation.

    Raises:
        ValueError: a tower that cannot shrink, or a shape that is no part of it.
    """
    for side, tower in (("image", shape.image), ("text", shape.text)):
        if tower is not None:
            _slim(model, plan_of(model, side), tower)


def _slim(model: DualEncoder, plan: TowerPlan, shape: SlimTower) -> None:
    whole, transformer = shape_of(model, plan), model.get_submodule(plan.transformer)
    if shape.width > whole.width:
        raise ValueError(f"model.slim.{plan.side}: width {shape.width}, but the architecture has {whole.width}")
    if shape.width != whole.width and plan.fixed_width is not None:
        raise ValueError(f"model.slim.{plan.side}: the width stays {whole.width}: {plan.fixed_width}")
    pattern = plan.blocks(model)[0]
    transformer.resblocks = nn.ModuleList(
        SlimBlock(shape.width, heads=heads, head_width=shape.head_width, mlp=mlp, pattern=pattern)
        for heads, mlp in zip(shape.heads, shape.mlp, strict=True)
    )
    transformer.width, transformer.layers = shape.width, len(shape.heads)
    for path, axis in plan.around.items():
        _narrow(model, path, axis, shape.width)
    if plan.sines is not None:
        trunk, channels = model.get_submodule(plan.sines), shape.position_channels or tuple(range(shape.width))
        if max(channels) >= whole.width:
            raise ValueError(f"model.slim.{plan.side}: position_channels name {max(channels)} of {whole.width}")
        trunk.num_features, trunk.position_channels = shape.width, channels
    scale_init(transformer, shape.width)


def _narrow(model: nn.Module, path: str, axis: int, width: int) -> None:
    """Keep the first `width` entries of a weight along `axis`, and what its module notes of it."""
    owner, _, name = path.rpartition(".")
    module = model.get_submodule(owner)
    weight = getattr(module, name)
    setattr(module, name, nn.Parameter(weight.detach().narrow(axis, 0, width).clone(), weight.requires_grad))
    if isinstance(module, nn.LayerNorm):
        module.normalized_shape = (width,)
    for kind, noted in _NOTED.items():
        if isinstance(module, kind) and name == "weight":
            for attribute, place in noted:
                setattr(module, attribute, module.weight.shape[place])
