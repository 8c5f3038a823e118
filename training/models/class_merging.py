"""Fewer classes of a classifier: the most similar ones become one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

F64 = NDArray[np.float64]
_ROWS_SHARE = 0.5  # of the rows' directions beside the text vectors'


def merged_classes(vectors: Tensor, rows: Tensor, count: int) -> list[NDArray[np.int64]]:
    """The members of `count` groups of similar classes; vectors [K, D] say what a class is called, rows [K, F] of the
    classifier what it looks like.

    Groups are merged two by two as the sum of squared distances to their means grows least (Ward, 1963).
    """
    said, looks = (_directions(side) for side in (vectors, rows - rows.mean(dim=0)))
    means: F64 = np.concatenate([said, _ROWS_SHARE * looks], axis=1)
    groups = [np.array([each]) for each in range(len(means))]
    sizes = np.ones(len(means))
    square = (means**2).sum(axis=1)
    growth = 0.5 * np.maximum(square[:, None] + square[None] - 2 * means @ means.T, 0)
    np.fill_diagonal(growth, np.inf)
    for _ in range(len(means) - count):
        a, b = np.unravel_index(int(growth.argmin()), growth.shape)
        means[a] = (sizes[a] * means[a] + sizes[b] * means[b]) / (sizes[a] + sizes[b])
        sizes[a] += sizes[b]
        groups[a], groups[b] = np.concatenate([groups[a], groups[b]]), groups[b][:0]
        apart = sizes[a] * sizes / (sizes[a] + sizes) * ((means - means[a]) ** 2).sum(axis=1)
        apart[[a, *(each for each, group in enumerate(groups) if not len(group))]] = np.inf
        growth[a], growth[:, a] = apart, apart
        growth[b], growth[:, b] = np.inf, np.inf
    return [np.sort(group) for group in groups if len(group)]


def _directions(side: Tensor) -> F64:
    found = side.detach().cpu().numpy().astype(np.float64)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
