"""The controls beside few-shot heads: a fitted bias and centred vectors, which are zero-shot at share 0."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evaluation.metrics import normalize
from model_store.towers import activated
from tests.training.few_shots import drawn
from training.few_shot import CONTROLS, head_methods
from training.methods.parts.class_heads import accuracy
from training.methods.parts.controls import fitted_bias, frequency_bias, mean_removed
from training.methods.parts.shots import ShotOptions

pytestmark = pytest.mark.torch


def test_a_fitted_bias_makes_the_classes_as_frequent_as_they_are() -> None:
    problem = drawn(sizes=(2, 9, 4))
    logits = problem.zero_shot(problem.shots)
    bias = fitted_bias(logits, problem.truth)
    answered = activated(logits.astype(np.float64) + bias, "softmax").mean(axis=0)
    np.testing.assert_allclose(answered, np.array([2, 9, 4]) / 15, atol=1e-4)
    assert bias.mean() == pytest.approx(0, abs=1e-9)
    # Whatever was added to the logits of a class before is taken back.
    wrong = np.array([3.0, -2.0, 0.5], dtype=np.float32)
    moved = fitted_bias(logits + wrong, problem.truth)
    np.testing.assert_allclose(moved, bias - (wrong - wrong.mean()), atol=1e-3)


def test_removing_the_mean_answers_as_zero_shot_does_on_centred_vectors() -> None:
    problem = drawn()
    centred = normalize(problem.unseen - problem.shots.mean(axis=0))
    answers = (problem.zero_shot(problem.unseen) + mean_removed(problem.zero_shot, problem.shots)).argmax(axis=1)
    expected = problem.zero_shot(centred).argmax(axis=1)
    assert (answers == expected).all()
    assert (expected != problem.zero_shot(problem.unseen).argmax(axis=1)).any()


def test_frequencies_are_bayes_rule_and_gain_where_judged_pictures_are_as_uneven() -> None:
    pool = np.array([30, 6, 3, 1])
    bias = frequency_bias(pool)
    np.testing.assert_allclose(np.exp(bias) / np.exp(bias).sum(), pool / 40)
    assert bias.mean() == pytest.approx(0, abs=1e-12)
    # The same pictures, of which the rare classes keep a few: likelihoods times frequencies are right more often.
    problem = drawn(sizes=(60, 12, 6, 6, 6), off=2.0)
    kept = (problem.expected == 0) | (np.arange(len(problem.expected)) % 10 == 1)
    seen = (problem.answers == 0) | (np.arange(len(problem.answers)) % 10 == 1)
    control = problem.of(CONTROLS["frequencies"](ShotOptions(label="x")))
    head, tried = control.choose(problem.shots, problem.truth, problem.validation[kept], problem.expected[kept])
    assert tried["share"] > 0
    unseen, answers = problem.unseen[seen], problem.answers[seen]
    assert accuracy(head, unseen, answers) > accuracy(problem.zero_shot, unseen, answers) + 0.02
    even = problem.of(CONTROLS["frequencies"](ShotOptions(label="x")))
    even.pool = np.full(5, 7)
    head, _ = even.choose(problem.shots, problem.truth, problem.validation, problem.expected)
    assert (head(problem.unseen) == problem.zero_shot(problem.unseen)).all()


@pytest.mark.parametrize("name", ["bias", "mean"])
def test_validation_says_how_much_and_nothing_is_zero_shot_to_the_bit(name: str) -> None:
    problem = drawn()
    control = problem.of(CONTROLS[name](ShotOptions(label="x")))
    sure = problem.zero_shot(problem.validation).argmax(axis=1)
    head, tried = control.choose(problem.shots, problem.truth, problem.validation, sure)
    assert (tried["share"], list(tried["accuracy_by_share"])) == (0.0, ["0", "0.25", "0.5", "0.75", "1"])
    assert (head(problem.unseen) == problem.zero_shot(problem.unseen)).all()
    # Every picture leans to one class: that is what both controls take away.
    leaning = problem.leaning(0, by=1.0)
    control = leaning.of(control)
    head, tried = control.choose(leaning.shots, leaning.truth, leaning.validation, leaning.expected)
    assert tried["share"] > 0
    assert leaning.gain(head) > 0.05


def test_heads_are_found_by_what_their_files_define(added: Callable[[str, str], Path]) -> None:
    before = head_methods()
    assert {"clip_adapter", "gda", "linear_probe", "tip_adapter", "tip_adapter_f"} <= set(before)
    assert {"base", "labclip", "negclip"}.isdisjoint(before)
    added("my_head", "from training.methods.gda import GdaMethod\n\n\nclass Mine(GdaMethod):\n    pass\n")
    added("my_other", "from training.methods.gda import GdaMethod\n")
    assert set(head_methods()) - set(before) == {"my_head"}
