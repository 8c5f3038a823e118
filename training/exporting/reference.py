"""The torch model's own vectors, which every exported graph is compared with."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from model_store.precisions.measure import MeasuredRows

_CHUNK = 16


def torch_vectors(module: nn.Module, rows: MeasuredRows) -> NDArray[np.float32]:
    """The module's own answers, float32 [N, D], padding uncut."""
    with torch.inference_mode():
        parts = [
            module(torch.from_numpy(rows.padded[start : start + _CHUNK]))
            for start in range(0, len(rows.padded), _CHUNK)
        ]
    return torch.cat(parts).float().numpy()
