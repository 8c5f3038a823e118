"""Measures of agreement between the vectors of two models, such as a student and its teacher."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


def centred_distance(student: F32, teacher: F32) -> float:
    """Relative L2 distance of unit vectors [N, D] once each side's mean is taken away, which all of its vectors share:
    |(s - mean s) - (t - mean t)| / |t - mean t|; 0 for a student that is its teacher, 1 for one that says the same of
    every picture.
    """
    own, wanted = (side.astype(np.float64) - side.mean(axis=0, dtype=np.float64) for side in (student, teacher))
    return float(np.linalg.norm(own - wanted) / np.linalg.norm(wanted))


def overlap(student: F32, teacher: F32, *, k: int = 10) -> float:
    """Of scores [Q, N] of both, the share of each query's k best of the teacher that are among the student's k best."""
    k = min(k, student.shape[1])
    best = [np.argpartition(-scores, k - 1, axis=1)[:, :k] for scores in (student, teacher)]
    return float(np.mean([len(np.intersect1d(own, its)) / k for own, its in zip(*best, strict=True)]))


def found_across(student: F32, teacher: F32, *, k: int = 1) -> float:
    """Whether a collection that one has indexed can be searched by the other: the share of N pictures whose vector of
    the student has the teacher's vector of the same picture among its k nearest, and the other way round, averaged.
    A tie is a miss.
    """
    scores = student.astype(np.float64) @ teacher.T
    own = scores.diagonal()
    ranks = (scores >= own[:, None]).sum(axis=1), (scores >= own[None, :]).sum(axis=0)
    return float(np.mean([(rank <= k).mean() for rank in ranks]))


def picture_agreement(student: F32, teacher: F32) -> dict[str, float]:
    """Of unit vectors [N, D] of the same pictures in one space: `cosine`, `centred_distance`, `found_across` (R@1), and
    `overlap_10` of what each picture finds among the others."""
    among_own, among_its = student @ student.T, teacher @ teacher.T
    np.fill_diagonal(among_own, -2)
    np.fill_diagonal(among_its, -2)
    return {
        "found_across": found_across(student, teacher),
        "cosine": float((student * teacher).sum(axis=1).mean()),
        "centred_distance": centred_distance(student, teacher),
        "overlap_10": overlap(among_own, among_its),
    }
