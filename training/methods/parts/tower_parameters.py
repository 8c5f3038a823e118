"""Weights of a model by the tower they belong to, and the tower that stays as it is."""

from __future__ import annotations

from typing import Literal

from torch import nn

from training.bases import StoredTowers
from training.models.towers import DualEncoder

Towers = Literal["both", "image", "text"]


def tower_parameters(model: DualEncoder, towers: Towers) -> dict[str, nn.Parameter]:
    """All parameters of these towers by name; the factor and the offset of scores belong to neither.

    Raises:
        ValueError: the model is a graph, which has none.
    """
    if isinstance(model, StoredTowers):
        raise ValueError("a stored model is a graph, whose weights cannot be changed: take its checkpoint as base")
    image = {id(parameter) for part in model.image_parts() for parameter in part.parameters()}
    neither = {id(getattr(model, name, None)) for name in ("logit_scale", "logit_bias")}
    wanted = {"both": (True, False), "image": (True,), "text": (False,)}[towers]
    named = {name: each for name, each in model.named_parameters() if id(each) not in neither}
    return {name: each for name, each in named.items() if (id(each) in image) in wanted}


def lock_the_other(model: DualEncoder, towers: Towers) -> None:
    """Freeze the tower that is not named: no gradients, no dropout, and its statistics stay."""
    if towers == "text":
        model.lock_image()
    elif towers == "image":
        image = {id(module) for part in model.image_parts() for module in part.modules()}
        model.lock(*(each for each in model.modules() if not any(id(inner) in image for inner in each.modules())))
