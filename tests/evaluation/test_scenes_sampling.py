"""From seeds to scenes: repeatable, within the rules, varied; and the splits."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.scenes.config import SceneConfig, all_pairs
from evaluation.scenes.dice import Dice
from evaluation.scenes.geometry import direction_of, in_front
from evaluation.scenes.meaning import place_of
from evaluation.scenes.pairs import problem
from evaluation.scenes.palette import COLOURS, RGB, SHAPES
from evaluation.scenes.rendering import render
from evaluation.scenes.sampling import sample
from evaluation.scenes.scene import Scene, SceneError
from evaluation.scenes.splits import split

CONFIGS: dict[str, SceneConfig] = {
    "default": SceneConfig(),
    "relation": SceneConfig(count=(2, 2), decided_pair=True, differ_in=("shape", "colour")),
    "place": SceneConfig(count=(1, 1), decided_place=True),
    "depth": SceneConfig(count=(2, 3), overlap="required"),
    "crowd": SceneConfig(count=(1, 10), size=(0.09, 0.12), textures=("plain",), share=("shape",)),
    "free": SceneConfig(overlap="allowed", distinct_pairs=True, turn_deg=180),
}
seeds = st.integers(0, 2**40)
DIGEST_SCRIPT = """
import hashlib, sys
from evaluation.scenes.config import SceneConfig
from evaluation.scenes.rendering import render
from evaluation.scenes.sampling import sample
for seed in map(int, sys.argv[1:]):
    scene = sample(seed, SceneConfig(overlap="allowed"))
    print(hashlib.sha256(repr(scene).encode() + render(scene, 48).image.tobytes()).hexdigest())
