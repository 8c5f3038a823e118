"""Losses that an attack maximises, with their derivatives by the logits; in float64, where no probability is zero."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from evaluation.robustness.classifier import F64, I64

Loss = Callable[[F64], tuple[F64, F64]]
"""Logits [N, C] -> loss [N], the higher the worse for the classifier, and its derivatives [N, C]."""


def cross_entropy(truth: I64) -> Loss:
    """Of the true classes int64 [N]."""

    def of(logits: F64) -> tuple[F64, F64]:
        rows = np.arange(len(truth))
        shifted = logits - logits.max(axis=1, keepdims=True)
        total = np.log(np.exp(shifted).sum(axis=1))
        slopes = np.exp(shifted - total[:, None])
        # 1 - p of a sure answer is less than float64 tells apart from 0; the sum of the others is exact.
        slopes[rows, truth] = 0
        slopes[rows, truth] = -slopes.sum(axis=1)
        return total - shifted[rows, truth], slopes

    return of


def targeted_dlr(truth: I64, target: I64) -> Loss:
    """The targeted difference of logits ratio (Croce and Hein, 2020, equation 7) of true and wanted classes int64 [N].

    -(z_y - z_t) / (z_1 - (z_3 + z_4) / 2), z_k the k-th largest logit: no scale of the logits changes it. With fewer
    than four classes there is no such ratio, and the difference alone is taken.
    """

    def of(logits: F64) -> tuple[F64, F64]:
        rows = np.arange(len(truth))
        apart = logits[rows, truth] - logits[rows, target]
        slopes = np.zeros_like(logits)
        slopes[rows, truth] -= 1
        slopes[rows, target] += 1
        if logits.shape[1] < 4:
            return -apart, slopes
        order = np.argsort(logits, axis=1)
        first, third, fourth = order[:, -1], order[:, -3], order[:, -4]
        spread = logits[rows, first] - (logits[rows, third] + logits[rows, fourth]) / 2 + 1e-12
        slopes /= spread[:, None]
        pushed = apart / spread**2
        np.add.at(slopes, (rows, first), pushed)
        np.add.at(slopes, (rows, third), -pushed / 2)
        np.add.at(slopes, (rows, fourth), -pushed / 2)
        return -apart / spread, slopes

    return of


def margins(logits: F64, truth: I64) -> F64:
    """How much the true class is above the best other one, [N]; 0 or less: it is not named."""
    rows, others = np.arange(len(truth)), logits.copy()
    others[rows, truth] = -np.inf
    return logits[rows, truth] - others.max(axis=1)


def strongest_others(logits: F64, truth: I64, count: int) -> I64:
    """The wrong classes with the highest logits, best first: int64 [N, up to count]."""
    others = logits.copy()
    others[np.arange(len(truth)), truth] = -np.inf
    return np.argsort(-others, axis=1, kind="stable")[:, : min(count, logits.shape[1] - 1)]
