"""Points, areas and boxes: against small cases by hand and against a second implementation written for this test."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from evaluation.dense.boxes import (
    box_precision,
    interpolated,
    judge_boxes,
    judge_picture,
    precision_of_recall,
    reachable,
)
from evaluation.dense.segments import (
    CellBound,
    answered_cells,
    answered_whole_cells,
    areas,
    guessed,
    mean_iou,
    painted,
)
from evaluation.dense.truth import BACKGROUND, UNJUDGED, Box, Instance, Truth
from evaluation.locating import Found
from model_store.regions import find_regions, paint

Labelled = tuple[int, int, Box, float]  # picture, label, box, score (of a truth: 1 for a crowd)


def found_of(maps: NDArray[np.float32], *, side: int = 64, scores: list[float] | None = None) -> Found:
    values = np.array(scores or [1.0] * len(maps))
    return Found(width=side, height=side, scores=values, maps=maps, boxes=(), threshold=0.5)


def truth_of(boxes: list[tuple[int, Box, bool]], *, side: int = 100) -> Truth:
    instances: list[Instance] = []
    for label, box, crowd in boxes:
        mask = np.zeros((side, side), dtype=np.bool_)
        mask[round(box[1]) : round(box[3]), round(box[0]) : round(box[2])] = True
        instances.append(Instance(label=label, mask=mask, hit=mask, box=box, crowd=crowd))
    return Truth(width=side, height=side, instances=tuple(instances))


def iou(a: Box, b: Box) -> float:
    across = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    down = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    size = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return across * down / (size - across * down) if across * down else 0.0


def slow_precision(found: list[Labelled], truths: list[Labelled], label: int) -> float:
    """COCO's average precision at IoU .5 of one label, by its text: box by box, recall by recall."""
    right_boxes = sorted((each for each in found if each[1] == label), key=lambda each: -each[3])
    wanted = [each for each in truths if each[1] == label and not each[3]]
    taken: set[int] = set()
    outcomes: list[bool] = []
    for picture, _, box, _ in right_boxes:
        best, best_iou = None, 0.5
        for at, (where, _, true, _) in enumerate(wanted):
            if where == picture and at not in taken and iou(box, true) >= best_iou:
                best, best_iou = at, iou(box, true)
        if best is not None:
            taken.add(best)
            outcomes.append(True)
            continue
        crowds = [each[2] for each in truths if each[:2] == (picture, label) and each[3]]
        size = (box[2] - box[0]) * (box[3] - box[1])
        shared = [
            max(0.0, min(box[2], c[2]) - max(box[0], c[0])) * max(0.0, min(box[3], c[3]) - max(box[1], c[1]))
            for c in crowds
        ]
        if not any(part / size >= 0.5 for part in shared):
            outcomes.append(False)
    best_at: list[float] = []
    for hundredth in range(101):
        reached = [
            sum(outcomes[:n]) / n
            for n in range(1, len(outcomes) + 1)
            if sum(outcomes[:n]) * 100 >= hundredth * len(wanted)
        ]
        best_at.append(max(reached, default=0.0))
    return sum(best_at) / 101


whole = st.integers(0, 12)
any_box = st.tuples(whole, whole, st.integers(1, 9), st.integers(1, 9)).map(
    lambda each: (each[0] * 5.0, each[1] * 5.0, (each[0] + each[2]) * 5.0, (each[1] + each[3]) * 5.0)
)
place = st.tuples(st.integers(0, 2), st.integers(0, 1))


@given(
    st.lists(st.tuples(place, any_box), max_size=14),
    st.lists(st.tuples(place, any_box, st.booleans()), max_size=8),
)
def test_average_precision_is_that_of_a_slow_second_count(
    guesses: list[tuple[tuple[int, int], Box]], things: list[tuple[tuple[int, int], Box, bool]]
) -> None:
    scores = np.random.default_rng(len(guesses)).permutation(len(guesses)) / 20 + 0.1  # all different
    found: list[Labelled] = [(*at, box, float(s)) for (at, box), s in zip(guesses, scores, strict=True)]
    truths: list[Labelled] = [(*at, box, float(crowd)) for at, box, crowd in things]
    judged = [
        judge_picture(
            [
                np.array([[*box, s] for p, la, box, s in found if (p, la) == (picture, label)]).reshape(-1, 5)
                for label in (0, 1)
            ],
            truth_of([(la, box, bool(crowd)) for p, la, box, crowd in truths if p == picture]),
        )
        for picture in range(3)
    ]
    there = sorted({label for _, label, _, crowd in truths if not crowd})
    value = box_precision(judged)(np.arange(3))
    if not there:
        assert np.isnan(value)
    else:
        assert value == pytest.approx(np.mean([slow_precision(found, truths, label) for label in there]))


