"""One pass over labelled pictures: what was answered is judged picture by picture, beside luck, the answers of another
picture, and the best that the grid allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from evaluation.dense.boxes import Boxes, box_precision, judge_boxes, judge_picture, precision_of_recall, reachable
from evaluation.dense.overlays import Showing
from evaluation.dense.segments import (
    Areas,
    CellBound,
    answered_cells,
    answered_whole_cells,
    areas,
    guessed,
    mean_iou,
    painted,
)
from evaluation.dense.truth import LabelledPictures, PictureWithTruth, Truth
from evaluation.encoder import DenseEncoder, own_templates
from evaluation.locating import Found, Label, Looking
from evaluation.probes.localisation import centres, pointing
from evaluation.probes.ranking import average_precision, lucky_precision
from evaluation.probes.rows import F64, ProbeRow, mean_row
from evaluation.zero_shot import class_matrix
from model_store.errors import InputError
from model_store.regions import FINENESS

POINTING, MIOU, MIOU_GIVEN = "pointing game", "mIoU", "mIoU, labels given"
MIOU_CELLS, BOX_AP = "mIoU, labels given, whole cells", "box AP at .5"
MAP, MAP_PEAK, MAP_POOLED = "mAP, presence", "mAP, peak of the map", "mAP, whole picture"
Tell = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class JudgedPlaces:
    """Rows of the encoder and, with the same names, of its controls; and the pictures that went best and worst."""

    rows: list[ProbeRow]
    blind: list[ProbeRow]
    bound: list[ProbeRow]
    shown: tuple[Showing, ...]


@dataclass(eq=False)
class _Answers:
    """What was judged so far, an entry for each picture; points: of each label that is in it."""

    points: list[list[float]] = field(default_factory=list[list[float]])
    free: list[Areas] = field(default_factory=list[Areas])
    given: list[Areas] = field(default_factory=list[Areas])
    cells: list[Areas] = field(default_factory=list[Areas])
    boxes: list[Boxes] = field(default_factory=list[Boxes])
    scores: list[F64] = field(default_factory=list[F64])
    peaks: list[F64] = field(default_factory=list[F64])

    def add(self, found: Found, truth: Truth, labels: int, *, boxed: bool) -> None:
        """Judge one answer; it has the truth's size."""
        there, classes = truth.labels, truth.classes
        present = np.flatnonzero(found.scores >= found.threshold).tolist()
        self.points.append([pointing(found.maps[label], truth.hits(label)) for label in there])
        for kept, cells in (
            (self.free, answered_cells(found, present)),
            (self.given, answered_cells(found, truth.visible)),
            (self.cells, answered_whole_cells(found, truth.visible)),
        ):
            kept.append(areas(painted(cells, truth.height, truth.width), classes, labels))
        if boxed:
            self.boxes.append(judge_picture(found.boxes, truth))
        self.scores.append(found.scores)
        self.peaks.append(found.maps.max(axis=(1, 2)).astype(np.float64))


@dataclass(eq=False)
class _Luck:
    """What guessing and the grid can reach, by picture; arrays by label, areas with the background first."""

    chance_points: list[list[float]] = field(default_factory=list[list[float]])
    bound_points: list[list[float]] = field(default_factory=list[list[float]])
    free: list[tuple[F64, F64]] = field(default_factory=list[tuple[F64, F64]])
    given: list[tuple[F64, F64]] = field(default_factory=list[tuple[F64, F64]])
    boxes: list[NDArray[np.int64]] = field(default_factory=list[NDArray[np.int64]])
    there: list[NDArray[np.bool_]] = field(default_factory=list[NDArray[np.bool_]])

    def add(self, truth: Truth, true: NDArray[np.int64], grid: tuple[int, int], *, boxed: bool) -> None:
        labels = len(true) - 1
        right = [centres(truth.hits(label), *grid) for label in truth.labels]
        self.chance_points.append([float(cells.mean()) for cells in right])
        self.bound_points.append([float(cells.any()) for cells in right])
        self.free.append(guessed(true, range(labels)))
        self.given.append(guessed(true, truth.visible))
        self.there.append(np.isin(np.arange(labels), truth.labels))
        if boxed:
            self.boxes.append(_box_luck(truth, labels, grid))


