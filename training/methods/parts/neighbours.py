"""Nearest neighbours of pictures by a model's vectors, of which hard batches are made."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from training.checkpoint import LoadedModel
from training.encoder import TorchEncoder

_CHUNK = 512


def image_neighbours(
    base: LoadedModel, pixels: NDArray[np.uint8], *, groups: NDArray[np.int64], count: int, device: str
) -> NDArray[np.int64]:
    """The `count` nearest pictures of each by cosine, nearest first: int64 [N, count].

    `pixels`: uint8 [N, S, S, 3]; those of a picture's own group (int64 [N], it is in it) are left out.

    Raises:
        ValueError: a picture has fewer than `count` others out of its group.
    """
    others = len(groups) - np.bincount(np.unique(groups, return_inverse=True)[1]).max(initial=0)
    if others < count:
        raise ValueError(f"neighbours = {count}: a picture has only {others} others with another caption")
    model = base.model.to(device)
    encoder = TorchEncoder(
        model.encode_image,
        model.encode_text,
        image_spec=base.info.image_spec,
        tokenizer=base.tokenizer,
        name="base",
        fingerprint=base.info.weights_sha256,
        device=device,
    )
    starts = range(0, len(pixels), _CHUNK)
    vectors = torch.from_numpy(np.concatenate([encoder.encode_images(list(pixels[at : at + _CHUNK])) for at in starts]))
    ids = torch.from_numpy(groups)
    found = np.empty((len(pixels), count), dtype=np.int64)
    for at in starts:
        close = vectors[at : at + _CHUNK] @ vectors.T
        close[ids[at : at + _CHUNK, None] == ids[None, :]] = -torch.inf
        found[at : at + _CHUNK] = close.topk(count, dim=1).indices.numpy()
    return found
