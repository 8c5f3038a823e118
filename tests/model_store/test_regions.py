"""Regions against brute force: components by flood fill, boxes and masks pixel by pixel, COCO's text by pycocotools."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from evaluation.scenes.masks import decode_segmentation
from model_store.regions import (
    connected,
    encode_rle,
    find_regions,
    overlap,
    paint,
    refine,
    regions_of,
    stretch,
    without_overlaps,
)

grids = arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)
masks = arrays.arrays(np.bool_, grids)
heats = arrays.arrays(np.float32, grids, elements=st.floats(-4, 4, width=32))
sides = st.integers(1, 90)


def flooded(mask: np.ndarray) -> set[frozenset[tuple[int, int]]]:
    """Components as sets of cells, found by walking from neighbour to neighbour, corners included."""
    left = {(int(r), int(c)) for r, c in zip(*np.nonzero(mask), strict=True)}
    found = set()
    while left:
        todo = [left.pop()]
        component = set(todo)
        while todo:
            row, column = todo.pop()
            for dr, dc in itertools.product((-1, 0, 1), repeat=2):
                cell = (row + dr, column + dc)
                if cell in left:
                    left.remove(cell)
                    component.add(cell)
                    todo.append(cell)
        found.add(frozenset(component))
    return found


def bilinear(heat: np.ndarray, height: int, width: int) -> np.ndarray:
    """The definition, point by point."""
    out = np.empty((height, width))
    for y, x in itertools.product(range(height), range(width)):
        row = min(max((y + 0.5) * heat.shape[0] / height - 0.5, 0), heat.shape[0] - 1)
        column = min(max((x + 0.5) * heat.shape[1] / width - 0.5, 0), heat.shape[1] - 1)
        r, c = int(row), int(column)
        r1, c1 = min(r + 1, heat.shape[0] - 1), min(c + 1, heat.shape[1] - 1)
        top = heat[r, c] * (1 - column + c) + heat[r, c1] * (column - c)
        bottom = heat[r1, c] * (1 - column + c) + heat[r1, c1] * (column - c)
        out[y, x] = top * (1 - row + r) + bottom * (row - r)
    return out


@given(masks)
def test_components_are_those_of_a_flood_fill(mask: np.ndarray) -> None:
    labels, count = connected(mask[None])
    (labels,) = labels
    cells = {
        frozenset((int(r), int(c)) for r, c in zip(*np.nonzero(labels == n), strict=True)) for n in range(1, count + 1)
    }
    assert cells == flooded(mask)
    assert len(cells) == count


@given(heats, st.integers(1, 30), st.integers(1, 30))
def test_a_stretched_map_is_bilinear(heat: np.ndarray, height: int, width: int) -> None:
    np.testing.assert_allclose(stretch(heat, height, width), bilinear(heat.astype(float), height, width), atol=1e-5)


def test_a_stretched_map_is_what_pillow_makes_of_it() -> None:
    heat = np.random.default_rng(0).standard_normal((7, 9)).astype(np.float32)
    expected = np.asarray(Image.fromarray(heat).resize((36, 28), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(refine(heat), expected, atol=1e-5)


@given(masks, sides, sides)
def test_painted_masks_ask_the_middle_of_each_pixel(mask: np.ndarray, width: int, height: int) -> None:
    painted = paint(mask, width, height)
    assert painted.shape == (height, width)
    for y, x in itertools.product(range(0, height, 7), range(0, width, 7)):
        row, column = int((y + 0.5) * mask.shape[0] / height), int((x + 0.5) * mask.shape[1] / width)
        assert painted[y, x] == mask[row, column]


@given(masks, sides, sides)
def test_run_lengths_are_those_of_the_painted_mask(mask: np.ndarray, width: int, height: int) -> None:
    rle = {"size": [height, width], "counts": encode_rle(mask, width, height)}
    assert (decode_segmentation(rle, height=height, width=width) == paint(mask, width, height)).all()


def painted(height: int, width: int, *rectangles: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    for top, bottom, left, right in rectangles:
        mask[top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (painted(6, 5, (1, 4, 1, 3)), "7330;"),
        (painted(40, 100, (0, 40, 0, 50)), "0`n1`n1"),
        (np.eye(3, dtype=bool), "013000"),
        (np.ones((4, 4), dtype=bool), "0`0"),
        (np.zeros((4, 4), dtype=bool), "`0"),
    ],
)
def test_run_lengths_are_pycocotools_own(mask: np.ndarray, text: str) -> None:
    """The texts are what `pycocotools.mask.encode` (2.0) gives for these masks."""
    assert encode_rle(mask, mask.shape[1], mask.shape[0]) == text


def test_run_lengths_of_a_large_mask_are_pycocotools_own() -> None:
    text = encode_rle(painted(480, 640, (100, 333, 17, 400), (400, 480, 300, 640)), 640, 480)
    assert (len(text), hashlib.sha256(text.encode()).hexdigest()[:16]) == (1849, "b8bbfcd69b0608f1")


@given(heats, sides, sides, st.floats(0.05, 0.95))
def test_regions_are_the_components_over_the_level(heat: np.ndarray, width: int, height: int, level: float) -> None:
    found = find_regions(
        heat, width=width, height=height, score=0.8, level=level, max_overlap=1, max_regions=999, masks=True
    )
    fine = refine(heat)
    low, high = np.median(heat), fine.max()
    assert found[0].score == pytest.approx(0.8)
    assert [r.score for r in found] == sorted((r.score for r in found), reverse=True)
    if high - low <= 1e-6 * max(abs(high), abs(low), 1e-6):
        assert [(r.x0, r.y0, r.x1, r.y1) for r in found] == [(0, 0, width, height)]
        return
    lifted = (fine - low) / (high - low)
    components = flooded(fine >= (low + level * (high - low)).astype(np.float32))
    got = {frozenset((int(r), int(c)) for r, c in zip(*np.nonzero(region.mask), strict=True)) for region in found}
    assert got <= components
    for cells in components - got:  # what is left out is small, and never the best
        assert len(cells) < 8
        assert max(lifted[cell] for cell in cells) < 1
    for region in found:
        rows, columns = np.nonzero(region.mask)
        assert region.score == pytest.approx(0.8 * lifted[region.mask].max(), abs=1e-5)
        down, across = height / fine.shape[0], width / fine.shape[1]
        expected = (columns.min() * across, rows.min() * down, (columns.max() + 1) * across, (rows.max() + 1) * down)
        assert (region.x0, region.y0, region.x1, region.y1) == pytest.approx(expected)
        seen = np.nonzero(paint(region.mask, width, height))
        for edges, (low_edge, high_edge) in zip(
            seen[::-1], ((region.x0, region.x1), (region.y0, region.y1)), strict=True
        ):
            assert not len(edges) or (low_edge <= edges.min() + 0.5 and edges.max() + 0.5 <= high_edge)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5), sides, sides)
def test_maps_together_have_the_regions_they_have_alone(seeds: list[int], width: int, height: int) -> None:
    maps = np.stack([np.random.default_rng(seed).integers(0, 4, (5, 7)).astype(np.float32) for seed in seeds])
    scores = [0.1 * (index + 1) for index in range(len(maps))]
    together = regions_of(maps, scores, width=width, height=height, masks=True)
    alone = [
        find_regions(heat, score=score, width=width, height=height, masks=True)
        for heat, score in zip(maps, scores, strict=True)
    ]
    for got, expected in zip(together, alone, strict=True):
        assert [(r.x0, r.y0, r.x1, r.y1, r.score) for r in got] == [(r.x0, r.y0, r.x1, r.y1, r.score) for r in expected]
        for one, other in zip(got, expected, strict=True):
            assert (one.mask == other.mask).all()


def boxes_of(drawn: list[tuple[int, int, int, int]]) -> list[tuple[float, ...]]:
    return [(x, y, x + w, y + h) for x, y, w, h in drawn]


corners = st.tuples(*[st.integers(0, 8)] * 2, *[st.integers(1, 8)] * 2)


@given(corners, corners)
def test_overlap_counts_pixels(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> None:
    cells = [{(x, y) for x in range(a, a + w) for y in range(b, b + h)} for a, b, w, h in (one, other)]
    first, second = boxes_of([one, other])
    assert overlap(first, second) == pytest.approx(len(cells[0] & cells[1]) / len(cells[0] | cells[1]))


@given(st.lists(corners, min_size=1, max_size=10), st.floats(0, 1), st.integers(1, 10))
def test_suppression_keeps_what_no_better_kept_box_covers(
    drawn: list[tuple[int, int, int, int]], most: float, limit: int
) -> None:
    boxes, alive = boxes_of(drawn), list(range(len(drawn)))
    expected = []
    while alive:  # the textbook's way: take the best, strike what it covers
        best = alive.pop(0)
        expected.append(best)
        alive = [other for other in alive if overlap(boxes[best], boxes[other]) <= most]
    assert without_overlaps(boxes, range(len(drawn)), max_overlap=most, limit=limit) == expected[:limit]


def test_two_things_are_two_regions_in_pixels_of_the_picture() -> None:
    heat = np.zeros((8, 12), dtype=np.float32)
    heat[1:3, 2:4], heat[5:7, 8:11] = 1.0, 0.8
    first, second = find_regions(heat, width=1200, height=400, score=0.9)
    assert (first.x0, first.y0, first.x1, first.y1) == (200, 50, 400, 150)
    assert (second.x0, second.y0, second.x1, second.y1) == (800, 250, 1100, 350)
    assert (first.score, second.score) == pytest.approx((0.9, 0.72), abs=1e-5)
    assert first.mask is None


@pytest.mark.parametrize("shape", [(1, 1), (4, 7)])
def test_a_flat_map_is_the_whole_picture(shape: tuple[int, int]) -> None:
    (only,) = find_regions(np.full(shape, 3.5, dtype=np.float32), width=30, height=20, score=0.4, masks=True)
    assert (only.x0, only.y0, only.x1, only.y1, only.score) == (0, 0, 30, 20, 0.4)
    assert only.mask is not None
    assert only.mask.all()


def test_no_more_regions_than_asked_for() -> None:
    heat = np.zeros((20, 20), dtype=np.float32)
    heat[1::4, 1::4] = np.linspace(1, 0.7, 25).reshape(5, 5)
    assert [r.score for r in find_regions(heat, width=80, height=80, max_regions=3)] == pytest.approx(
        [1, 0.9875, 0.975], abs=1e-4
    )


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(1, 20), st.integers(1, 4000), st.integers(1, 4000))
def test_boxes_lie_in_the_picture_and_no_score_is_over_the_maps_own(
    seed: int, rows: int, columns: int, width: int, height: int
) -> None:
    random = np.random.default_rng(seed)
    maps = (random.normal(size=(4, rows, columns)) * 10.0 ** random.integers(-3, 3)).astype(np.float32)
    scores = [1.0, *random.uniform(size=3).tolist()]
    for found, score in zip(regions_of(maps, scores, width=width, height=height), scores, strict=True):
        assert found[0].score == score
        for region in found:
            assert region.score <= score
            assert 0 <= region.x0 < region.x1 <= width
            assert 0 <= region.y0 < region.y1 <= height