def test_precision_by_hand() -> None:
    """Right, wrong, right of two truths: precision 1 up to recall .5 (51 points), then 2/3 (50 points)."""
    ones = np.ones(3)
    assert interpolated(np.array([True, False, True]), ones, 2) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert interpolated(np.array([False, True]), np.ones(2), 1) == pytest.approx(0.5)
    assert interpolated(np.array([True]), np.ones(1), 4) == pytest.approx(26 / 101)  # recalls 0 to .25
    assert interpolated(np.zeros(0, dtype=bool), np.zeros(0), 4) == 0
    # A picture that is drawn twice counts twice, one that is not drawn not at all.
    doubled = interpolated(np.array([True, False, True]), np.array([2.0, 0.0, 1.0]), 3)
    assert doubled == pytest.approx(1.0)


def test_a_truth_is_found_once_and_the_better_box_has_it() -> None:
    truth: Box = (0, 0, 10, 10)
    boxes = np.array([[0, 0, 10, 10, 0.6], [0, 0, 10, 9, 0.9], [0, 0, 10, 4, 0.8]], dtype=float)
    assert judge_boxes(boxes, [truth], []) == [(0.9, True), (0.8, False), (0.6, False)]
    # The same two in a crowd do not count; one that is half outside of it is wrong.
    assert judge_boxes(boxes, [], [(0, 0, 20, 9)]) == []
    outside = np.array([[0, 0, 10, 10, 0.6]])
    assert judge_boxes(outside, [], [(5.1, 0, 20, 20)]) == [(0.6, False)]
    assert judge_boxes(np.zeros((0, 5)), [truth], []) == []


def test_exactly_half_is_enough() -> None:
    assert judge_boxes(np.array([[0, 0, 10, 5, 1.0]]), [(0, 0, 10, 10)], []) == [(1.0, True)]
    assert judge_boxes(np.array([[0, 0, 10, 4.99, 1.0]]), [(0, 0, 10, 10)], []) == [(1.0, False)]


def test_what_boxes_of_a_grid_reach() -> None:
    """By trying every box on the lines of the grid."""
    random = np.random.default_rng(0)
    outcomes: set[bool] = set()
    for _ in range(150):
        x0, y0 = random.uniform(0, 80, 2)
        width, height = random.uniform(1, 20, 2)
        box = float(x0), float(y0), float(x0 + width), float(y0 + height)
        lines_x, lines_y = np.linspace(0, 100, 6), np.linspace(0, 100, 9)
        best = max(
            iou((a, b, c, d), box)
            for a, c in product(lines_x.tolist(), repeat=2)
            for b, d in product(lines_y.tolist(), repeat=2)
            if a < c and b < d
        )
        outcomes.add(best >= 0.5)
        assert reachable(box, rows=8, columns=5, width=100, height=100) == (best >= 0.5), (box, best)
    assert outcomes == {True, False}


def test_constant_precision() -> None:
    """Of label 0 half is found at precision 1, of label 1 nothing; label 2 has nothing to find."""
    value = precision_of_recall(np.array([1.0, 0, 0]), np.array([2.0, 3, 0]), np.array([1.0, 1, 1]))
    assert value == pytest.approx((51 / 101 + 0) / 2)


def test_areas_by_hand() -> None:
    truth = np.array([[0, 0, 1], [BACKGROUND, 1, UNJUDGED]], dtype=np.int16)
    answer = np.array([[0, 1, 1], [BACKGROUND, BACKGROUND, 0]], dtype=np.int16)
    found = areas(answer, truth, 3)
    assert found.shared.tolist() == [1, 1, 1, 0]
    assert found.answered.tolist() == [2, 1, 2, 0]
    assert found.true.tolist() == [1, 2, 2, 0]
    assert (found.of(0), found.of(1), found.of(2)) == (1 / 2, 1 / 3, None)  # 2 is nowhere
    statistic = mean_iou([found, areas(truth.clip(-1), truth.clip(-1), 3)])
    assert statistic(np.array([0])) == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3)  # a class that is nowhere is left out
    # Pixels are added up before they are divided: background (1 + 2) / (2 + 2), 0: (1 + 2) / 4, 1: (1 + 2) / 5
    assert statistic(np.array([0, 1])) == pytest.approx((3 / 4 + 3 / 4 + 3 / 5) / 3)


