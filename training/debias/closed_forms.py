"""Projections that take a subspace out of vectors; numpy, float64.

Chuang et al., 2023, "Debiasing Vision-Language Models via Biased Prompts" (arXiv 2302.00070): the subspace is spanned
by prompts that name the groups, and texts are projected. Here it may also be spanned by the differences of such prompts
or by the differences of groups of pictures, and pictures may be projected too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]
_LEAST = 1e-6  # of the largest singular value: a direction shorter than this is rounding


def unit_rows(vectors: ArrayLike) -> F64:
    """Rows [n, D] divided by their length.

    Raises:
        ValueError: a row of zeros, or one that is not finite.
    """
    rows = np.asarray(vectors, dtype=np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(rows).all() or not lengths.all():
        raise ValueError("a vector is zero or not finite")
    return rows / lengths


def differences(vectors: ArrayLike) -> F64:
    """Rows [n, D] less their mean: what n prompts do not have in common, of rank n - 1 at most."""
    rows = unit_rows(vectors)
    return rows - np.mean(rows, axis=0)


def group_differences(vectors: ArrayLike, groups: Sequence[str], within: Sequence[str] | None = None) -> F64:
    """Mean vector of each group less the mean of all groups, [groups, D].

    within: a label of each vector. Groups are then compared label by label, each label that has two groups or more
    counting alike, so that a label which is more frequent in one group is not taken for a sign of that group.

    Raises:
        ValueError: no label has two groups.
    """
    rows, names = unit_rows(vectors), sorted(set(groups))
    labels = np.zeros(len(rows), dtype=int) if within is None else np.unique(list(within), return_inverse=True)[1]
    of = np.array([names.index(group) for group in groups])
    found = [np.empty((0, rows.shape[1])) for _ in names]
    for label in np.unique(labels):
        present = [group for group in range(len(names)) if ((of == group) & (labels == label)).any()]
        if len(present) < 2:
            continue
        means = np.stack([rows[(of == group) & (labels == label)].mean(axis=0) for group in present])
        for group, apart in zip(present, means - means.mean(axis=0), strict=True):
            found[group] = np.vstack([found[group], apart])
    if not any(len(each) for each in found):
        raise ValueError("no label has pictures of two groups: nothing to compare")
    return np.stack([each.mean(axis=0) for each in found if len(each)])


def removal(spanning: ArrayLike) -> F64:
    """I - V (V^T V)^-1 V^T [D, D] with the rows of `spanning` [r, D] as columns of V.

    By the singular value decomposition, so the rows may depend on each other; it is symmetric and its own square.

    Raises:
        ValueError: the rows span nothing, or everything.
    """
    rows = np.asarray(spanning, dtype=np.float64)
    _, lengths, directions = np.linalg.svd(rows, full_matrices=False)
    kept = directions[lengths > _LEAST * lengths[0]] if lengths[0] > 0 else directions[:0]
    if not 0 < len(kept) < rows.shape[1]:
        raise ValueError(f"the directions span {len(kept)} of {rows.shape[1]} dimensions: nothing can be removed")
    return np.eye(rows.shape[1]) - kept.T @ kept


def calibrated(projection: F64, first: ArrayLike, second: ArrayLike, *, weight: float) -> F64:
    """A matrix near `projection` that maps the texts of each pair nearly alike, [D, D] for column vectors.

    It minimises |P - projection|^2 + weight / S sum over pairs of |P a - P b|^2, which is solved by
    projection (I + weight / S sum of (a - b)(a - b)^T)^-1 (Chuang et al., and their published code). first, second: a
    and b of S pairs [S, D] that differ in the group alone, "a photo of a male doctor" and "... female doctor".

    Raises:
        ValueError: no pairs, or a negative weight.
    """
    apart = unit_rows(first) - unit_rows(second)
    if not len(apart) or weight < 0:
        raise ValueError(f"{len(apart)} pairs and weight {weight}: expected at least one, and no negative weight")
    inner = np.eye(len(projection)) + weight / len(apart) * apart.T @ apart
    return np.asarray(np.linalg.solve(inner, projection.T).T, dtype=np.float64)  # inner is symmetric


def applied(matrix: F64, vectors: ArrayLike) -> F64:
    """Unit rows of `matrix` [D, D] times each of `vectors` [n, D]; zeros for a vector of which nothing is left."""
    rows = unit_rows(vectors) @ matrix.T
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(lengths > _LEAST, rows / np.maximum(lengths, _LEAST), 0.0)
