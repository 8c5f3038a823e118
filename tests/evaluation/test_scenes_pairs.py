"""Minimal pairs: one factor differs, in the truth and in the pixels."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.scenes.captions import mention, relations
from evaluation.scenes.config import SceneConfig, all_pairs
from evaluation.scenes.meaning import is_false, is_true
from evaluation.scenes.pairs import Factor, change, differences, minimal_pair, problem, remove, swap
from evaluation.scenes.palette import COLOURS, SHAPES
from evaluation.scenes.rendering import render
from evaluation.scenes.sampling import sample
from evaluation.scenes.scene import Scene, SceneError
from evaluation.scenes.shapes import footprint
from evaluation.scenes.splits import split

TWO = SceneConfig(count=(2, 2), decided_pair=True, differ_in=("shape", "colour"))
DEPTH = SceneConfig(count=(2, 2), overlap="required", most_hidden=0.5)
FACTORS: tuple[Factor, ...] = get_args(Factor)
CHANGED_FIELD = {"background": "background", "one less": "presence"}
seeds = st.integers(0, 10**6)


def first_pair(seed: int, factor: Factor, config: SceneConfig) -> tuple[Scene, Scene]:
    """The first scene from this seed on that has such a pair, and its twin."""
    for number in range(seed, seed + 50):
        scene = sample(number, config)
        with suppress(SceneError):
            return scene, minimal_pair(scene, factor, config=config)
    raise AssertionError(f"no pair in {factor} from seed {seed} on")


def reached(scene: Scene, indices: set[int], size_px: int) -> np.ndarray:
    """Pixels that any of these things touches, soft edge included."""
    out = np.zeros((size_px, size_px), dtype=bool)
    for index in indices:
        place = footprint(scene.things[index], size_px)
        out[place.window] |= place.distance_px < 0.5
    return out


@pytest.mark.parametrize("factor", [f for f in FACTORS if f != "swap depth"])
@settings(max_examples=25)
@given(seed=seeds)
def test_one_factor_differs_and_no_pixel_elsewhere(factor: Factor, seed: int) -> None:
    scene, other = first_pair(seed, factor, TWO)
    found = differences(scene, other)
    field = CHANGED_FIELD.get(factor, factor.removeprefix("swap "))
    if factor == "one less":
        assert len(other.things) == 1
        assert other.things[0] in scene.things
        return
    assert {name for _, name in found} == {field}
    assert len(found) == (2 if factor.startswith("swap ") else 1)
    assert problem(other, TWO) is None
    assert other == minimal_pair(scene, factor, config=TWO)
    one, two = render(scene, 64), render(other, 64)
    touched = {index for index, _ in found if index >= 0}
    if factor == "background":
        assert np.array_equal(one.owner, two.owner)
        inside = (one.owner >= 0) & ~(reached(scene, {0, 1}, 64) & (one.owner < 0))
        edges = np.zeros_like(inside)
        for index in (0, 1):
            place = footprint(scene.things[index], 64)
            edges[place.window] |= np.abs(place.distance_px) < 0.5
        assert np.array_equal(one.image[inside & ~edges], two.image[inside & ~edges])
        return
    elsewhere = ~(reached(scene, touched, 64) | reached(other, touched, 64))
    assert np.array_equal(one.image[elsewhere], two.image[elsewhere])
    assert np.array_equal(one.owner[elsewhere], two.owner[elsewhere])
    assert not np.array_equal(one.image, two.image)
    if field in ("colour", "texture"):
        assert np.array_equal(one.owner, two.owner)
        assert np.array_equal(one.boxes, two.boxes)
    for index in {0, 1} - touched:
        assert np.array_equal(one.masks[index], two.masks[index])


@settings(max_examples=20)
@given(seeds)
def test_swapping_depth_changes_only_where_things_meet(seed: int) -> None:
    scene, other = first_pair(seed, "swap depth", DEPTH)
    assert differences(scene, other) == {(0, "depth"), (1, "depth")}
    meet = reached(scene, {0}, 64) & reached(scene, {1}, 64)
    one, two = render(scene, 64), render(other, 64)
    assert np.array_equal(one.image[~meet], two.image[~meet])
    before, after = relations(scene, ["in front of"]), relations(other, ["in front of"])
    if before:
        assert is_false(before[0].meaning, other)
        assert is_true(after[0].meaning, other)
        assert is_false(after[0].meaning, scene)


def test_swaps_are_found_for_most_scenes() -> None:
    """A pair generator may refuse, but not so often that its scenes become special."""
    for factor, least in (
        ("swap colour", 100),
        ("swap shape", 70),
        ("swap position", 55),
        ("position", 95),
        ("size", 90),
    ):
        found = 0
        for seed in range(100):
            try:
                minimal_pair(sample(seed, TWO), factor, config=TWO)
                found += 1
            except SceneError:
                continue
        assert found >= least, (factor, found)


@settings(max_examples=25)
@given(seeds)
def test_a_quad_exchanges_truths(seed: int) -> None:
    """Two scenes, two captions of the same words, each true for its own scene only."""
    scene = sample(seed, TWO)
    other = minimal_pair(scene, "swap colour", config=TWO)
    one, two = mention(scene), mention(other)
    assert is_true(one.meaning, scene)
    assert is_false(one.meaning, other)
    assert is_true(two.meaning, other)
    assert is_false(two.meaning, scene)
    assert sorted(one.text.replace("an ", "a ").split()) == sorted(two.text.replace("an ", "a ").split())


def test_pairs_stay_on_their_side_of_a_split() -> None:
    held = split(TWO).heldout
    kept = 0
    for seed in range(200):
        scene = sample(seed, held)
        with suppress(SceneError):
            other = minimal_pair(scene, "swap colour", config=held)
            kept += 1
            assert {(thing.shape, thing.colour) for thing in other.things} <= set(held.pairs)
    assert kept > 10


def test_what_cannot_be_seen_is_no_pair() -> None:
    plain_circles = SceneConfig(count=(1, 1), pairs=all_pairs(SHAPES[:1], COLOURS[:1]), textures=("plain",))
    scene = sample(1, plain_circles)
    with pytest.raises(SceneError, match="looks alike"):
        minimal_pair(scene, "rotation", config=plain_circles)
    with pytest.raises(SceneError, match="not among the config's pairs|changes nothing"):
        minimal_pair(scene, "colour", config=plain_circles)
    with pytest.raises(SceneError, match="a swap needs two"):
        minimal_pair(scene, "swap colour", config=plain_circles)
    with pytest.raises(SceneError, match="no thing is left"):
        minimal_pair(scene, "one less", config=plain_circles)
    apart = sample(1, TWO)
    with pytest.raises(SceneError, match="do not overlap"):
        minimal_pair(apart, "swap depth", config=TWO)


def test_one_less_of_an_overlapping_couple() -> None:
    assert len(minimal_pair(sample(0, DEPTH), "one less", config=DEPTH).things) == 1


def test_hand_made_changes() -> None:
    scene = sample(2, SceneConfig(count=(3, 3)))
    bigger = change(scene, 1, replace(scene.things[1], size=scene.things[1].size * 2**0.5))
    assert differences(scene, bigger) == {(1, "size")}
    areas = [render(one, 448).full_px[1] for one in (scene, bigger)]
    assert areas[1] / areas[0] == pytest.approx(2, rel=0.03)
    assert differences(scene, swap(scene, "position", 0, 2)) == {(0, "position"), (2, "position")}
    assert swap(swap(scene, "shape"), "shape") == scene
    assert differences(scene, remove(scene, 2)) == {(2, "presence")}
    assert problem(remove(scene, 0), SceneConfig(count=(3, 3))) == "2 things, expected 3 to 3"
    outside = change(scene, 0, replace(scene.things[0], x=0.99))
    assert "reaches out of the picture" in (problem(outside, SceneConfig()) or "")
