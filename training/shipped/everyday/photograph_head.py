"""The head for photographs: a weighted ridge regression of text vectors on the features in front of the classifier.

The rows of the classifier stand for pictures of their classes, so that few photographs are enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
_FLOOR = 0.05  # of the mean deviation: features that hardly vary are not blown up


@dataclass(frozen=True)
class Scaling:
    """Features [..., F] -> standardised ones: (x - mean) / deviation."""

    mean: F32
    deviation: F32

    @classmethod
    def of(cls, rows: F32) -> Scaling:
        deviation = rows.std(axis=0)
        return cls(rows.mean(axis=0), deviation + _FLOOR * deviation.mean())

    def __call__(self, rows: F32) -> F32:
        return ((rows - self.mean) / self.deviation).astype(np.float32)

    def folded(self, weight: F32, bias: F32) -> tuple[F32, F32]:
        """A linear map [D, F], [D] of standardised features as one of the features themselves."""
        weight = (weight / self.deviation).astype(np.float32)
        return weight, (bias - weight @ self.mean).astype(np.float32)


@dataclass(frozen=True)
class Examples:
    """features [n, F], text vectors [n, D], and the weight of each row."""

    features: F32
    vectors: F32
    weight: float


def class_pictures(rows: F32, scaling: Scaling, *, length: float) -> F32:
    """Standardised features [K, F] of pictures of the classes: the rows of the classifier, less their mean, in the
    space of standardised features, as long as a photograph."""
    found = (rows - rows.mean(axis=0)) * scaling.deviation
    return found / np.linalg.norm(found, axis=1, keepdims=True) * length


def fit_ridge(examples: Sequence[Examples], *, strength: float) -> F32:
    """[F, D], the minimum of sum weight |x M - y|^2 + strength |M|^2 over standardised features x."""
    inputs = examples[0].features.shape[1]
    gram = np.zeros((inputs, inputs), dtype=np.float64)
    moment = np.zeros((inputs, examples[0].vectors.shape[1]), dtype=np.float64)
    for each in examples:
        x = each.features.astype(np.float64)
        gram += each.weight * (x.T @ x)
        moment += each.weight * (x.T @ each.vectors)
    gram[np.diag_indices_from(gram)] += strength
    return np.linalg.solve(gram, moment).astype(np.float32)
