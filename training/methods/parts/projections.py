"""The linear maps that end the two towers of a model, from its weights."""

# torch gives every submodule the type Tensor | Module; open_clip builds on that.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportReturnType=false

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.models.towers import AttentionHead, DualEncoder, FlatHead, OpenClipDualEncoder, SmallDualEncoder


@dataclass(frozen=True, kw_only=True)
class Projections:
    """image [D, C] and text [D, W], float32: vectors are these times what the towers make of a picture or a text.

    A bias is the last column, for a feature that is always one.
    """

    image: NDArray[np.float32]
    text: NDArray[np.float32]


def projections_of(model: DualEncoder) -> Projections:
    """Raises:
    ValueError: a tower does not end in a linear map that is known here; the message says why.
    """
    if isinstance(model, SmallDualEncoder):
        image, text = _small_image(model.image_projection), _small_text(model)
    elif isinstance(model, OpenClipDualEncoder):
        clip = model.clip
        image = _last(clip.visual, "proj")
        text = _last(clip if isinstance(clip, open_clip.CLIP) else clip.text, "text_projection")
    else:
        raise ValueError(
            f"{type(model).__name__}: its towers do not end in projections that are known here; take a checkpoint of "
            "an own model or of an open_clip one"
        )
    return Projections(image=_array(image), text=_array(text))


def _small_image(head: nn.Module) -> Tensor:
    if isinstance(head, FlatHead):
        return torch.cat([head.weight.flatten(0, 1).T, head.bias[:, None]], dim=1)
    return _with_bias(head.projection if isinstance(head, AttentionHead) else head)


def _small_text(model: SmallDualEncoder) -> Tensor:
    tower = model.text
    parts = [] if tower.pool == "bag" else [tower.projection.weight]
    if tower.pool != "eos":
        if not isinstance(tower.bag_projection, nn.Linear):
            raise ValueError("the text tower adds token embeddings up without a projection: nothing to take apart")
        parts.append(tower.bag_projection.weight)
    return torch.cat(parts, dim=1)


def _last(tower: nn.Module, name: str) -> Tensor:
    found = getattr(tower, name, None)
    if isinstance(found, nn.Linear):
        return _with_bias(found)
    if not isinstance(found, Tensor):
        raise ValueError(f"{type(tower).__name__} has no {name} that is a matrix")
    return found.T  # OpenAI's are applied from the right


def _with_bias(layer: nn.Module) -> Tensor:
    bias = layer.bias
    return layer.weight if bias is None else torch.cat([layer.weight, bias[:, None]], dim=1)


def _array(matrix: Tensor) -> NDArray[np.float32]:
    return matrix.detach().float().cpu().numpy()
