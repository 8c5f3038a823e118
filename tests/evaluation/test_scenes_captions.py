"""Every caption generator against the oracle, and the language itself."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from itertools import permutations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from evaluation.scenes import contrasts
from evaluation.scenes.captions import attributes, counts, grounds, mention, mentions, name_of, places, relations
from evaluation.scenes.config import SceneConfig, all_pairs
from evaluation.scenes.frames import FRAMES, WORDS, Family, frames
from evaluation.scenes.meaning import (
    RELATIONS,
    SPATIAL,
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
    place_of,
    spatial_relation,
)
from evaluation.scenes.mixing import DEFAULT_MIX, draw_caption, draw_records, draw_with_negative
from evaluation.scenes.negation import KINDS, absent, exceptions, has, has_no, hybrids, negation_question, negatives
from evaluation.scenes.phrases import Caption, caption, captions, noun, say
from evaluation.scenes.sampling import sample
from evaluation.scenes.scene import Background, Scene, SceneError, Thing
from evaluation.scenes.splits import split

PAIRS = all_pairs()
TWO = SceneConfig(count=(2, 2), decided_pair=True, differ_in=("shape", "colour"))
CONFIGS = [
    SceneConfig(),
    TWO,
    SceneConfig(count=(2, 4), overlap="required"),
    SceneConfig(count=(2, 4), share=("shape",)),
    SceneConfig(count=(3, 10), size=(0.09, 0.12), textures=("plain",), share=("shape", "colour")),
]
scenes = st.builds(sample, st.integers(0, 10**6), st.sampled_from(CONFIGS))
pairs_of_things = st.builds(sample, st.integers(0, 10**6), st.just(TWO))
RED_CIRCLE, BLUE_SQUARE = What(colour="red", shape="circle"), What(colour="blue", shape="square")


def everything(scene: Scene, frame: int) -> list[Caption]:
    said = [*attributes(scene, frame=frame), *places(scene, frame=frame), *relations(scene, RELATIONS, frame=frame)]
    said += [*counts(scene, frame=frame), *grounds(scene, frame=frame), *exceptions(scene)]
    said += exceptions(scene, attribute="colour")
    for words in WORDS:
        said += attributes(scene, frame=frame, words=words)
        for how in ("near", "far"):
            said += negatives(scene, PAIRS[::5], how=how, words=words)
            said += hybrids(scene, PAIRS[::5], how=how, words=words)
    if len(scene.things) <= 3:
        said += mentions(scene, frame=frame)
    return said


@settings(max_examples=60)
@given(scenes, st.integers(0, 6))
def test_every_caption_of_a_scene_is_plainly_true(scene: Scene, frame: int) -> None:
    said = everything(scene, frame)
    assert len(said) > 5
    for one in said:
        assert is_true(one.meaning, scene), one.text
        assert say(one.meaning, one.frame) == one.text


@settings(max_examples=40)
@given(scenes)
def test_nothing_plain_is_left_out(scene: Scene) -> None:
    """Places and directions against the truth of single things, so that a generator cannot be right by being silent."""
    names = [name_of(thing) for thing in scene.things]
    expected = {
        Place(name, where) for name, thing in zip(names, scene.things, strict=True) if (where := place_of(thing))
    }
    assert {one.meaning for one in places(scene)} == expected
    stated = {one.meaning for one in relations(scene)}
    for a, b in permutations(range(len(names)), 2):
        name = spatial_relation(scene, a, b)
        if name is not None and names[a] != names[b]:
            assert Relation(names[a], name, names[b]) in stated
    assert Count(What(), len(scene.things)) in {one.meaning for one in counts(scene)}
    assert len(absent(scene, PAIRS)) == len(PAIRS) - len(set(names))


@settings(max_examples=30)
@given(st.lists(scenes, min_size=2, max_size=4))
def test_one_text_has_one_meaning(several: list[Scene]) -> None:
    """Texts of many scenes: wherever a text occurs, the oracle gives one answer about any scene."""
    meanings: dict[str, set[tuple[bool | None, ...]]] = defaultdict(set)
    for scene in several:
        for one in everything(scene, 0):
            meanings[one.text].add(tuple(judge(one.meaning, other) for other in several))
    assert all(len(answers) == 1 for answers in meanings.values())


def test_texts() -> None:
    star = What(shape="star", texture="striped", colour="orange", size="large")
    assert [one.text for one in captions(Enumeration((RED_CIRCLE, star)))] == [
        "a red circle and a large striped orange star",
        "a picture of a red circle and a large striped orange star",
        "there is a red circle and a large striped orange star",
        "a picture with a red circle and a large striped orange star",
        "a red circle and a large striped orange star in the picture",
    ]
    assert say(Enumeration((What(colour="orange", shape="cross"),))) == "an orange cross"
    assert say(Count(What(shape="cross"), 3)) == "three crosses"
    assert say(Count(RED_CIRCLE, 1), "there {be} {n} {things}") == "there is one red circle"
    assert say(Count(What(colour="red"), 2), "there {be} {n} {things}") == "there are two red shapes"
    assert say(Relation(RED_CIRCLE, "left of", BLUE_SQUARE)) == "a red circle left of a blue square"
    assert say(Place(RED_CIRCLE, "top")) == "a red circle at the top"
    assert say(Not(Place(RED_CIRCLE, "left"))) == "no red circle on the left"
    assert (
        say(has_no(What(colour="orange", shape="star")), "an image without {a_no}") == "an image without an orange star"
    )
    assert say(And((Place(RED_CIRCLE, "left"), Place(BLUE_SQUARE, "right"), Ground("dark")))) == (
        "a red circle on the left and a blue square on the right on a dark background"
    )
    not_striped = What(shape="circle", but_not=What(texture="striped"))
    assert say(Enumeration((not_striped,))) == "a circle that is not striped"
    assert noun(What(colour="red", but_not=What(shape="star"))) == "red shape that is not a star"
    assert noun(not_striped, plural=True) == "circles that are not striped"
    with pytest.raises(ValueError, match="no English here"):
        say(Not(Count(RED_CIRCLE, 2)))
    with pytest.raises(ValueError, match="one to ten, got 11"):
        say(Count(RED_CIRCLE, 11))


def test_held_out_negation_recombines_training_words_and_unseen_words_are_unseen() -> None:
    def words(text: str) -> set[str]:
        return set(re.sub(r"\{\w+\}", "a", text).split())

    training = set().union(*(words(frame) for family in FRAMES.values() for frame in family["train"]))
    negated: tuple[Family, ...] = ("negative", "hybrid")
    in_negations = set().union(*(words(frame) for family in negated for frame in FRAMES[family]["train"]))
    for family in (*negated, "affirmative"):
        sets = [set(frames(family, one)) for one in WORDS]
        varied = set(frames(family, "varied"))
        assert varied > sets[0]
        assert not varied & (sets[1] | sets[2])
        assert set().union(*(words(frame) for frame in varied)) <= training
        assert sum(len(one) for one in sets) == len(set().union(*sets))
        assert all(len(one) >= 3 for one in sets)
        for frame in frames(family, "recombined"):
            assert words(frame) <= training, frame
            assert family == "affirmative" or words(frame) <= in_negations | {"but", "not", "there", "in"}, frame
        for frame in frames(family, "unseen"):
            assert words(frame) - training, frame
    cues = {"no", "not", "but"}
    for family in negated:
        assert not any(words(frame) & cues for frame in frames(family, "unseen"))
    affirmative = set().union(*(words(frame) for frame in FRAMES["affirmative"]["train"]))
    assert in_negations - affirmative - {"and"} <= cues | {"is"}  # no other word gives a negation away


def test_no_held_out_sentence_begins_like_one_of_training() -> None:
    def begins(frame: str) -> tuple[str, ...]:
        return tuple(re.sub(r"\{\w+\}", "*", frame).split()[:3])

    families = list(FRAMES)
    trained = {begins(frame) for family in families for words in ("train", "varied") for frame in frames(family, words)}
    held_out = [
        (family, words, each) for family in families for words in WORDS[1:] for each in FRAMES[family].get(words, ())
    ]
    assert len(trained) > 20
    assert len(held_out) >= 18
    for family, words, frame in held_out:
        found = begins(frame)
        assert not {found[:length] for length in (1, 2, 3)} & trained, (family, words, frame)
    openings = [
        {begins(each) for each in FRAMES[family]["recombined"]} for family in ("affirmative", "negative", "hybrid")
    ]
    assert openings[0] == openings[1] == openings[2]


def test_a_training_run_names_no_held_out_pair() -> None:
    parts = split(SceneConfig())
    held = {f"{colour} {shape}" for shape, colour in parts.heldout.pairs}
    for seed in range(150):
        scene = sample(seed, parts.train)
        twins = draw_with_negative(scene, seed, pairs=parts.train.pairs)
        assert twins is not None
        for text in (twins.right.text, twins.wrong.text):
            assert not any(re.search(rf"\b{name}(e?s)?\b", text) for name in held), text


@settings(max_examples=80)
@given(scenes, st.integers(0, 1000))
def test_twins_are_a_truth_and_a_falsehood(scene: Scene, seed: int) -> None:
    twins = draw_with_negative(scene, seed, pairs=PAIRS)
    assume(twins is not None)
    assert twins is not None
    assert is_true(twins.right.meaning, scene)
    assert is_false(twins.wrong.meaning, scene)
    assert twins.right.text != twins.wrong.text
    assert draw_caption(scene, seed, pairs=PAIRS) == twins.right


@settings(max_examples=40)
@given(pairs_of_things)
def test_swaps_use_the_same_words_for_the_opposite(scene: Scene) -> None:
    listing = mention(scene).meaning
    relation = relations(scene)[0].meaning
    assert isinstance(listing, Enumeration)
    assert isinstance(relation, Relation)
    swapped = [contrasts.swap_attribute(listing, "colour"), contrasts.swap_attribute(listing, "shape")]
    for other, base in (
        *((one, listing) for one in swapped),
        (contrasts.swap_roles(relation), relation),
        (contrasts.swap_relation_attribute(relation, "colour"), relation),
    ):
        assert is_false(other, scene)
        plain = [re.sub(r"\ban\b", "a", say(one)) for one in (other, base)]
        assert Counter(plain[0].split()) == Counter(plain[1].split())
    assert contrasts.swap_attribute(swapped[0], "colour") == listing
    assert is_false(contrasts.invert(relation), scene)
    assert is_true(contrasts.swap_roles(contrasts.invert(relation)), scene)
    truths = [judge(one, scene) for one in contrasts.four_ways(relation)]
    assert sorted(map(str, truths)) == ["False", "False", "False", "True"]


@settings(max_examples=40)
@given(scenes, st.integers(0, 50))
def test_near_misses_differ_and_are_no_synonyms(scene: Scene, seed: int) -> None:
    base = draw_caption(scene, seed, pairs=PAIRS, mix={**DEFAULT_MIX, "depths": 0.2, "sizes": 0.2, "grounds": 0.1})
    misses = contrasts.near_misses(base.meaning, PAIRS)
    assert base.meaning not in misses
    assert len(misses) == len(set(misses))
    for one in contrasts.false_captions(scene, misses):
        assert is_false(one.meaning, scene)
        assert one.text != base.text


def test_swapping_equal_colours_is_no_contrast() -> None:
    alike = Enumeration((What(colour="red", shape="circle"), What(colour="red", shape="square")))
    assert contrasts.swap_attribute(alike, "colour") == alike
    shapes_swapped = contrasts.swap_attribute(alike, "shape")  # another text, but the same truth
    scene = Scene(
        things=(
            Thing(shape="circle", colour="red", size=0.2, x=0.2, y=0.5, z=0),
            Thing(shape="square", colour="red", size=0.2, x=0.8, y=0.5, z=1),
        ),
        background=Background(),
    )
    assert is_true(shapes_swapped, scene)
    assert shapes_swapped not in [
        one.meaning for one in contrasts.false_captions(scene, contrasts.near_misses(alike, PAIRS))
    ]


def test_replace_add_and_recount() -> None:
    listing = Enumeration((RED_CIRCLE, BLUE_SQUARE))
    star = What(colour="green", shape="star")
    assert contrasts.replace_what(listing, 1, star) == Enumeration((RED_CIRCLE, star))
    assert contrasts.replace_attribute(listing, 0, "colour", "pink").whats[0] == What(colour="pink", shape="circle")
    assert contrasts.add(listing, star) == Enumeration((RED_CIRCLE, BLUE_SQUARE, star))
    assert contrasts.add(listing, star, 0) == Enumeration((star, RED_CIRCLE, BLUE_SQUARE))
    assert contrasts.recount(Count(RED_CIRCLE, 2), (1, 2, 3)) == (Count(RED_CIRCLE, 1), Count(RED_CIRCLE, 3))


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("how", ["near", "far"])
@settings(max_examples=15)
@given(scene=pairs_of_things, seed=st.integers(0, 1000), kind=st.sampled_from(KINDS))
def test_a_negation_question_has_one_plain_answer(words: str, how: str, scene: Scene, seed: int, kind: str) -> None:
    question = negation_question(scene, seed, pairs=PAIRS, kind=kind, how=how, words=words)  # pyright: ignore
    assert len({one.text for one in question.options}) == 4
    truths = [judge(one.meaning, scene) for one in question.options]
    assert truths[question.answer] is True
    assert truths.count(False) == 3


def test_the_kinds_of_the_options_do_not_give_the_answer_away() -> None:
    """Blind players that choose by slot, or by how many options of its kind there are, get 25 %."""
    slots, doubled = Counter[int](), Counter[bool]()
    trials = 1800
    for seed in range(trials):
        scene = sample(seed % 60, TWO)
        question = negation_question(scene, seed, pairs=PAIRS, kind=KINDS[seed % 3])
        slots[question.answer] += 1
        kinds = [kind_of(one) for one in question.options]
        doubled[kinds.count(kinds[question.answer]) == 2] += 1
    assert all(abs(slots[slot] / trials - 0.25) < 0.04 for slot in range(4))
    assert abs(doubled[True] / trials - 0.5) < 0.05  # two of the four options are of the doubled kind


def test_negated_captions_are_right_as_often_as_wrong() -> None:
    right, wrong = Counter[str](), Counter[str]()
    for seed in range(900):
        question = negation_question(sample(seed % 60, TWO), seed, pairs=PAIRS, kind=KINDS[seed % 3])
        for index, one in enumerate(question.options):
            (right if index == question.answer else wrong)[kind_of(one)] += 1
    shares = [right[kind] / (right[kind] + wrong[kind]) for kind in KINDS]
    assert all(abs(share - 0.25) < 0.04 for share in shares)


def kind_of(one: Caption) -> str:
    return {Enumeration: "affirmative", Not: "negative", And: "hybrid"}[type(one.meaning)]


def test_questions_need_two_names_and_something_absent() -> None:
    lonely = sample(1, SceneConfig(count=(1, 1)))
    with pytest.raises(SceneError, match="two differently named"):
        negation_question(lonely, 0, pairs=PAIRS, kind="negative")
    present = [(thing.shape, thing.colour) for thing in sample(1, TWO).things]
    with pytest.raises(SceneError, match="an absent one"):
        negation_question(sample(1, TWO), 0, pairs=present, kind="negative")


def test_exceptions_point_at_one_thing() -> None:
    def circle(index: int, texture: str) -> Thing:
        return Thing(shape="circle", colour="red", texture=texture, size=0.2, x=0.2 + 0.3 * index, y=0.5, z=index)

    scene = Scene(things=(circle(0, "striped"), circle(1, "striped"), circle(2, "dotted")), background=Background())
    assert [one.text for one in exceptions(scene)] == ["a circle that is not striped"]
    assert exceptions(scene, attribute="colour") == []


def test_mentions_come_in_every_order() -> None:
    scene = sample(5, SceneConfig(count=(3, 3), distinct_pairs=True))
    texts = [one.text for one in mentions(scene)]
    assert len(set(texts)) == 6
    assert mention(scene, (2, 0)).text == " and ".join(say(has(name_of(scene.things[i]))) for i in (2, 0))
    with pytest.raises(ValueError, match="mentioned once"):
        mention(scene, (0, 0))


def test_records_are_drawn_by_seed() -> None:
    first = list(draw_records(SceneConfig(), range(5), captions=4))
    assert first == list(draw_records(SceneConfig(), range(5), captions=4))
    assert first[3] == next(draw_records(SceneConfig(), [3], captions=4))
    texts = {one.text for record in first for one in record.captions}
    assert len(texts) > 12
    topics = Counter(type(draw_caption(sample(n, TWO), n, pairs=PAIRS).meaning).__name__ for n in range(300))
    assert set(topics) == {"Enumeration", "Place", "Relation", "Count", "Not", "And"}
    with pytest.raises(ValueError, match="no topic of"):
        draw_caption(sample(1, SceneConfig(count=(1, 1))), 0, pairs=PAIRS, mix={"relations": 1.0})


def test_spatial_names_are_a_part_of_all_names() -> None:
    assert set(SPATIAL) < set(RELATIONS)
    assert caption(Ground("dark")).text == "a dark background"
