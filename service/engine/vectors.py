"""Vectors as they are answered: cut, normalised, and what is said where the model knows nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

KNOWS_NOTHING = "this model knows nothing of this input; try other words, or another model"
Vector = NDArray[np.float32]
_TINY = 1e-12
_SHOWN_PLACES = 20


def finish(vector: Vector, *, normalize: bool = True, dimensions: int | None = None) -> Vector:
    """Cut and L2-normalise one vector; one without a length becomes zeros."""
    vector = vector[:dimensions] if dimensions else vector
    if is_zero(vector):
        return np.zeros_like(vector)
    return (vector / float(np.linalg.norm(vector))).astype(np.float32) if normalize else vector


def is_zero(vector: Vector) -> bool:
    """Whether it points nowhere, but for rounding."""
    return float(np.linalg.norm(vector)) < _TINY


def unknown_inputs(places: Sequence[str], *, so: str = "the vector") -> list[str]:
    """One sentence that names places of a request, such as inputs[3].text, and `so`, which is worth nothing by it."""
    if not places:
        return []
    shown = ", ".join(places[:_SHOWN_PLACES])
    more = f" and {len(places) - _SHOWN_PLACES} more" if len(places) > _SHOWN_PLACES else ""
    return [f"{shown}{more}: this model knows nothing of what is there, so {so} says nothing"]
