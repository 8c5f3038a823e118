"""Areas: which label each cell answers, how its pixels overlap with the truth, and the best that whole cells can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.dense.truth import BACKGROUND, UNJUDGED, Classes
from evaluation.locating import Found, Maps
from evaluation.probes.rows import F64
from model_store.regions import refine, regions_of

_BINS = 1000
_LEVEL = 0.5  # as regions are cut


def answered_cells(found: Found, candidates: Sequence[int]) -> Classes:
    """The label of each cell of the refined grid, int16 [4 rows, 4 columns], BACKGROUND where there is none.

    A cell is a candidate's where its masks in `/localize` are; of several candidates the one of the highest map wins.
    """
    if not candidates:
        rows, columns = found.grid
        return np.full((4 * rows, 4 * columns), BACKGROUND, dtype=np.int16)
    maps = found.maps[list(candidates)]
    regions = regions_of(maps, [1.0] * len(maps), width=found.width, height=found.height, masks=True)
    masks = [[each.mask for each in some if each.mask is not None] for some in regions]
    inside = np.stack([np.logical_or.reduce(some) for some in masks])
    return _winners(inside, refine(maps), candidates)


def answered_whole_cells(found: Found, candidates: Sequence[int]) -> Classes:
    """The same by cells of the model's own grid, int16 [rows, columns]: those halfway from median to peak and over."""
    if not candidates:
        return np.full(found.grid, BACKGROUND, dtype=np.int16)
    maps = found.maps[list(candidates)]
    flat = maps.reshape(len(maps), -1)
    ground, peak = np.median(flat, axis=1), flat.max(axis=1)
    inside = maps >= (ground + _LEVEL * (peak - ground))[:, None, None]
    return _winners(inside, maps, candidates)


def _winners(inside: NDArray[np.bool_], maps: Maps, candidates: Sequence[int]) -> Classes:
    best = np.where(inside, maps, -np.inf).argmax(axis=0)
    return np.where(inside.any(axis=0), np.array(candidates, dtype=np.int16)[best], BACKGROUND).astype(np.int16)


def painted(cells: Classes, height: int, width: int) -> Classes:
    """Cells on a picture, [height, width]: each pixel as the cell that its middle lies in."""
    return cells[np.ix_(_cell_of(height, cells.shape[0]), _cell_of(width, cells.shape[1]))]


def _cell_of(pixels: int, cells: int) -> NDArray[np.intp]:
    return ((2 * np.arange(pixels) + 1) * cells // (2 * pixels)).astype(np.intp)


@dataclass(frozen=True)
class Areas:
    """Pixels of each class in one picture, the background first: int64 [1 + labels] each."""

    shared: NDArray[np.int64]
    answered: NDArray[np.int64]
    true: NDArray[np.int64]

    def of(self, label: int) -> float | None:
        """Intersection over union of a label; None where none of it is to be seen."""
        at = label + 1
        if not self.true[at]:
            return None
        return float(self.shared[at] / (self.answered[at] + self.true[at] - self.shared[at]))


def areas(answer: Classes, truth: Classes, labels: int) -> Areas:
    """Both [height, width]; unjudged pixels count nowhere."""
    both = (truth.astype(np.int32) - UNJUDGED) * (labels + 1) + (answer - BACKGROUND)
    counts = np.bincount(both.ravel(), minlength=(labels + 2) * (labels + 1)).reshape(labels + 2, labels + 1)
    judged = counts[BACKGROUND - UNJUDGED :]  # [true, answered]
    return Areas(shared=judged.diagonal().copy(), answered=judged.sum(axis=0), true=judged.sum(axis=1))


@dataclass(frozen=True, eq=False)
class MeanIou:
    """Mean over the classes that occur, the background among them, of their intersection over union; pixels of all
    pictures are added up first, as in PASCAL VOC (Everingham et al., 2010, 4.3). Arrays [pictures, 1 + labels]."""

    shared: F64
    answered: F64
    true: F64

    def __call__(self, picks: NDArray[np.intp]) -> float:
        weights = np.bincount(picks, minlength=len(self.true)).astype(np.float64)
        shared, answered, true = (weights @ part for part in (self.shared, self.answered, self.true))
        kept = true > 0
        if not kept.any():
            return float("nan")
        return float((shared[kept] / (answered + true - shared)[kept]).mean())


def mean_iou(found: Sequence[Areas]) -> MeanIou:
    parts = ([one.shared for one in found], [one.answered for one in found], [one.true for one in found])
    shared, answered, true = (np.stack(part).astype(np.float64) for part in parts)
    return MeanIou(shared, answered, true)


def guessed(true: NDArray[np.int64], among: Sequence[int]) -> tuple[F64, F64]:
    """Expected shared and answered pixels if each pixel's class is drawn from the background and `among`, [1 + labels].

    true: pixels of each class in the picture, the background first.
    """
    drawn = np.zeros(len(true))
    drawn[[0, *(label + 1 for label in among)]] = 1 / (len(among) + 1)
    return drawn * true, drawn * true.sum()


class CellBound:
    """The highest mean IoU that any answer made of whole cells of a grid can have, for a class by itself.

    The best set of cells of any size holds those that the class covers most, so cells are kept by their coverage, in
    bins of a thousandth. Classes do not compete for cells, so what one answer can reach may be a little less.
    """

    def __init__(self, labels: int) -> None:
        self._hits = np.zeros((labels + 1, _BINS + 1), dtype=np.int64)
        self._whole = np.zeros((labels + 1, _BINS + 1), dtype=np.int64)
        self._true = np.zeros(labels + 1, dtype=np.int64)

    def add(self, truth: Classes, rows: int, columns: int) -> None:
        """A picture's classes [height, width] and its grid."""
        height, width = truth.shape
        cell = (_cell_of(height, rows)[:, None] * columns + _cell_of(width, columns)[None, :]).astype(np.int32)
        kinds = len(self._true) + 1
        counts = np.bincount((cell * kinds + (truth - UNJUDGED)).ravel(), minlength=rows * columns * kinds)
        judged = counts.reshape(rows * columns, kinds)[:, BACKGROUND - UNJUDGED :]  # [cells, 1 + labels]
        whole = judged.sum(axis=1)
        for at in np.flatnonzero(judged.any(axis=0)).tolist():
            inside = judged[:, at]
            touched = np.flatnonzero(inside)
            bins = inside[touched] * _BINS // whole[touched]
            np.add.at(self._hits[at], bins, inside[touched])
            np.add.at(self._whole[at], bins, whole[touched])
            self._true[at] += inside.sum()

    def value(self) -> float:
        """NaN if no picture was added."""
        kept = self._true > 0
        if not kept.any():
            return float("nan")
        hits, whole = (np.cumsum(part[kept, ::-1], axis=1) for part in (self._hits, self._whole))
        return float((hits / (whole + self._true[kept, None] - hits)).max(axis=1).mean())
