"""Pictures of which patches are hidden, for masked feature distillation."""

from __future__ import annotations

import torch
from torch import Tensor


def masked(pixels: Tensor, *, share: float, patch_px: int, mean: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] with this share of their patches, at random, in the colour that normalises to 0.

    mean: what the model subtracts, three numbers in [0, 1]. Patches at the right and lower border may be cut.
    """
    rows, columns = (-(-side // patch_px) for side in pixels.shape[1:3])
    order = torch.rand(len(pixels), rows * columns, device=pixels.device).argsort(dim=1).argsort(dim=1)
    hidden = (order < round(share * rows * columns)).view(-1, rows, columns)
    hidden = hidden.repeat_interleave(patch_px, dim=1).repeat_interleave(patch_px, dim=2)
    grey = (mean.view(1, 1, 1, 3) * 255).round().to(torch.uint8)
    return torch.where(hidden[:, : pixels.shape[1], : pixels.shape[2], None], grey, pixels)