"""


def digest(scene: Scene) -> str:
    return hashlib.sha256(repr(scene).encode() + render(scene, 48).image.tobytes()).hexdigest()


def test_a_seed_is_a_scene_in_any_process_and_order() -> None:
    here = {seed: digest(sample(seed, SceneConfig(overlap="allowed"))) for seed in (0, 1, 2, 3, 4)}
    for order, hash_seed in (("43210", "1"), ("20413", "77")):
        command = [sys.executable, "-c", DIGEST_SCRIPT, *order]
        env = os.environ | {"PYTHONHASHSEED": hash_seed}
        out = subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout.split()
        assert out == [here[int(seed)] for seed in order]


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=30)
@given(seed=seeds)
def test_every_scene_keeps_its_rules(name: str, seed: int) -> None:
    config = CONFIGS[name]
    scene = sample(seed, config)
    assert problem(scene, config) is None
    assert config.count[0] <= len(scene.things) <= config.count[1]
    if name == "relation":
        a, b = scene.things
        assert direction_of(a.x - b.x, a.y - b.y) is not None
        assert a.shape != b.shape
        assert a.colour != b.colour
    if name == "place":
        assert place_of(scene.things[0]) is not None
    if name == "depth":
        assert in_front(scene, 0, 1) is not None
    if name == "crowd":
        assert len({thing.shape for thing in scene.things}) == 1
    if name == "free":
        assert len({(t.shape, t.colour) for t in scene.things}) == len(scene.things)


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=10)
@given(seed=seeds)
def test_pixels_agree_with_the_rules(name: str, seed: int) -> None:
    """Nothing is cut by the frame, too hidden, too small or of another colour, as seen in the picture itself."""
    config = CONFIGS[name]
    scene = sample(seed, config)
    out = render(scene, 192)
    for index, thing in enumerate(scene.things):
        assert out.full_px[index] == pytest.approx(thing.size**2 * 192**2, rel=0.04)
        assert out.visible_px[index] >= 0.97 * config.least_visible * 192**2
        hidden = 1 - out.visible_px[index] / out.full_px[index]
        assert hidden <= (0 if config.overlap == "never" else config.most_hidden + 0.04)
        if thing.texture == "plain":
            seen = np.median(out.image[out.masks[index]], axis=0) / 255
            nearest = min(COLOURS, key=lambda colour: np.abs(seen - np.array(RGB[colour])).sum())
            assert nearest == thing.colour


def test_scenes_are_varied() -> None:
    scenes = [sample(seed, SceneConfig()) for seed in range(600)]
    things = [thing for scene in scenes for thing in scene.things]
    for counted, kinds, total in (
        (Counter(len(scene.things) for scene in scenes), 4, 600),
        (Counter(thing.shape for thing in things), 8, len(things)),
        (Counter(thing.colour for thing in things), 8, len(things)),
        (Counter(thing.texture for thing in things), 4, len(things)),
        (Counter(scene.background.pattern for scene in scenes), 5, 600),
        (Counter(scene.background.tone for scene in scenes), 2, 600),
    ):
        assert len(counted) == kinds
        expected = total / kinds
        assert sum((n - expected) ** 2 / expected for n in counted.values()) < 30  # chi-square, 7 degrees: p = 1e-4
    assert np.std([thing.x for thing in things]) > 0.15
    assert len({scene.things for scene in scenes}) == 600


def test_streams_and_seeds_are_unrelated() -> None:
    config = SceneConfig()
    assert sample(3, config) == sample(3, config)
    assert sample(3, config).things != sample(4, config).things
    assert sample(3, config).things != sample(3, replace(config, stream="other")).things


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"count": (0, 2)}, "1 <= fewest"),
        ({"size": (0.3, 0.2)}, "lowest <= highest"),
        ({"size": (0.1, 0.2)}, "textures cannot be told apart"),
        ({"pairs": ()}, "pairs is empty"),
        ({"pairs": (("circle", "black"),)}, r"\('circle', 'black'\)"),
        ({"share": ("shape",), "differ_in": ("shape",)}, "contradict"),
        ({"share": ("shape", "colour"), "distinct_pairs": True}, "distinct_pairs contradicts"),
        ({"count": (1, 9), "differ_in": ("shape",)}, "9 things cannot all differ in shape"),
        ({"decided_pair": True}, "speak of two things"),
    ],
)
def test_contradictory_configs_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SceneError, match=message):
        SceneConfig(**fields)


def test_a_config_without_room_says_so() -> None:
    with pytest.raises(SceneError, match="seed 1, stream 'scenes': no layout of 9 things"):
        sample(1, SceneConfig(count=(9, 9), size=(0.3, 0.3)))
    with pytest.raises(SceneError, match="cannot share"):
        sample(1, SceneConfig(count=(3, 3), pairs=all_pairs(SHAPES[:2], COLOURS[:1]), distinct_pairs=True))


def test_dice_are_fair_and_repeatable() -> None:
    dice = Dice("test", 1)
    faces = Counter(dice.between(1, 6) for _ in range(6000))
    assert set(faces) == {1, 2, 3, 4, 5, 6}
    assert max(faces.values()) < 1150
    orders = Counter(tuple(Dice("order", number).shuffled("abc")) for number in range(1200))
    assert len(orders) == 6
    assert min(orders.values()) > 140
    assert Dice("test", 1).fractions(3) != Dice("test", "1").fractions(3)
    assert all((value * 1024).is_integer() for value in (Dice(1).uniform(0.1, 0.9) for _ in range(5)))
    with pytest.raises(ValueError, match="nothing to pick"):
        dice.pick(())


@pytest.mark.parametrize("seed", range(5))
def test_a_split_holds_out_compositions(seed: int) -> None:
    parts = split(SceneConfig(), seed=seed)
    train, held = set(parts.train.pairs), set(parts.heldout.pairs)
    assert train | held == set(all_pairs())
    assert not train & held
    assert len(held) == 16
    assert parts.validation.pairs == parts.train.pairs
    for side in (train, held):
        assert {shape for shape, _ in side} == set(SHAPES)
        assert {colour for _, colour in side} == set(COLOURS)
    assert len({parts.train.stream, parts.validation.stream, parts.heldout.stream}) == 3
    partners = [
        (a, b)
        for a, b in combinations(sorted(held), 2)
        if a[0] != b[0] and a[1] != b[1] and {(a[0], b[1]), (b[0], a[1])} <= held
    ]
    assert {pair for couple in partners for pair in couple} == held  # each can swap colours and stay held out


def test_scenes_of_a_split_stay_on_their_side() -> None:
    parts = split(SceneConfig(), share=0.5)
    train, held = set(parts.train.pairs), set(parts.heldout.pairs)
    assert len(held) == 32
    for seed in range(60):
        assert {(t.shape, t.colour) for t in sample(seed, parts.train).things} <= train
        assert {(t.shape, t.colour) for t in sample(seed, parts.heldout).things} <= held
    training = {sample(seed, parts.train).things for seed in range(300)}
    assert not training & {sample(seed, parts.validation).things for seed in range(300)}


def test_impossible_splits_are_refused() -> None:
    with pytest.raises(SceneError, match="all pairs of 4 or more"):
        split(SceneConfig(pairs=tuple(product(SHAPES[:3], COLOURS))))
    with pytest.raises(SceneError, match="all pairs"):
        split(SceneConfig(pairs=all_pairs()[1:]))
    with pytest.raises(SceneError, match=r"\(0, 0.5\]"):
        split(SceneConfig(), share=0.6)
