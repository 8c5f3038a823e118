"""Distance of a set of vectors from its reference, with and without the mean that all of them share."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from model_store.manifest import Fidelity

_TINY = 1e-30


def measure(vectors: ArrayLike, reference: ArrayLike) -> Fidelity:
    """Compare float [n, D] `vectors` with `reference`, row by row.

    The centred figures subtract the reference set's mean from both sides. With n = 1 there is nothing to centre,
    and they repeat the plain ones.
    """
    a, b = np.asarray(vectors, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"got shapes {a.shape} and {b.shape}, expected two equal [n, D]")
    plain = _row_cosines(a, b)
    mean = b.mean(axis=0) if len(b) > 1 else 0.0
    centred = _row_cosines(a - mean, b - mean)
    return Fidelity(
        n=len(a),
        cosine_min=float(plain.min()),
        cosine_mean=float(plain.mean()),
        centred_cosine_min=float(centred.min()),
        centred_cosine_mean=float(centred.mean()),
        centred_relative_l2=float(np.linalg.norm(a - b) / max(float(np.linalg.norm(b - mean)), _TINY)),
    )


def _row_cosines(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    a_norm, b_norm = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    cosines = (a * b).sum(axis=1) / np.maximum(a_norm * b_norm, _TINY)
    # A row that is zero on both sides (a text without a known word) is reproduced, though it has no direction.
    return np.where((a_norm < _TINY) & (b_norm < _TINY), 1.0, cosines)