def judge(
    encoder: DenseEncoder,
    pictures: LabelledPictures,
    *,
    looking: Looking | None = None,
    show: int = 4,
    tell: Tell | None = None,
) -> JudgedPlaces:
    """Open each picture once, look at it once, keep numbers only. show: how many of the best and of the worst are kept.

    Raises:
        ValueError: no pictures, one that cannot be used, or an answer of another form than asked for.
    """
    names = pictures.labels
    if not len(pictures) or not names:
        raise ValueError(f"{len(pictures)} pictures and {len(names)} labels: nothing to judge")
    looking = looking or Looking()
    asked = looking.labels(names)
    own, dealt, luck = _Answers(), _Answers(), _Luck()
    bounds = CellBound(len(names)), CellBound(len(names))
    shown = _Shown(show)
    whole = _WholePictures(encoder, names, looking.templates or own_templates(encoder) or ("{}",))
    first: Truth | None = None
    before: Found | None = None
    for index in range(len(pictures)):
        sample = pictures.open(index)
        truth = sample.truth
        found = _answer(encoder, sample, asked, looking.short_px)
        whole.add(sample)
        own.add(found, truth, len(names), boxed=pictures.boxed)
        luck.add(truth, own.free[-1].true, found.grid, boxed=pictures.boxed)
        for bound, fineness in zip(bounds, (FINENESS, 1), strict=True):
            bound.add(truth.classes, *(fineness * side for side in found.grid))
        if before is None:
            first = truth
        else:
            dealt.add(_resized(before, truth), truth, len(names), boxed=pictures.boxed)
        before = found
        shown.offer(sample, found, own.given[-1], own.points[-1], index)
        if tell is not None:
            tell(1)
    if first is not None and before is not None:  # the last answer for the first picture closes the ring
        dealt.add(_resized(before, first), first, len(names), boxed=pictures.boxed)
    return JudgedPlaces(
        rows=_rows(own, luck, whole.scores),
        blind=_rows(_turned(dealt), luck, np.roll(whole.scores, 1, axis=0)),
        bound=_bound_rows(luck, *(bound.value() for bound in bounds)),
        shown=shown.kept(names),
    )


def _answer(encoder: DenseEncoder, sample: PictureWithTruth, asked: list[Label], short_px: int | None) -> Found:
    try:
        (found,) = encoder.locate([sample.shown], asked, short_px=short_px)
    except InputError as error:
        raise ValueError(f"{sample.name}: {error}") from error
    truth = sample.truth
    if (found.width, found.height) != (truth.width, truth.height):
        raise ValueError(
            f"{sample.name}: the picture has {found.width} x {found.height} pixels, its labels are for "
            f"{truth.width} x {truth.height}"
        )
    if not (len(found.maps) == len(found.scores) == len(found.boxes) == len(asked)):
        raise ValueError(f"{sample.name}: {len(found.maps)} maps for {len(asked)} labels")
    if not np.isfinite(found.maps).all() or not np.isfinite(found.scores).all():
        raise ValueError(f"{sample.name}: the encoder answered NaN or infinity")
    return found


class _WholePictures:
    """Cosines of whole pictures with the labels, as `/classify` has them: [pictures, C]."""

    def __init__(self, encoder: DenseEncoder, names: Sequence[str], templates: Sequence[str]) -> None:
        self._encoder = encoder
        self._classes = class_matrix(encoder.encode_texts, names, templates).astype(np.float64)
        self._found: list[F64] = []

    def add(self, sample: PictureWithTruth) -> None:
        self._found.append(self._classes @ self._encoder.encode_images([sample.shown])[0].astype(np.float64))

    @property
    def scores(self) -> F64:
        return np.stack(self._found)


def _box_luck(truth: Truth, labels: int, grid: tuple[int, int]) -> NDArray[np.int64]:
    """By label, [3, C]: truths, those that a box on the refined grid reaches, those that the whole picture finds."""
    rows, columns = (FINENESS * side for side in grid)
    everything = np.array([[0.0, 0.0, truth.width, truth.height, 1.0]])
    out = np.zeros((3, labels), dtype=np.int64)
    for one in truth.instances:
        if not one.crowd:
            out[0, one.label] += 1
            out[1, one.label] += reachable(one.box, rows=rows, columns=columns, width=truth.width, height=truth.height)
    for label in truth.labels:
        boxes = [one.box for one in truth.instances if one.label == label and not one.crowd]
        out[2, label] = sum(right for _, right in judge_boxes(everything, boxes, []))
    return out


def _resized(found: Found, truth: Truth) -> Found:
    """An answer dealt to a picture of another size."""
    across, down = truth.width / found.width, truth.height / found.height
    scale = np.array([across, down, across, down, 1.0])
    return replace(found, width=truth.width, height=truth.height, boxes=tuple(each * scale for each in found.boxes))


def _turned(dealt: _Answers) -> _Answers:
    """In the order of the pictures: the first one's entries came last."""
    return _Answers(
        points=dealt.points[-1:] + dealt.points[:-1],
        free=dealt.free[-1:] + dealt.free[:-1],
        given=dealt.given[-1:] + dealt.given[:-1],
        cells=dealt.cells[-1:] + dealt.cells[:-1],
        boxes=dealt.boxes[-1:] + dealt.boxes[:-1],
        scores=dealt.scores[-1:] + dealt.scores[:-1],
        peaks=dealt.peaks[-1:] + dealt.peaks[:-1],
    )


