"""The oracle against scenes laid out by hand, against slow references, and against itself."""

from __future__ import annotations

from itertools import permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.scenes.config import SceneConfig
from evaluation.scenes.geometry import DIRECTIONS, all_of, any_of, negate, toward
from evaluation.scenes.meaning import (
    INVERSE,
    RELATIONS,
    WHERES,
    And,
    Count,
    Enumeration,
    Ground,
    Not,
    Place,
    Relation,
    What,
    is_false,
    is_true,
    judge,
    matches,
    stands,
)
from evaluation.scenes.palette import COLOURS, SHAPES, TEXTURES
from evaluation.scenes.sampling import sample
from evaluation.scenes.scene import Background, Scene, SceneError, Thing

RED_CIRCLE, BLUE_SQUARE = What(colour="red", shape="circle"), What(colour="blue", shape="square")
CONFIGS = [
    SceneConfig(),
    SceneConfig(count=(2, 3), overlap="required", most_hidden=0.5),
    SceneConfig(count=(3, 7), size=(0.1, 0.16), textures=("plain",), share=("shape",)),
]
scenes = st.builds(sample, st.integers(0, 10**6), st.sampled_from(CONFIGS))
whats = st.builds(
    What,
    shape=st.sampled_from((None, *SHAPES[:3])),
    colour=st.sampled_from((None, *COLOURS[:3])),
    texture=st.sampled_from((None, *TEXTURES[:2])),
    size=st.sampled_from((None, "small", "large")),
)
meanings = st.one_of(
    st.builds(Enumeration, st.lists(whats, min_size=1, max_size=3).map(tuple)),
    st.builds(Count, whats, st.integers(0, 4)),
    st.builds(Place, whats, st.sampled_from(WHERES)),
    st.builds(Relation, whats, st.sampled_from(RELATIONS), whats),
    st.builds(Ground, st.sampled_from(("light", "dark"))),
)


def scene(*things: Thing, tone: str = "light") -> Scene:
    return Scene(things=things, background=Background(tone=tone))


def thing(
    shape: str, colour: str, x: float, y: float, *, z: int = 0, size: float = 0.2, texture: str = "plain"
) -> Thing:
    return Thing(shape=shape, colour=colour, texture=texture, size=size, x=x, y=y, z=z)


TWO = scene(thing("circle", "red", 0.2, 0.5, z=0), thing("square", "blue", 0.8, 0.5, z=1, size=0.3))


@pytest.mark.parametrize(
    ("meaning", "truth"),
    [
        (Enumeration((RED_CIRCLE,)), True),
        (Enumeration((RED_CIRCLE, BLUE_SQUARE)), True),
        (Enumeration((BLUE_SQUARE, RED_CIRCLE)), True),
        (Enumeration((What(colour="blue", shape="circle"), What(colour="red", shape="square"))), False),
        (Enumeration((What(shape="circle"), RED_CIRCLE)), None),  # may both be the one circle
        (Enumeration((What(), What())), True),
        (Enumeration((What(), What(), What())), None),
        (Enumeration((What(), RED_CIRCLE)), True),  # the first must leave the circle to the second
        (Count(What(), 2), True),
        (Count(What(shape="circle"), 1), True),
        (Count(What(shape="circle"), 2), False),
        (Count(What(shape="star"), 0), True),
        (Place(RED_CIRCLE, "left"), True),
        (Place(RED_CIRCLE, "right"), False),
        (Place(RED_CIRCLE, "top"), False),
        (Place(RED_CIRCLE, "middle"), False),
        (Relation(RED_CIRCLE, "left of", BLUE_SQUARE), True),
        (Relation(BLUE_SQUARE, "left of", RED_CIRCLE), False),
        (Relation(RED_CIRCLE, "right of", BLUE_SQUARE), False),
        (Relation(RED_CIRCLE, "above", BLUE_SQUARE), False),
        (Relation(What(), "left of", What()), True),
        (Relation(RED_CIRCLE, "smaller than", BLUE_SQUARE), True),
        (Relation(RED_CIRCLE, "bigger than", BLUE_SQUARE), False),
        (Relation(RED_CIRCLE, "behind", BLUE_SQUARE), None),  # they do not overlap
        (Relation(RED_CIRCLE, "left of", What(shape="star")), False),
        (Relation(RED_CIRCLE, "bigger than", RED_CIRCLE), False),  # it speaks of another thing
        (Relation(RED_CIRCLE, "behind", RED_CIRCLE), False),
        (Ground("light"), True),
        (Ground("dark"), False),
        (Not(Enumeration((RED_CIRCLE,))), False),
        (Not(Enumeration((What(shape="star"),))), True),
        (And((Enumeration((RED_CIRCLE,)), Not(Enumeration((What(shape="star"),))))), True),
        (And((Enumeration((RED_CIRCLE,)), Not(Enumeration((BLUE_SQUARE,))))), False),
        (Enumeration((What(shape="circle", but_not=What(texture="striped")),)), True),
        (Enumeration((What(shape="circle", but_not=What(colour="red")),)), False),
    ],
)
def test_two_things_side_by_side(meaning: object, truth: bool | None) -> None:
    assert judge(meaning, TWO) is truth  # pyright: ignore[reportArgumentType]


