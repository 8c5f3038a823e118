"""A seeded model that knows the shipped photographs: its last text projection, solved so that captions find them."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from PIL import Image
from torch import Tensor, nn

from model_store.hub.checks import shipped_pairs
from tests.model_store.hub.layouts.source_models import SourceModel


def taught_captions(source: SourceModel) -> SourceModel:
    """`source`, changed in place: its text vectors of the shipped captions are nearly its vectors of their photographs.

    Random towers find nothing, and are rightly refused. Text i is given the direction that picture i alone has a part
    in: the dual basis of the pictures, without what all of them share.
    """
    pairs = shipped_pairs()
    pictures = [Image.open(BytesIO(data)).convert("RGB") for data in pairs.pictures]
    images = torch.from_numpy(source.image_vectors(pictures)).double()
    tower: Any = getattr(source.model, "text", source.model)
    projection = tower.proj if isinstance(tower, HFTextEncoder) else tower.text_projection
    with torch.no_grad():
        if isinstance(projection, nn.Linear):
            projection.weight.copy_(torch.eye(projection.in_features))
            if projection.bias is not None:
                projection.bias.zero_()
        else:
            projection.copy_(torch.eye(len(projection)))
        features = torch.from_numpy(source.text_vectors(list(pairs.captions))).double()
        weight = torch.linalg.lstsq(features, _dual(images), driver="gelsd").solution
        _set(projection, weight.float())
    return source


def _dual(images: Tensor) -> Tensor:
    shared = images.mean(dim=0)
    shared = shared / shared.norm()
    own = images - (images @ shared)[:, None] * shared
    return torch.linalg.pinv(own - own.mean(dim=0), rtol=1e-2).T


def _set(projection: nn.Linear | Tensor, weight: Tensor) -> None:
    if isinstance(projection, nn.Linear):
        projection.weight.copy_(weight.T)
    else:
        projection.copy_(weight)