def test_guessing_a_class_for_each_pixel() -> None:
    random = np.random.default_rng(0)
    truth = np.repeat(np.array([BACKGROUND, 0, 2], dtype=np.int16), [6000, 3000, 1000]).reshape(100, 100)
    drawn = random.choice(np.array([BACKGROUND, 0, 2], dtype=np.int16), size=(100, 100))
    seen = areas(drawn, truth, 3)
    shared, answered = guessed(seen.true, (0, 2))
    np.testing.assert_allclose(shared, [2000, 1000, 0, 1000 / 3], rtol=1e-9)
    np.testing.assert_allclose(seen.shared, shared, atol=120)
    np.testing.assert_allclose(seen.answered, answered, atol=120)


def test_cells_are_those_of_the_servers_masks() -> None:
    """One label: its refined cells painted are the masks of its regions, painted."""
    random = np.random.default_rng(3)
    heat = random.normal(size=(6, 7)).astype(np.float32)
    cells = answered_cells(found_of(heat[None]), [0])
    assert cells.shape == (24, 28)
    regions = find_regions(heat, width=64, height=64, masks=True)
    masks = [paint(each.mask, 64, 64) for each in regions if each.mask is not None]
    np.testing.assert_array_equal(painted(cells, 64, 64) == 0, np.logical_or.reduce(masks))


def test_of_two_labels_the_higher_map_wins_and_others_are_background() -> None:
    maps = np.zeros((3, 8, 8), dtype=np.float32)
    maps[0, 1:4, 1:4] = 1
    maps[1, 2:6, 2:6] = 3
    maps[2] = 9  # the highest by far, and not asked about
    cells = answered_whole_cells(found_of(maps), [0, 1])
    assert (cells[1, 1], cells[3, 3], cells[5, 5], cells[7, 7]) == (0, 1, 1, BACKGROUND)
    assert (cells == 2).sum() == 0
    assert answered_whole_cells(found_of(maps), []).tolist() == [[BACKGROUND] * 8] * 8
    assert answered_cells(found_of(maps), []).shape == (32, 32)
    fine = answered_cells(found_of(maps), [1, 0])
    assert (fine[13, 13], fine[6, 6], fine[31, 31]) == (1, 0, BACKGROUND)


@pytest.mark.parametrize("seed", range(4))
def test_the_bound_of_cells_by_trying_all_sets(seed: int) -> None:
    """Two pictures of 2 x 3 cells, one label: the best of all 2^12 answers, to a thousandth's bin."""
    random = np.random.default_rng(seed)
    truths = [np.where(random.random((6, 9)) < random.uniform(0.2, 0.8), 0, BACKGROUND) for _ in range(2)]
    truths[0][0, :2] = UNJUDGED
    bound = CellBound(1)
    for truth in truths:
        bound.add(truth.astype(np.int16), 2, 3)
    best = {0: 0.0, BACKGROUND: 0.0}
    for sets in product([False, True], repeat=12):
        cells = np.array(sets).reshape(2, 2, 3)
        answers = [np.repeat(np.repeat(each, 3, axis=0), 3, axis=1) for each in cells]
        for label in best:
            shared = sum(int((a & (t == label)).sum()) for a, t in zip(answers, truths, strict=True))
            either = sum(
                int(((a & (t != UNJUDGED)) | (t == label)).sum()) for a, t in zip(answers, truths, strict=True)
            )
            best[label] = max(best[label], shared / max(either, 1))
    assert bound.value() == pytest.approx(np.mean(list(best.values())), abs=2e-3)
    assert np.isnan(CellBound(1).value())


def test_the_smaller_of_two_masks_is_on_top() -> None:
    truth = truth_of([(0, (0, 0, 50, 50), False), (1, (10, 10, 20, 20), False)])
    classes = truth.classes
    assert (classes[15, 15], classes[30, 30], classes[80, 80]) == (1, 0, BACKGROUND)
    assert truth.labels == (0, 1)


def test_a_label_that_is_wholly_hidden_is_there_but_not_visible() -> None:
    hidden = (1, (10.0, 10.0, 20.0, 20.0), False)
    truth = truth_of([(0, (0, 0, 50, 50), False), hidden, (2, (10, 10, 15, 20), False), (3, (15, 10, 20, 20), False)])
    assert (truth.labels, truth.visible) == ((0, 1, 2, 3), (0, 2, 3))
    assert areas(truth.classes, truth.classes, 4).of(1) is None
    unjudged = np.zeros((100, 100), dtype=np.bool_)
    unjudged[10:20, 15:20] = True
    assert Truth(width=100, height=100, instances=truth.instances, unjudged=unjudged).visible == (0, 2)
