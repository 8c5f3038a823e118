"""Contrastive losses as pure functions of tensors; equal captions count as positives of each other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def positive_pairs(ids: Tensor) -> Tensor:
    """Which (row, column) pairs of a batch belong together: bool [B, B] from caption ids int64 [B]."""
    return ids[:, None] == ids[None, :]


def info_nce(image: Tensor, text: Tensor, scale: Tensor, positives: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE, a scalar; with one positive per row it is CLIP's loss (Radford et al., 2021, figure 3).

    `image`, `text`: unit vectors [B, D]. `scale`: the inverse temperature, a scalar. `positives`: bool [B, B] with the
    diagonal set; the target of a row is uniform over its positives (Khosla et al., 2020, equation 2), and so the
    matrix need not be a permutation.
    """
    logits = scale * image @ text.T
    if positives is None:
        labels = torch.arange(len(image), device=image.device)
        return (functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)) / 2
    rows = positives / positives.sum(dim=1, keepdim=True)
    columns = positives.T / positives.T.sum(dim=1, keepdim=True)
    return (functional.cross_entropy(logits, rows) + functional.cross_entropy(logits.T, columns)) / 2


def sigmoid_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, positives: Tensor | None = None) -> Tensor:
    """Pairwise sigmoid loss, a scalar: the sum over all B x B pairs divided by B (Zhai et al., 2023, algorithm 1).

    `image`, `text`: unit vectors [B, D]; `scale` and `bias`: scalars; `positives`: bool [B, B], default: the diagonal.
    """
    if positives is None:
        positives = torch.eye(len(image), dtype=torch.bool, device=image.device)
    logits = scale * image @ text.T + bias
    signs = torch.where(positives, 1.0, -1.0).to(logits.dtype)
    return -functional.logsigmoid(signs * logits).sum() / len(image)