def _rows(answers: _Answers, luck: _Luck, whole: F64) -> list[ProbeRow]:
    count = len(answers.points)
    pictures = np.arange(count, dtype=np.int64)
    there = np.stack(luck.there)
    lucky = _mean([lucky_precision(int(held), count) for held in there.sum(axis=0) if held])

    def row(name: str, statistic: Callable[[NDArray[np.intp]], float], chance: float | None) -> ProbeRow:
        return ProbeRow(name=name, chance=_known(chance), clusters=pictures, statistic=statistic)

    true = np.stack([one.true for one in answers.free]).astype(np.float64)
    rows = [
        _points_row(answers.points, luck),
        row(MIOU, mean_iou(answers.free), _guessing(luck.free, true)),
        row(MIOU_GIVEN, mean_iou(answers.given), _guessing(luck.given, true)),
        row(MIOU_CELLS, mean_iou(answers.cells), _guessing(luck.given, true)),
    ]
    if answers.boxes:
        truths, _, whole_found = np.sum(luck.boxes, axis=0).astype(np.float64)
        chance = precision_of_recall(whole_found, truths, whole_found / count)
        rows.append(row(BOX_AP, box_precision(answers.boxes), chance))
    rows.append(row(MAP, _MeanPrecision(np.stack(answers.scores), there), lucky))
    rows.append(row(MAP_PEAK, _MeanPrecision(np.stack(answers.peaks), there), lucky))
    rows.append(row(MAP_POOLED, _MeanPrecision(whole, there), lucky))
    return rows


def _bound_rows(luck: _Luck, refined: float, cells: float) -> list[ProbeRow]:
    """What the best answers of this grid score, under the names of `_rows`."""
    once = np.zeros(1, dtype=np.int64)

    def row(name: str, value: float) -> ProbeRow:
        return mean_row(name, [value], once, chance=None)

    points = [point for picture in luck.bound_points for point in picture]
    rows = [row(POINTING, _mean(points)), row(MIOU, refined), row(MIOU_GIVEN, refined), row(MIOU_CELLS, cells)]
    if luck.boxes:
        truths, reached, _ = np.sum(luck.boxes, axis=0).astype(np.float64)
        rows.append(row(BOX_AP, precision_of_recall(reached, truths, np.ones(len(truths)))))
    return [*rows, row(MAP, 1.0), row(MAP_PEAK, 1.0), row(MAP_POOLED, 1.0)]


def _points_row(points: Sequence[Sequence[float]], luck: _Luck) -> ProbeRow:
    clusters = np.repeat(np.arange(len(points)), [len(each) for each in points])
    chance = _mean([point for picture in luck.chance_points for point in picture])
    return mean_row(POINTING, [point for each in points for point in each], clusters, chance=_known(chance))


def _guessing(parts: Sequence[tuple[F64, F64]], true: F64) -> float:
    """The mean IoU of the expected areas of a random class for each pixel."""
    shared, answered, total = sum(part[0] for part in parts), sum(part[1] for part in parts), true.sum(axis=0)
    kept = total > 0
    return _mean((shared / np.maximum(answered + total - shared, 1e-12))[kept])


@dataclass(frozen=True, eq=False)
class _MeanPrecision:
    """Mean over the labels that some picture has of their average precision over pictures; both [pictures, labels]."""

    scores: F64
    there: NDArray[np.bool_]

    def __call__(self, picks: NDArray[np.intp]) -> float:
        found = [
            average_precision(self.scores[picks, label], self.there[picks, label])
            for label in np.flatnonzero(self.there[picks].any(axis=0)).tolist()
        ]
        return float(np.mean(found)) if found else float("nan")


class _Shown:
    """The pictures with the highest and the lowest mean IoU of their labels, where there are any."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._best: list[tuple[float, int, Showing]] = []
        self._worst: list[tuple[float, int, Showing]] = []

    def offer(self, sample: PictureWithTruth, found: Found, given: Areas, points: Sequence[float], index: int) -> None:
        if not sample.truth.visible or not self._most:
            return
        overlaps = tuple(given.of(label) for label in sample.truth.labels)
        made = Showing(sample=sample, found=found, overlaps=overlaps, points=tuple(points))
        entry = made.overlap, index, made
        self._best = sorted([*self._best, entry], key=lambda each: (-each[0], each[1]))[: self._most]
        self._worst = sorted([*self._worst, entry], key=lambda each: (each[0], each[1]))[: self._most]

    def kept(self, names: Sequence[str]) -> tuple[Showing, ...]:
        """Best first, then worst first; a picture of a small set may be both and is shown once."""
        best = {index: replace(made, kind="best", names=tuple(names)) for _, index, made in self._best}
        worst = {index: replace(made, kind="worst", names=tuple(names)) for _, index, made in self._worst}
        return (*best.values(), *(made for index, made in worst.items() if index not in best))


def _mean(values: Sequence[float] | F64) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _known(value: float | None) -> float | None:
    return None if value is None or np.isnan(value) else value
