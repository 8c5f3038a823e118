"""Simple rules that see the texts, or the pictures, alone: what they win, and that balanced questions are not won."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from evaluation.probes import binding, count, image_to_image, multi_label, negation, place, quads, relation, spurious
from evaluation.probes.pool import Pool, PoolSize
from evaluation.probes.priors import TEXT_PRIORS, BestPrior, best_of, best_priors
from evaluation.probes.questions import Probe
from evaluation.probes.readers import BagReader
from evaluation.probes.rows import mean_row

SOME = PoolSize(compass=32, class_groups=2, squares=2, counts=3, additions=6, spoilt=16)


@pytest.fixture(scope="module")
def pool() -> Pool:
    return Pool(SOME)


def beside(probe: Probe) -> dict[str, tuple[float | None, BestPrior | None]]:
    """Chance and the best prior of each row."""
    rows = probe.measure(BagReader())
    return {row.name: (row.chance, prior) for row, prior in zip(rows, best_priors(probe), strict=True)}


def test_each_kind_of_negation_can_be_won_blind_and_all_kinds_together_not(pool: Pool) -> None:
    found = beside(negation.build(pool))
    names: set[str] = set()
    for kind in ("affirmative", "negative", "hybrid"):
        chance, prior = found[f"four options, {kind}"]
        assert chance == 0.25
        assert prior is not None
        assert prior.value > 0.6
        names.add(prior.name)
    assert len(names) == 3  # each by a rule of its own
    for row in (*(f"four options, {words} words" for words in ("train", "recombined", "unseen")), negation.YES_NO):
        chance, prior = found[row]
        assert prior is not None
        assert prior.value == pytest.approx(chance, abs=0.1)
    _, absent = found["is or is no, absent half"]
    assert absent is not None
    assert absent.value == 1


@pytest.mark.parametrize("build", [binding.build, place.build, quads.build])
def test_balanced_questions_are_not_won(pool: Pool, build: Callable[[Pool], Probe]) -> None:
    for name, (chance, prior) in beside(build(pool)).items():
        assert prior is not None
        assert prior.value <= (chance or 0) + 0.02, name


def test_naming_a_middling_number_errs_less_than_luck(pool: Pool) -> None:
    chance, prior = beside(count.build(pool))["mean error"]
    assert chance == pytest.approx(3.3)
    assert prior == BestPrior(name="middling number", value=2.5)


def test_pictures_of_many_things_hold_more_labels(pool: Pool) -> None:
    found = beside(multi_label.build(pool))
    chance, prior = found["mAP, there is"]
    assert prior is not None
    assert chance is not None
    assert prior.value > chance
    assert found["cosine between labels' texts"] == (None, None)


def test_where_nothing_can_be_won_by_a_rule_there_is_none(pool: Pool) -> None:
    assert best_priors(image_to_image.build(pool)) == []
    found = beside(spurious.build(pool))
    assert found["worst of 16 groups"][1] is None
    assert found["skew of neutral queries"][1] is None
    bias = mean_row("bias", [1.0], [0], chance=0.5, better="at chance")
    assert best_of({"a": [bias]}) == [None]
    _, opposite = beside(relation.build(pool))["opposite relation"]
    assert opposite is not None
    assert opposite.value == 0.5


def test_rules_by_hand() -> None:
    texts = ("there is no red circle", "a red circle and a blue square", "a red circle but no star")
    rules = ("short", "long", "denial, short", "denial, long", "no denial")
    assert [texts.index(max(texts, key=TEXT_PRIORS[name])) for name in rules] == [0, 1, 0, 2, 1]
