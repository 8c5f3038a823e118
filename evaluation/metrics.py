"""Numbers about embeddings and predictions: recall, accuracy, their floor and their uncertainty; numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.confidence import mean_error, share_interval

TIE = 1e-6  # cosines closer than this differ by float32 rounding only


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with its 95 % interval over `n` cases; all in [0, 1]."""

    value: float
    low: float
    high: float
    n: int


def normalize(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Unit rows, float32 [N, D]; a zero row stays zero instead of becoming NaN."""
    vectors = np.asarray(vectors, dtype=np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def first_hit_rank(scores: NDArray[np.floating], relevant: NDArray[np.bool_]) -> NDArray[np.int64]:
    """0-based rank of the best relevant candidate of each query, int64 [Q].

    `scores` [Q, C], `relevant` bool [Q, C] with at least one True per row (else ValueError). A wrong candidate of equal
    score ranks first, so a model that answers the same vector for everything scores 0 and not 1.
    """
    if scores.shape != relevant.shape:
        raise ValueError(f"scores are {scores.shape}, relevant is {relevant.shape}: they must be equal")
    if not relevant.any(axis=1).all():
        raise ValueError(f"query {int(np.argmin(relevant.any(axis=1)))} has no relevant candidate")
    best = np.where(relevant, scores, -np.inf).max(axis=1, keepdims=True)
    return ((scores >= best) & ~relevant).sum(axis=1)


def mean_estimate(
    outcomes: NDArray[np.floating] | NDArray[np.bool_], *, groups: NDArray[np.int64] | None = None
) -> Estimate:
    """Mean of `outcomes` [N], each in 0..1, with its interval (see evaluation.confidence.share_interval).

    groups: int [N], cases of one group are answered alike, such as the captions of one picture; None: each its own.
    """
    outcomes = np.asarray(outcomes, dtype=np.float64)
    if not len(outcomes):
        raise ValueError("no outcomes to average")
    groups = np.arange(len(outcomes)) if groups is None else groups
    value = float(outcomes.mean())
    low, high = share_interval(value, mean_error(outcomes, groups), groups)
    return Estimate(value=value, low=low, high=high, n=len(outcomes))


def class_mean_accuracy(predicted: NDArray[np.integer], truth: NDArray[np.integer]) -> float:
    """Accuracy averaged over the classes that occur in `truth`, so that a frequent class cannot carry the number."""
    return float(np.mean([(predicted[truth == label] == label).mean() for label in np.unique(truth)]))


def majority_share(truth: NDArray[np.integer]) -> float:
    """Accuracy of always answering the most frequent class of `truth`."""
    return float(np.unique(truth, return_counts=True)[1].max() / len(truth))
