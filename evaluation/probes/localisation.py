"""Localisation: does the grid cell that fits "a red circle" best lie on it, and how much of it do good cells cover?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.metrics import TIE
from evaluation.probes.pictures import Picture
from evaluation.probes.pool import Pool, named
from evaluation.probes.questions import Reads
from evaluation.probes.readers import EncoderReader, NotApplicable, Reader, Sentence, said
from evaluation.probes.rows import ProbeRow, mean_row
from evaluation.scenes.meaning import Enumeration
from evaluation.scenes.rendering import render

POINTING, IOU = "pointing game", "mean IoU at half height"


@dataclass(frozen=True, slots=True)
class Phrase:
    """The one thing of a picture that the text names."""

    picture: Picture
    text: Sentence
    thing: int
    cluster: int


@dataclass(frozen=True)
class LocalisationProbe:
    phrases: tuple[Phrase, ...]
    name: str = "localisation"
    reads: Reads = "dense"

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return tuple(dict.fromkeys(phrase.picture for phrase in self.phrases))

    @property
    def texts(self) -> tuple[Sentence, ...]:
        return tuple(dict.fromkeys(phrase.text for phrase in self.phrases))

    def measure(self, reader: Reader) -> list[ProbeRow]:
        """Each phrase is compared with all phrases of the probe. Pointing game: the best cell's centre lies inside the
        outline, the hole of a ring included. IoU: cells above the middle between the map's lowest and highest value,
        against the visible pixels.

        Chance is the outline's share of the picture (a random pixel), and the IoU of marking everything.

        Raises:
            NotApplicable: the reader is no encoder that says where.
        """
        if not isinstance(reader, EncoderReader):
            raise NotApplicable("only an encoder that says where localises")
        maps = reader.maps([(phrase.picture, phrase.text) for phrase in self.phrases], self.texts)
        points: list[float] = []
        overlaps: list[float] = []
        shares: list[tuple[float, float]] = []
        for phrase, grid_map in zip(self.phrases, maps, strict=True):
            outline, mask = truth(phrase, reader.size_px)
            middle = (grid_map.min() + grid_map.max()) / 2
            points.append(pointing(grid_map, outline))
            overlaps.append(overlap(enlarged(grid_map > middle, reader.size_px), mask))
            shares.append((float(outline.mean()), float(mask.mean())))
        return self._rows(points, overlaps, shares)

    def bound(self, reader: EncoderReader) -> list[ProbeRow]:
        """The same rows for the best answers that this encoder's grid allows."""
        rows, columns = reader.grid()
        points: list[float] = []
        overlaps: list[float] = []
        shares: list[tuple[float, float]] = []
        for phrase in self.phrases:
            outline, mask = truth(phrase, reader.size_px)
            points.append(float(centres(outline, rows, columns).any()))
            overlaps.append(best_overlap(mask, rows, columns))
            shares.append((float(outline.mean()), float(mask.mean())))
        return self._rows(points, overlaps, shares)

    def _rows(self, points: list[float], overlaps: list[float], shares: list[tuple[float, float]]) -> list[ProbeRow]:
        """shares: of each phrase's outline and of its visible pixels in the picture."""
        clusters = [phrase.cluster for phrase in self.phrases]
        outline_share, mask_share = (float(share) for share in np.mean(shares, axis=0))
        return [
            mean_row(POINTING, points, clusters, chance=outline_share),
            mean_row(IOU, overlaps, clusters, chance=mask_share),
        ]


def truth(phrase: Phrase, size_px: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Filled outline and visible pixels of the phrase's thing, each bool [size_px, size_px]."""
    drawn = render(phrase.picture.scene, size_px)
    return drawn.outlines[phrase.thing], drawn.masks[phrase.thing]


def pointing(grid_map: NDArray[np.floating], outline: NDArray[np.bool_]) -> float:
    """1 if the one best cell's centre lies in the outline; several best cells point nowhere."""
    best = best_cells(grid_map)
    if len(best) != 1:
        return 0.0
    return float(centres(outline, *grid_map.shape)[tuple(best[0])])


def best_cells(grid_map: NDArray[np.floating]) -> NDArray[np.int64]:
    """Row and column of the best cell and of those that differ from it by rounding only, [n, 2]."""
    return np.argwhere(grid_map >= grid_map.max() - TIE * np.abs(grid_map).max())


def centres(outline: NDArray[np.bool_], rows: int, columns: int) -> NDArray[np.bool_]:
    """bool [rows, columns]: does the pixel at the cell's centre lie in the outline?"""
    height, width = outline.shape
    down = ((np.arange(rows) + 0.5) * height / rows).astype(int)
    across = ((np.arange(columns) + 0.5) * width / columns).astype(int)
    return outline[np.ix_(down, across)]


def enlarged(cells: NDArray[np.bool_], size_px: int) -> NDArray[np.bool_]:
    """Every pixel takes the value of the cell that its centre lies in."""
    down, across = (((np.arange(size_px) + 0.5) * count / size_px).astype(int) for count in cells.shape)
    return cells[np.ix_(down, across)]


def overlap(found: NDArray[np.bool_], mask: NDArray[np.bool_]) -> float:
    """Intersection over union of two masks of one size."""
    return float((found & mask).sum() / (found | mask).sum())


def best_overlap(mask: NDArray[np.bool_], rows: int, columns: int) -> float:
    """Highest IoU that a set of whole cells can have with the mask.

    The best set of any size holds the cells of highest coverage, so only those sets are tried.
    """
    size = len(mask)
    cell = enlarged_ids(rows, columns, size)
    inside = np.bincount(cell[mask], minlength=rows * columns)
    whole = np.bincount(cell.ravel(), minlength=rows * columns)
    order = np.argsort(-inside / whole, kind="stable")
    hits, marked = np.cumsum(inside[order]), np.cumsum(whole[order])
    return float((hits / (marked + mask.sum() - hits)).max())


def enlarged_ids(rows: int, columns: int, size_px: int) -> NDArray[np.int64]:
    """int64 [size_px, size_px]: the number of the cell that each pixel lies in, row by row."""
    down, across = (((np.arange(size_px) + 0.5) * count / size_px).astype(np.int64) for count in (rows, columns))
    return down[:, None] * columns + across[None, :]


def build(pool: Pool) -> LocalisationProbe:
    """Both things of every compass scene."""
    phrases = [
        Phrase(Picture(scene), said(Enumeration((named(thing),))), index, cluster)
        for cluster, group in enumerate(pool.compass)
        for scene in group.scenes
        for index, thing in enumerate(scene.things)
    ]
    return LocalisationProbe(tuple(phrases))
