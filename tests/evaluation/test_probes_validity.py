"""The rules that make a probe valid, asked of every probe of the quick suite."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import pytest

from evaluation.probes import (
    adverse,
    binding,
    corruption,
    count,
    few_shot,
    image_to_image,
    mention_bias,
    multi_label,
    negation,
    order,
    place,
    quads,
    relation,
    replace_add,
    size_bias,
    spurious,
)
from evaluation.probes.pictures import Picture
from evaluation.probes.pool import QUICK, Pool
from evaluation.probes.questions import Probe, Quiz, credit
from evaluation.probes.ranking import average_precision
from evaluation.probes.readers import BagReader, Reader, Sentence, TruthReader
from evaluation.probes.rows import F64
from evaluation.scenes.config import SceneConfig, all_pairs
from evaluation.scenes.dice import Dice
from evaluation.scenes.meaning import And, Not, is_false, is_true
from evaluation.scenes.splits import split

BUILDERS = {
    module.__name__.rpartition(".")[2]: module.build
    for module in (
        adverse, binding, corruption, count, few_shot, image_to_image, mention_bias, multi_label,
        negation, order, place, quads, relation, replace_add, size_bias, spurious,
    )
}  # fmt: skip
# Whose wrong captions are right for other pictures of the same row, each as often as any other.
BALANCED = ("adverse", "binding", "corruption", "count", "place", "relation", "replace_add", "spurious")
# Where a bag of words knows nothing: (probe, row).
BAG_AT_CHANCE = [
    ("binding", "colours swapped"),
    ("place", "four places"),
    ("place", "opposite places"),
    ("relation", "things exchanged"),
    ("relation", "opposite relation"),
    ("relation", "four relations"),
    ("relation", "four relations, pair"),
    ("relation", "four relations, set"),
    ("order", "four shuffles"),
    ("replace_add", "replace relation"),
    ("quads", "colours, text"),
    ("quads", "colours, image"),
    ("quads", "colours, group"),
    ("quads", "places, text"),
    ("quads", "places, image"),
    ("quads", "places, group"),
    ("count", "one more or less"),
    ("count", "ten numbers"),
    ("negation", "is or is no"),
    ("multi_label", "mAP, there is less there is no"),
]


@pytest.fixture(scope="module")
def probes() -> dict[str, Probe]:
    pool = Pool(QUICK)
    return {name: build(pool) for name, build in BUILDERS.items()}


def quiz_of(probe: Probe) -> Quiz:
    """The questions of a probe that has some."""
    found = getattr(probe, "quiz", probe)
    assert isinstance(found, Quiz)
    return found


def values(probe: Probe, reader: Reader) -> dict[str, float]:
    return {row.name: row.value for row in probe.measure(reader)}


@pytest.mark.parametrize("name", BUILDERS)
def test_whoever_knows_the_truth_is_right_everywhere_and_has_no_bias(probes: dict[str, Probe], name: str) -> None:
    for row in probes[name].measure(TruthReader()):
        if row.better == "more":
            assert row.value == pytest.approx(1), row.name
        elif row.better == "at chance":
            assert row.value == pytest.approx(row.chance), row.name
        elif row.unit != "cosine":
            assert row.value == pytest.approx(0), row.name


@pytest.mark.parametrize(("name", "row"), BAG_AT_CHANCE)
def test_a_bag_of_words_is_at_chance_where_words_do_not_tell(probes: dict[str, Probe], name: str, row: str) -> None:
    found = {each.name: each for each in probes[name].measure(BagReader())}[row]
    assert found.value == pytest.approx(found.chance, abs=0.01)


def test_a_bag_of_words_finds_replaced_words(probes: dict[str, Probe]) -> None:
    found = values(probes["replace_add"], BagReader())
    assert [found[row] for row in ("replace object", "replace colour", "replace shape", "add object")] == [1, 1, 1, 1]
    assert set(values(probes["adverse"], BagReader()).values()) == {0, 1}  # the gap is 0, every cell 1


@pytest.mark.parametrize("name", [*BALANCED, "order", "negation"])
def test_right_options_are_plainly_true_and_wrong_ones_plainly_false(probes: dict[str, Probe], name: str) -> None:
    for asked in quiz_of(probes[name]).questions:
        for index, option in enumerate(asked.options):
            if option.meaning is None:
                assert name == "order"
                assert index != asked.answer
            elif index == asked.answer:
                assert is_true(option.meaning, asked.picture.scene), option.text
            else:
                assert is_false(option.meaning, asked.picture.scene), option.text


@pytest.mark.parametrize("name", BALANCED)
def test_every_caption_is_right_as_often_as_luck_would_have_it(probes: dict[str, Probe], name: str) -> None:
    offered: dict[tuple[str, str], int] = Counter()
    right: dict[tuple[str, str], int] = Counter()
    options: dict[str, int] = {}
    for asked in quiz_of(probes[name]).questions:
        options[asked.row] = len(asked.options)
        right[asked.row, asked.options[asked.answer].text] += 1
        for option in asked.options:
            offered[asked.row, option.text] += 1
    if name == "adverse":  # a cell holds a quarter of what a square asks; the square as a whole is balanced
        for table in (offered, right):
            whole: Counter[tuple[str, str]] = Counter()
            for (_, text), number in table.items():
                whole["all", text] += number
            table.clear()
            table.update(whole)
        options = {"all": 2}
    assert {key: right[key] * options[key[0]] for key in offered} == offered


@pytest.mark.parametrize("name", [name for name in BALANCED if name != "adverse"])
def test_who_reads_only_the_captions_scores_chance(probes: dict[str, Probe], name: str) -> None:
    """A fixed liking for some texts, the same for every picture."""

    class Liking(TruthReader):
        def scores(self, asked: Sequence[tuple[Picture, Sentence]]) -> F64:
            return np.array([np.random.default_rng(list(text.text.encode())).normal() for _, text in asked])

    quiz = quiz_of(probes[name])
    rows = {asked.row for asked in quiz.questions}
    for row in Quiz.measure(quiz, Liking()):
        if row.name in rows:
            # The captions of an addition form a ring, in which a liking can win a little.
            assert row.value == pytest.approx(row.chance, abs=0.2 if row.name == "add object" else 1e-9), row.name


@pytest.mark.parametrize("name", [*BALANCED, "order", "negation"])
def test_every_slot_holds_the_answer_equally_often(probes: dict[str, Probe], name: str) -> None:
    slots: dict[tuple[str, int], Counter[int]] = defaultdict(Counter)
    for asked in quiz_of(probes[name]).questions:
        slots[asked.row, len(asked.options)][asked.answer] += 1
    for (row, count_of_options), found in slots.items():
        numbers = [found[slot] for slot in range(count_of_options)]
        assert max(numbers) - min(numbers) <= 1, row


def test_shuffles_keep_the_words_and_are_never_another_true_caption() -> None:
    text, reordered = "a picture of a red circle and a blue square", "a picture of a blue square and a red circle"
    found = [order.shuffles(text, {reordered}, Dice("test", seed)) for seed in range(100)]
    assert all(len(set(four)) == 4 for four in found)
    assert not {text, reordered} & {each for four in found for each in four}
    assert {tuple(sorted(each.split())) for four in found for each in four} == {tuple(sorted(text.split()))}


def test_a_negated_caption_is_right_in_half_the_items(probes: dict[str, Probe]) -> None:
    asked = [each for each in quiz_of(probes["negation"]).questions if each.row == negation.YES_NO]
    negated = [isinstance(each.options[each.answer].meaning, Not) for each in asked]
    assert len(asked) == 256
    assert sum(negated) == len(negated) / 2


def test_who_dislikes_the_word_no_gains_nothing(probes: dict[str, Probe]) -> None:
    class Dislike(TruthReader):
        def scores(self, asked: Sequence[tuple[Picture, Sentence]]) -> F64:
            return np.array([0.0 if isinstance(text.meaning, Not | And) else 1.0 for _, text in asked])

    found = values(probes["negation"], Dislike())
    assert found[negation.YES_NO] == 0.5
    assert found["is or is no, absent half"] == 0
    four = [found[f"four options, {kind}"] for kind in ("affirmative", "negative", "hybrid")]
    assert np.mean(four) == pytest.approx(0.25, abs=0.05)


def test_the_three_kinds_of_negation_are_right_equally_often(probes: dict[str, Probe]) -> None:
    rows = Counter(asked.row for asked in quiz_of(probes["negation"]).questions)
    assert rows["four options, affirmative"] == rows["four options, negative"] == rows["four options, hybrid"] == 64


@pytest.mark.parametrize(
    ("scores", "strict", "shared"),
    [((2.0, 1.0, 0.0), 1, 1), ((1.0, 1.0, 0.0), 0, 0.5), ((1.0, 1.0, 1.0), 0, 1 / 3), ((0.0, 1.0, 1.0), 0, 0)],
)
def test_a_tie_is_wrong_for_an_encoder_and_luck_for_a_control(
    scores: tuple[float, ...], strict: float, shared: float
) -> None:
    assert credit(np.array(scores), 0, ties_wrong=True) == strict
    assert credit(np.array(scores), 0, ties_wrong=False) == pytest.approx(shared)


def test_a_difference_of_rounding_is_a_tie() -> None:
    assert credit(np.array([0.5 + 1e-8, 0.5]), 0, ties_wrong=True) == 0


def test_an_open_truth_is_refused() -> None:
    with pytest.raises(ValueError, match="truth is open"):
        credit(np.array([1.0, np.nan]), 0, ties_wrong=False)


def test_average_precision_of_hand_counted_rankings() -> None:
    relevant = np.array([True, False, True, False])
    assert average_precision(np.array([4.0, 3, 2, 1]), relevant) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(np.array([1.0, 2, 3, 4]), relevant) == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert average_precision(np.ones(4), relevant) == 0.5  # a constant gets the prevalence
    assert np.isnan(average_precision(np.ones(4), np.zeros(4, dtype=bool)))


def test_few_shot_halves_share_no_combination_and_no_scene(probes: dict[str, Probe]) -> None:
    probe = probes["few_shot"]
    assert isinstance(probe, few_shot.FewShot)
    assert not set(probe.base) & set(probe.new)
    assert {what.shape for what in probe.base} == {what.shape for what in probe.new}
    assert {what.colour for what in probe.base} == {what.colour for what in probe.new}
    shots = {example.picture.scene.background for example in probe.shots}
    assert not shots & {example.picture.scene.background for example in (*probe.base_tests, *probe.new_tests)}


def test_held_out_compositions_can_be_asked_about() -> None:
    heldout = split(SceneConfig()).heldout.pairs
    probe = binding.build(Pool(QUICK, pairs=heldout))
    shown = {(thing.shape, thing.colour) for picture in probe.pictures for thing in picture.scene.things}
    assert shown <= set(heldout) < set(all_pairs())
    assert values(probe, TruthReader()) == {"colours swapped": 1.0}


def test_another_seed_draws_other_scenes_and_the_same_seed_the_same() -> None:
    first, again, other = (binding.build(Pool(QUICK, seed=seed)) for seed in (0, 0, 1))
    assert first.questions == again.questions
    assert not set(first.pictures) & set(other.pictures)