def test_the_margins_leave_the_diagonal_open() -> None:
    corner = scene(thing("circle", "red", 0.25, 0.25))
    assert judge(Place(RED_CIRCLE, "left"), corner) is None
    assert judge(Place(RED_CIRCLE, "top"), corner) is None
    assert judge(Place(RED_CIRCLE, "right"), corner) is False
    assert judge(Place(RED_CIRCLE, "left"), scene(thing("circle", "red", 0.4, 0.5))) is None
    assert judge(Place(RED_CIRCLE, "middle"), scene(thing("circle", "red", 0.45, 0.55))) is True


def test_depth_is_judged_where_things_meet() -> None:
    back, front = thing("circle", "red", 0.45, 0.5, z=1, size=0.3), thing("square", "blue", 0.6, 0.5, z=4, size=0.3)
    assert is_true(Relation(RED_CIRCLE, "behind", BLUE_SQUARE), scene(back, front))
    assert is_false(Relation(RED_CIRCLE, "in front of", BLUE_SQUARE), scene(back, front))
    assert is_true(Relation(BLUE_SQUARE, "in front of", RED_CIRCLE), scene(back, front))
    cover = thing("square", "green", 0.52, 0.5, z=9, size=0.4)  # hides where they meet
    assert judge(Relation(RED_CIRCLE, "behind", BLUE_SQUARE), scene(back, front, cover)) is None
    ring_hole = scene(thing("ring", "red", 0.5, 0.5, z=1, size=0.5), thing("square", "blue", 0.5, 0.5, z=0, size=0.1))
    assert judge(Relation(What(shape="ring"), "in front of", BLUE_SQUARE), ring_hole) is None


def test_sizes_between_small_and_large_are_open() -> None:
    middling = scene(thing("circle", "red", 0.5, 0.5, size=0.23))
    for word in ("small", "large"):
        assert judge(Enumeration((What(shape="circle", size=word),)), middling) is None
        assert judge(Count(What(size=word), 1), middling) is None
        assert judge(Count(What(size=word), 2), middling) is False
    alike = scene(thing("circle", "red", 0.2, 0.5, z=0), thing("square", "blue", 0.8, 0.5, z=1, size=0.22))
    assert judge(Relation(RED_CIRCLE, "smaller than", BLUE_SQUARE), alike) is None


@given(st.lists(whats, min_size=1, max_size=4).map(tuple), scenes)
def test_a_listing_is_a_matching(listed: tuple[What, ...], one: Scene) -> None:
    """Against trying every way to point the mentions at different things."""
    table = [[matches(what, thing) for thing in one.things] for what in listed]
    pointed = any(
        all(table[row][column] is True for row, column in enumerate(way))
        for way in permutations(range(len(one.things)), len(listed))
    )
    if pointed:
        assert judge(Enumeration(listed), one) is True
    elif any(all(truth is False for truth in row) for row in table):
        assert judge(Enumeration(listed), one) is False
    else:
        assert judge(Enumeration(listed), one) is None


@given(meanings, scenes)
def test_negation_and_conjunction_agree_with_their_parts(meaning: object, one: Scene) -> None:
    truth = judge(meaning, one)  # pyright: ignore[reportArgumentType]
    both = And((meaning, Not(meaning)))  # pyright: ignore[reportArgumentType]
    assert judge(Not(meaning), one) is (None if truth is None else not truth)  # pyright: ignore[reportArgumentType]
    assert judge(both, one) is (None if truth is None else False)
    assert not (is_true(meaning, one) and is_false(meaning, one))  # pyright: ignore[reportArgumentType]


@given(scenes, whats, whats, st.sampled_from(RELATIONS))
def test_a_relation_is_its_inverse_read_backwards(one: Scene, a: What, b: What, name: str) -> None:
    there = judge(Relation(a, name, b), one)  # pyright: ignore[reportArgumentType]
    back = judge(Relation(b, INVERSE[name], a), one)  # pyright: ignore[reportArgumentType]
    assert there is back


@given(scenes)
def test_a_thing_has_at_most_one_place(one: Scene) -> None:
    for each in one.things:
        truths = [stands(each, where) for where in WHERES]
        assert truths.count(True) <= 1
        if True in truths:
            assert truths.count(None) == 0  # whoever has a plain place plainly lacks the others


@given(st.floats(-1, 1), st.floats(-1, 1))
def test_a_plain_direction_excludes_the_others(dx: float, dy: float) -> None:
    truths = {direction: toward(dx, dy, direction) for direction in DIRECTIONS}
    if True in truths.values():
        assert sorted(truths.values(), key=str) == [False, False, False, True]
    for a, b in (("left", "right"), ("above", "below")):
        assert truths[a] is toward(-dx, -dy, b)  # pyright: ignore[reportArgumentType]


@settings(max_examples=40)
@given(st.lists(st.sampled_from((True, False, None)), max_size=4))
def test_kleene(truths: list[bool | None]) -> None:
    """What is certain is what every way to settle the open ones agrees on."""
    ways = [way for way in product(*([(True, False) if t is None else (t,) for t in truths]))]
    for together, function in ((any, any_of), (all, all_of)):
        outcomes = {together(way) for way in ways}
        assert function(truths) is (outcomes.pop() if len(outcomes) == 1 else None)
    assert [negate(t) for t in (True, False, None)] == [False, True, None]


def test_impossible_scenes_are_refused() -> None:
    with pytest.raises(SceneError, match="its own z"):
        scene(thing("circle", "red", 0.2, 0.5), thing("square", "blue", 0.8, 0.5))
    with pytest.raises(SceneError, match="shape must be one of .* got 'hexagon'"):
        thing("hexagon", "red", 0.5, 0.5)
    with pytest.raises(SceneError, match="size must be"):
        thing("circle", "red", 0.5, 0.5, size=0.0)
