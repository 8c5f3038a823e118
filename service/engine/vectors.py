"""What becomes of an encoder's row before anyone sees it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

KNOWS_NOTHING = "this model knows nothing of this input; try other words, or another model"
Vector = NDArray[np.float32]
_TINY = 1e-12


def finish(vector: Vector, *, normalize: bool = True, dimensions: int | None = None) -> Vector:
    """Cut and L2-normalise one vector; one without a length becomes zeros."""
    vector = vector[:dimensions] if dimensions else vector
    if is_zero(vector):
        return np.zeros_like(vector)
    return (vector / float(np.linalg.norm(vector))).astype(np.float32) if normalize else vector


def is_zero(vector: Vector) -> bool:
    """Whether it points nowhere, but for rounding."""
    return float(np.linalg.norm(vector)) < _TINY
