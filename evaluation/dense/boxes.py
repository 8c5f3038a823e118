"""Boxes: which are right, and average precision at IoU .5 as COCO counts it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from evaluation.dense.truth import Box, Truth
from evaluation.probes.rows import F64
from model_store.regions import overlap

IOU = 0.5
_RECALLS = np.linspace(0, 1, 101)  # COCO's 101 points
_MOST = 100  # boxes of one label in one picture, as in COCO


@dataclass(frozen=True, eq=False)
class Boxes:
    """The boxes of one picture that count: label, score, and whether each is right. truths: to be found, [labels]."""

    labels: NDArray[np.int64]
    scores: F64
    right: NDArray[np.bool_]
    truths: NDArray[np.int64]


def judge_picture(found: Sequence[F64], truth: Truth) -> Boxes:
    """found: of each label its boxes [n, 5], best first."""
    labels: list[int] = []
    scores: list[float] = []
    right: list[bool] = []
    truths = np.zeros(len(found), dtype=np.int64)
    for label, boxes in enumerate(found):
        own = [one for one in truth.instances if one.label == label]
        counted = [one.box for one in own if not one.crowd]
        truths[label] = len(counted)
        for score, hit in judge_boxes(boxes, counted, [one.box for one in own if one.crowd]):
            labels.append(label)
            scores.append(score)
            right.append(hit)
    return Boxes(np.array(labels, dtype=np.int64), np.array(scores), np.array(right, dtype=np.bool_), truths)


def judge_boxes(
    found: F64, truths: Sequence[Box], crowds: Sequence[Box], *, least: float = IOU
) -> list[tuple[float, bool]]:
    """(score, right) of the boxes [n, 5] of one label in one picture that count, best first.

    Each takes the free truth that it overlaps most, by IoU of at least `least`. One that takes none, but lies in a
    crowd by that share of itself, does not count (COCO's cocoeval.py).
    """
    free = list(range(len(truths)))
    judged: list[tuple[float, bool]] = []
    for *edges, score in found[np.argsort(-found[:, 4], kind="stable")][:_MOST].tolist():
        overlaps = [overlap(edges, truths[at]) for at in free]
        best = int(np.argmax(overlaps)) if overlaps else -1
        if best >= 0 and overlaps[best] >= least:
            del free[best]
            judged.append((score, True))
        elif all(_inside(edges, crowd) < least for crowd in crowds):
            judged.append((score, False))
    return judged


def _inside(edges: Sequence[float], crowd: Box) -> float:
    """The share of a box that lies in another."""
    width = min(edges[2], crowd[2]) - max(edges[0], crowd[0])
    height = min(edges[3], crowd[3]) - max(edges[1], crowd[1])
    size = (edges[2] - edges[0]) * (edges[3] - edges[1])
    return max(0.0, width) * max(0.0, height) / size if size > 0 else 0.0


def interpolated(right: NDArray[np.bool_], weights: NDArray[np.floating], truths: float) -> float:
    """Average precision of boxes in their order, best first: the mean over 101 recalls of the highest precision that is
    reached there or later; 0 for recalls that are not reached. weights: how often each box counts.
    """
    hits, all_of_them = np.cumsum(right * weights), np.cumsum(weights)
    kept = all_of_them > 0
    if not kept.any() or not truths:
        return 0.0
    precision = hits[kept] / all_of_them[kept]
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(hits[kept] / truths, _RECALLS - 1e-12, side="left")
    return float(np.append(precision, 0.0)[at].mean())


@dataclass(frozen=True, eq=False)
class BoxPrecision:
    """Mean over labels that are there of their average precision; pictures may be drawn repeatedly.

    pictures int, right, of all boxes of all labels: those of one label together, best first. starts: where each label's
    boxes begin, [labels + 1]. truths: [pictures, labels].
    """

    pictures: NDArray[np.intp]
    right: NDArray[np.bool_]
    starts: NDArray[np.intp]
    truths: NDArray[np.int64]

    def __call__(self, picks: NDArray[np.intp]) -> float:
        counts = np.bincount(picks, minlength=len(self.truths)).astype(np.float64)
        totals, weights = counts @ self.truths, counts[self.pictures]
        values = [
            interpolated(self.right[part], weights[part], float(totals[label]))
            for label in np.flatnonzero(totals).tolist()
            for part in [slice(self.starts[label], self.starts[label + 1])]
        ]
        return float(np.mean(values)) if values else float("nan")


def box_precision(judged: Sequence[Boxes]) -> BoxPrecision:
    """judged: of each picture. Equal scores stay in the order of their pictures."""
    truths = np.stack([one.truths for one in judged])
    labels, scores, right = (
        np.concatenate([getattr(one, name) for one in judged]) for name in ("labels", "scores", "right")
    )
    owners = np.repeat(np.arange(len(judged)), [len(one.scores) for one in judged])
    order = np.lexsort((-scores, labels))
    starts = np.searchsorted(labels[order], np.arange(truths.shape[1] + 1))
    return BoxPrecision(owners[order], right[order], starts, truths)


def precision_of_recall(found: F64, truths: F64, precision: F64) -> float:
    """Average precision, the mean over labels that are there, of an answer that finds `found` of `truths` [labels] at a
    constant `precision`."""
    kept = truths > 0
    if not kept.any():
        return float("nan")
    reached = (_RECALLS[None, :] - 1e-12 <= (found[kept] / truths[kept])[:, None]).mean(axis=1)
    return float(np.where(found[kept] > 0, reached * precision[kept], 0.0).mean())


def reachable(box: Box, *, rows: int, columns: int, width: int, height: int) -> bool:
    """Whether a box whose edges lie on the lines of a grid over the picture overlaps this one by IOU.

    The best such box has each edge on the line just inside or just outside.
    """
    x0, y0, x1, y1 = box
    across, down = width / columns, height / rows
    sides = [_lines(x0, across), _lines(y0, down), _lines(x1, across), _lines(y1, down)]
    return any(overlap(edges, box) >= IOU for edges in product(*sides) if edges[2] > edges[0] and edges[3] > edges[1])


def _lines(edge: float, step: float) -> tuple[float, float]:
    return float(np.floor(edge / step) * step), float(np.ceil(edge / step) * step)
