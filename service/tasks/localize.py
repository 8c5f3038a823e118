"""Localisation in one picture: calibrated scores of all labels, then regions and maps of those that ask for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipworks.schemas import HeatmapFormat
from model_store.label_vectors import LabelVectors
from model_store.manifest import Presence
from model_store.presence import presence_scores, score_maps
from model_store.regions import Region, encode_rle, maps_at_once, regions_of, stretch
from service.tasks.scoring import ClassMatrix
from service.timing import Deadline

Map = NDArray[np.float32]
MAX_HEATMAP_PX = 1024


@dataclass(frozen=True)
class WholePicture:
    """A whole picture as the dense encoder takes it, uint8 [H, W, 3], and the size of its upright original."""

    pixels: NDArray[np.uint8]
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class LocalizeOptions:
    """What an answer holds beside scores. threshold: score from which a label is present; heatmap_of: None is all."""

    threshold: float
    boxes: bool
    masks: bool
    heatmap: HeatmapFormat | None
    heatmap_of: frozenset[str] | None = None

    def maps(self, name: str) -> HeatmapFormat | None:
        """The form of a label's map in the answer; None: it is not in it."""
        return self.heatmap if self.heatmap_of is None or name in self.heatmap_of else None


@dataclass(frozen=True)
class LabelBox:
    """Edges in pixels of the upright original; `mask` is COCO's compressed run lengths."""

    x0: float
    y0: float
    x1: float
    y1: float
    score: float
    mask: str | None


@dataclass(frozen=True)
class LabelHeatmap:
    """A label's map on the grid, or as a grey PNG of `size` (width, height) whose 0 and 255 are the map's extremes."""

    values: Map
    png: bytes | None = None
    size: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class LabelAt:
    """weak: the model knows nothing of the label."""

    label: str
    score: float
    present: bool
    weak: bool = False
    boxes: list[LabelBox] = field(default_factory=list[LabelBox])
    heatmap: LabelHeatmap | None = None


@dataclass(frozen=True)
class LocatedLabels:
    """labels: all of them, best first, ties in their own order."""

    width: int
    height: int
    labels: list[LabelAt]


def locate(
    positions: NDArray[np.float32],
    pooled: NDArray[np.float32],
    picture: WholePicture,
    classes: ClassMatrix,
    labels: LabelVectors,
    presence: Presence,
    *,
    wanted: LocalizeOptions,
    deadline: Deadline,
) -> LocatedLabels:
    """Positions [rows, columns, D] and the pooled vector [D] of one picture -> every label's place.

    One matrix product for all labels; regions are looked for in the maps of present ones only.

    Raises:
        DeadlinePassed: it passed on the way.
    """
    maps = score_maps(positions, labels, presence)
    scores = presence_scores(maps, pooled, labels, presence)
    is_shown = (scores >= wanted.threshold) & labels.positive.any(axis=1)  # no direction, no place
    present: list[int] = np.flatnonzero(is_shown).tolist()
    asked_for = present if wanted.boxes or wanted.masks else []
    boxes = _boxes(maps, scores, asked_for, picture, masks=wanted.masks, deadline=deadline)
    found: list[LabelAt] = []
    order: list[int] = np.argsort(-scores, kind="stable").tolist()
    for index in order:
        deadline.check()
        name = classes.names[index]
        form = wanted.maps(name)
        heatmap = None if form is None else _heatmap(maps[index], picture, form)
        score = float(scores[index])
        is_present, is_weak = index in present, index in classes.weak
        found.append(LabelAt(name, score, is_present, is_weak, boxes.get(index, []), heatmap))
    return LocatedLabels(picture.width, picture.height, found)


def _boxes(
    maps: NDArray[np.float32],
    scores: NDArray[np.float64],
    present: list[int],
    picture: WholePicture,
    *,
    masks: bool,
    deadline: Deadline,
) -> dict[int, list[LabelBox]]:
    """Boxes of present labels by their index, a few maps at a time."""
    found: dict[int, list[LabelBox]] = {}
    step = maps_at_once(maps)
    for start in range(0, len(present), step):
        deadline.check()
        chosen = present[start : start + step]
        regions = regions_of(
            maps[chosen], scores[chosen].tolist(), width=picture.width, height=picture.height, masks=masks
        )
        for index, some in zip(chosen, regions, strict=True):
            deadline.check()  # masks of a wide picture take a second for one label
            found[index] = [_box(each, picture) for each in some]
    return found


def _box(region: Region, picture: WholePicture) -> LabelBox:
    mask = None if region.mask is None else encode_rle(region.mask, picture.width, picture.height)
    return LabelBox(region.x0, region.y0, region.x1, region.y1, region.score, mask)


def _heatmap(heat: Map, picture: WholePicture, form: HeatmapFormat) -> LabelHeatmap:
    if form == "array":
        return LabelHeatmap(heat)
    share = min(1.0, MAX_HEATMAP_PX / max(picture.width, picture.height))
    width, height = max(1, round(picture.width * share)), max(1, round(picture.height * share))
    low, high = float(heat.min()), float(heat.max())
    levels = (stretch(heat, height, width) - low) * (255 / (high - low) if high > low else 0.0)
    buffer = BytesIO()
    Image.fromarray(np.rint(levels).clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return LabelHeatmap(heat, buffer.getvalue(), (width, height))
