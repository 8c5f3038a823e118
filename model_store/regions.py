"""Connected regions of a label's score map over a picture, with their boxes and masks.

The map is refined to at most `FINENESS` times its grid, never to the picture, so the cost does not depend on pixels.
Coordinates are pixels of the picture that the whole map covers; 0 is its left or upper edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]
Mask = NDArray[np.bool_]
FINENESS = 4
_CELLS_AT_ONCE = 1_000_000  # of refined maps: some 10 MB
_FLAT = 1e-6  # a map whose height is within this share of its values says nothing about where
_WITHIN_A_MAP = np.zeros((3, 3, 3), dtype=np.bool_)
_WITHIN_A_MAP[1] = True  # neighbours: all around in the same map
_WITHIN_A_MAP.flags.writeable = False


@dataclass(frozen=True, eq=False)
class Region:
    """A box in pixels (x1 and y1 are the far edges), its score, and on request its cells on the refined grid."""

    x0: float
    y0: float
    x1: float
    y1: float
    score: float
    mask: Mask | None = None


def maps_at_once(maps: Map) -> int:
    """How many of these maps [n, rows, columns] to give to `regions_of` in one call, so that memory stays small."""
    return max(1, _CELLS_AT_ONCE // (maps[0].size * FINENESS**2))


def find_regions(
    heat: Map,
    *,
    width: int,
    height: int,
    score: float = 1.0,
    level: float = 0.5,
    max_regions: int = 16,
    max_overlap: float = 0.5,
    masks: bool = False,
) -> list[Region]:
    """Regions of one map [rows, columns]; see `regions_of`."""
    return regions_of(
        heat[None],
        [score],
        width=width,
        height=height,
        level=level,
        max_regions=max_regions,
        max_overlap=max_overlap,
        masks=masks,
    )[0]


def regions_of(
    maps: Map,
    scores: Sequence[float],
    *,
    width: int,
    height: int,
    level: float = 0.5,
    max_regions: int = 16,
    max_overlap: float = 0.5,
    masks: bool = False,
) -> list[list[Region]]:
    """Regions of each map of [n, rows, columns] that covers a picture of `width` x `height` pixels, best first.

    A cell of the refined map belongs to a region when it is over `level` of the way from the map's ground (its median:
    most of a picture is not the label) to its peak, as class activation maps are cut (Zhou et al. 2016, 2.2). A
    region's score is the map's, times how high its own peak stands on that way, so the best one has the map's score.
    Regions smaller than half a cell of the grid are dropped beside larger ones, and those whose box overlaps a better
    box by more than `max_overlap` (intersection over union). A flat map is one region: the whole picture.
    """
    fine = refine(maps)
    rows, columns = fine.shape[1:]
    ground, peak = np.median(maps.reshape(len(maps), -1), axis=1), fine.max(axis=(1, 2))
    rise = peak - ground
    flat = rise <= _FLAT * np.maximum(np.maximum(np.abs(peak), np.abs(ground)), _FLAT)
    cut = np.where(flat, np.inf, ground + level * rise).astype(np.float32)
    parts = _parts(fine >= cut[:, None, None], fine, masks=masks)
    # float64 on both sides of both: the highest peak's height is 1 and the last cell's edge the picture's, exactly
    floors, peaks = ground.astype(np.float64), peak.astype(np.float64)
    heights = (parts.peaks - floors[parts.owners]) / (peaks - floors)[parts.owners]
    boxes: list[list[float]] = (parts.edges * np.array([width, height] * 2) / np.array([columns, rows] * 2)).tolist()
    least = FINENESS**2 / 2
    found: list[list[Region]] = []
    for index, score in enumerate(scores):
        if flat[index]:
            everything = np.ones((rows, columns), dtype=np.bool_) if masks else None
            found.append([Region(0.0, 0.0, float(width), float(height), float(score), everything)])
            continue
        first, last = np.searchsorted(parts.owners, [index, index + 1])
        own = np.argsort(-heights[first:last], kind="stable") + first
        order: list[int] = own[(parts.cells[own] >= least) | (heights[own] >= heights[own[0]])].tolist()
        kept = without_overlaps(boxes, order, max_overlap=max_overlap, limit=max_regions)
        found.append([_region(boxes[i], float(score * heights[i]), parts.mask(i)) for i in kept])
    return found


@dataclass(frozen=True, eq=False)
class _Parts:
    """Connected parts of many masks, those of the first mask first: arrays with an entry for each.

    edges: left, upper, right, lower in cells. numbered: [n, rows, columns], part i has number i + 1; None if not kept.
    """

    owners: NDArray[np.intp]
    peaks: NDArray[np.float64]
    cells: NDArray[np.intp]
    edges: NDArray[np.float64]
    numbered: NDArray[np.int32] | None

    def mask(self, index: int) -> Mask | None:
        return None if self.numbered is None else self.numbered[self.owners[index]] == index + 1


def _parts(inside: Mask, heights: Map, *, masks: bool) -> _Parts:
    """One call for all masks [n, rows, columns]: calls cost more than cells."""
    numbered, count = connected(inside)
    filled = np.flatnonzero(numbered)
    numbers = numbered.ravel()[filled] - 1
    peaks = np.full(count, -np.inf)
    np.maximum.at(peaks, numbers, heights.ravel()[filled])
    slices: list[tuple[slice, slice, slice]] = load_scipy().find_objects(numbered, max_label=count)
    edges = [(across.start, down.start, across.stop, down.stop) for _, down, across in slices]
    return _Parts(
        np.array([owner.start for owner, _, _ in slices], dtype=np.intp),
        peaks,
        np.bincount(numbers, minlength=count),
        np.array(edges, dtype=np.float64).reshape(count, 4),
        numbered if masks else None,
    )


def _region(box: Sequence[float], score: float, mask: Mask | None) -> Region:
    x0, y0, x1, y1 = box
    return Region(x0, y0, x1, y1, score, mask)


def load_scipy() -> Any:
    """scipy.ndimage, which brings no types. Importing it takes longer than all else that a server imports, so it is
    loaded when a dense encoder is opened."""
    from scipy import ndimage  # pyright: ignore[reportMissingTypeStubs]

    return ndimage


def refine(maps: Map, fineness: int = FINENESS) -> Map:
    """Maps [..., rows, columns] -> [..., fineness * rows, fineness * columns]: see `stretch`."""
    rows, columns = maps.shape[-2:]
    return stretch(maps, fineness * rows, fineness * columns)


def stretch(maps: Map, height: int, width: int) -> Map:
    """Maps -> float32 [..., height, width], bilinear between the middles of cells, constant outside the outermost."""
    down, across = _weights(maps.shape[-2], height), _weights(maps.shape[-1], width)
    return (down @ maps.astype(np.float32, copy=False) @ across.T).astype(np.float32, copy=False)


def connected(masks: Mask) -> tuple[NDArray[np.int32], int]:
    """Cells of masks [n, rows, columns] numbered by region from 1 (0: none), and how many there are in all.

    Corners connect, masks do not. The regions of the first mask have the lowest numbers.
    """
    numbered, count = load_scipy().label(masks, structure=_WITHIN_A_MAP)
    return numbered, int(count)


def without_overlaps(
    boxes: Sequence[Sequence[float]], order: Sequence[int], *, max_overlap: float, limit: int
) -> list[int]:
    """Non-maximum suppression: of `order` (best first) those that overlap no better box [n, 4] by more than a share."""
    kept: list[int] = []
    for index in order:
        if len(kept) == limit:
            break
        if all(overlap(boxes[index], boxes[other]) <= max_overlap for other in kept):
            kept.append(index)
    return kept


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1)."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    areas = (one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1])
    return shared / (areas - shared)


def paint(mask: Mask, width: int, height: int) -> Mask:
    """A mask of the refined grid on the picture: [height, width], each pixel as the cell that its middle lies in."""
    return mask[np.ix_(_cells(height, mask.shape[0]), _cells(width, mask.shape[1]))]


def encode_rle(mask: Mask, width: int, height: int) -> str:
    """COCO's compressed run lengths of `paint(mask, width, height)`, made without painting it.

    Runs go down the columns and begin with zeros; the text is pycocotools' rleToString (maskApi.c).
    """
    columns, rows = _cells(width, mask.shape[1]), _cells(height, mask.shape[0])
    starts = np.concatenate(
        [[0], np.flatnonzero(rows[1:] != rows[:-1]) + 1]
    )  # pixels at which the next row of cells begins
    cells = rows[starts]
    changes: list[NDArray[np.int64]] = [np.zeros(1, dtype=np.int64)]
    before = False
    for column in np.unique(columns):
        seen = mask[cells, column]
        inner = starts[1:][seen[1:] != seen[:-1]]
        whole = np.concatenate([[0], inner]) if seen[0] != seen[-1] else inner
        first, *others = (np.flatnonzero(columns == column) * height).tolist()
        changes.append(first + (np.concatenate([[0], inner]) if seen[0] != before else inner))
        changes.append(np.add.outer(np.array(others, dtype=np.int64), whole).ravel())
        before = bool(seen[-1])
    changes.append(np.array([width * height], dtype=np.int64))
    return _packed(np.diff(np.concatenate(changes)).tolist())


def _packed(counts: list[int]) -> str:
    text = bytearray()
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            piece = value & 0x1F
            value >>= 5
            more = value != -1 if piece & 0x10 else value != 0
            text.append((piece | 0x20 if more else piece) + 48)
    return text.decode("ascii")


def _cells(pixels: int, cells: int) -> NDArray[np.intp]:
    """The cell of each pixel's middle along one side."""
    return ((2 * np.arange(pixels) + 1) * cells // (2 * pixels)).astype(np.intp)


@lru_cache(maxsize=64)
def _weights(cells: int, points: int) -> Map:
    """Bilinear weights [points, cells] of points whose middles are spread evenly over the cells."""
    place = np.clip((np.arange(points) + 0.5) * cells / points - 0.5, 0, cells - 1)
    low = np.floor(place).astype(np.intp)
    high = np.minimum(low + 1, cells - 1)
    share = (place - low).astype(np.float32)
    weights = np.zeros((points, cells), dtype=np.float32)
    np.add.at(weights, (np.arange(points), low), 1 - share)
    np.add.at(weights, (np.arange(points), high), share)
    weights.flags.writeable = False
    return weights
