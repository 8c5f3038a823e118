"""The taught head: its mix, its scores, and what it says of itself."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from model_store.discriminant import fit_gaussians
from model_store.towers import activated
from service.faults import LabelSetFailed
from service.teaching.examples import ExampleVectors
from service.teaching.fitting import fit_examples
from service.teaching.head import LEAST_FOR_SIGMOID, MIXES, UNTESTED_MIX, USUAL_MIX, Judgement, teach
from service.teaching.report import report_of, wilson

F32, I64 = NDArray[np.float32], NDArray[np.int64]
SCALE = 30.0


def unit(rows: NDArray[np.floating]) -> F32:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def clusters(seed: int, sizes: list[int], *, dim: int = 24, noise: float = 0.2) -> tuple[F32, I64, F32]:
    """(vectors, truth, unit centres): what the labels' texts would be if they were right."""
    rng = np.random.default_rng(seed)
    centres = unit(rng.normal(size=(len(sizes), dim)))
    truth = np.repeat(np.arange(len(sizes)), sizes)
    return unit(centres[truth] + noise * rng.normal(size=(len(truth), dim))), truth, centres


def names(count: int) -> list[str]:
    return [f"label {index}" for index in range(count)]


def test_texts_that_are_wrong_are_outvoted_and_right_ones_kept() -> None:
    vectors, truth, centres = clusters(0, [8] * 4)
    wrong, judged = teach(names(4), vectors, truth, texts=np.roll(centres, 1, axis=0), scale=SCALE)
    assert judged.mix > USUAL_MIX
    assert (judged.predicted == truth).mean() > 0.9
    assert not (judged.zero_shot == truth).any()
    fresh, expected, _ = clusters(0, [50] * 4)
    assert (wrong.logits(fresh).argmax(axis=1) == expected).mean() > 0.9
    rng = np.random.default_rng(1)
    _, judged = teach(names(4), unit(rng.normal(size=(32, 24))), truth, texts=centres, scale=SCALE)
    assert judged.mix <= USUAL_MIX, "examples that say nothing do not outvote the texts"


def test_logits_are_zero_shot_plus_the_mix() -> None:
    """The share of the fitted part is the mix: twice it is twice as far from zero-shot."""
    vectors, truth, centres = clusters(2, [5] * 3)
    head, judged = teach(names(3), vectors, truth, texts=centres, scale=SCALE)
    by_texts = SCALE * vectors @ centres.T
    weight, bias = fit_gaussians(vectors, truth, classes=3).linear()
    expected = by_texts + judged.mix * (vectors @ weight + bias)
    np.testing.assert_allclose(head.logits(vectors), expected, rtol=1e-3, atol=1e-3)


def test_nothing_that_can_be_left_out() -> None:
    vectors, truth, centres = clusters(3, [1] * 4)
    head, judged = teach(names(4), vectors, truth, texts=centres, scale=SCALE)
    assert judged.mix == UNTESTED_MIX
    assert not judged.tested.any()
    assert (judged.predicted == -1).all()
    assert (head.temperature, head.sigmoid) == (1.0, None)
    report = report_of(names(4), truth, judged)
    assert report.leave_one_out is None
    assert "one example of 'label 0'" in report.warnings[0]


def test_without_texts_the_examples_decide() -> None:
    vectors, truth, _ = clusters(4, [6] * 3)
    head, judged = teach(names(3), vectors, truth, texts=None, scale=SCALE)
    assert judged.mix == 1.0
    assert (judged.zero_shot == -1).all()
    assert (head.logits(vectors).argmax(axis=1) == truth).all()
    report = report_of(names(3), truth, judged)
    assert report.leave_one_out
    assert report.leave_one_out.zero_shot is None


def test_a_label_without_an_example_is_known_by_its_words() -> None:
    vectors, truth, centres = clusters(5, [6, 6, 6])
    shown = truth < 2
    for mixed_up in (False, True):
        texts = centres[[1, 0, 2]] if mixed_up else centres
        head, judged = teach(names(3), vectors[shown], truth[shown], texts=texts, scale=SCALE)
        assert (head.logits(vectors[~shown]).argmax(axis=1) == 2).all()
        assert (head.logits(vectors[shown]).argmax(axis=1) == truth[shown]).all()
        assert (judged.predicted == truth[shown]).all()
        np.testing.assert_allclose(head.scores(head.logits(vectors), None).sum(axis=1), 1)
        assert head.sigmoid is None
    assert "no example of 'label 2'" in report_of(names(3), truth[shown], judged).warnings[0]


def test_a_label_that_nothing_speaks_for_comes_last() -> None:
    vectors, truth, _ = clusters(5, [6, 6, 6])
    shown = truth < 2
    head, _ = teach(names(3), vectors[shown], truth[shown], texts=None, scale=SCALE)
    assert (head.logits(vectors).argmin(axis=1) == 2).all()
    assert np.isfinite(head.logits(vectors)).all()


def test_words_that_the_model_does_not_know_neither_help_nor_harm() -> None:
    """The text of label 0 has no direction; with cosines above 0 throughout, zeros would put it last."""
    vectors, truth, centres = clusters(11, [6, 6, 6])
    shift = unit(np.ones((1, 24)))
    vectors, centres = unit(vectors + 2 * shift), unit(centres + 2 * shift)
    texts = centres.copy()
    texts[0] = 0
    head, judged = teach(names(3), vectors, truth, texts=texts, scale=SCALE)
    assert (judged.predicted[:6] == 0).all()
    assert (judged.predicted == truth).mean() > 0.9
    assert (head.logits(vectors).argmax(axis=1) == truth).all()


def test_one_example_beside_words_that_are_not_known() -> None:
    vectors, truth, centres = clusters(13, [1, 1, 1], noise=0.05)
    shift = unit(np.ones((1, 24)))
    texts = unit(centres + 2 * shift)
    texts[0] = 0
    head, _ = teach(names(3), unit(vectors + 2 * shift), truth, texts=texts, scale=SCALE)
    shown = SCALE * unit(vectors + 2 * shift) @ texts.T
    assert (shown[:, 1:] > 5).all(), "a text of zeros would lose against any of these"
    logits = head.logits(unit(vectors + 2 * shift))
    assert (logits[:, 0] > shown[:, 1:].min(axis=1) - 2).all()


def test_a_curve_that_falls_is_none() -> None:
    """Labels at random: leave-one-out is below chance, and a falling sigmoid would turn the order round."""
    for seed in range(12):
        rng = np.random.default_rng(seed)
        vectors, truth = unit(rng.normal(size=(20, 16))), np.repeat([0, 1], 10)
        head, _ = teach(names(2), vectors, truth, texts=None, scale=SCALE)
        if head.sigmoid is not None:
            logits = head.logits(vectors)
            assert (head.scores(logits, "sigmoid").argmax(axis=1) == logits.argmax(axis=1)).all()


def test_few_examples_that_are_right_do_not_make_it_certain() -> None:
    vectors, truth, centres = clusters(12, [3, 3], noise=0.05)
    head, judged = teach(names(2), vectors, truth, texts=np.roll(centres, 1, axis=0), scale=SCALE)
    assert (judged.predicted == truth).all()
    assert head.scores(head.logits(vectors), None).max() < 0.99


def test_scores() -> None:
    vectors, truth, centres = clusters(6, [8] * 4, noise=0.6)
    head, judged = teach(names(4), vectors, truth, texts=centres, scale=SCALE)
    logits = head.logits(vectors)
    np.testing.assert_allclose(head.scores(logits, None).sum(axis=1), 1)
    np.testing.assert_array_equal(head.scores(logits, "none"), logits)
    probable = head.scores(logits, "sigmoid")
    assert ((probable > 0) & (probable < 1)).all()
    assert (np.diff(probable.ravel()[np.argsort(logits.ravel())]) >= 0).all(), "it grows with the logit"
    assert probable.sum(axis=1).mean() == pytest.approx(1, abs=0.25), "one label of four fits each picture"
    assert head.temperature >= 1
    np.testing.assert_allclose(head.scores(logits, None), activated(logits / head.temperature, "softmax"))
    few, _ = teach(names(4), *(each[: LEAST_FOR_SIGMOID - 1] for each in (vectors, truth)), texts=centres, scale=SCALE)
    assert few.sigmoid is None
    with pytest.raises(ValueError, match="no calibrated sigmoid"):
        few.scores(logits, "sigmoid")


def test_the_temperature_flattens_what_is_overconfident() -> None:
    """Labels at random: no temperature makes them right, and the likeliest says so."""
    vectors, truth, centres = clusters(7, [10] * 4)
    truth = np.random.default_rng(0).permutation(truth)
    head, _ = teach(names(4), vectors, truth, texts=centres, scale=SCALE)
    assert head.scores(head.logits(vectors), None).max(axis=1).mean() < 0.5


def test_equally_good_mixes_go_to_the_usual_one() -> None:
    vectors, truth, centres = clusters(8, [8] * 3, noise=0.05)
    _, judged = teach(names(3), vectors, truth, texts=centres, scale=SCALE)
    assert (judged.predicted == truth).all()
    assert judged.mix == USUAL_MIX
    assert USUAL_MIX in MIXES


def test_labels_that_are_one_class_are_named() -> None:
    vectors, truth, centres = clusters(9, [10, 10, 10])
    rng = np.random.default_rng(0)
    same = unit(centres[:1] + 0.3 * rng.normal(size=(20, 24)))
    vectors = np.concatenate([same, vectors[20:]])
    _, judged = teach(names(3), vectors, truth, texts=None, scale=SCALE)
    report = report_of(names(3), truth, judged)
    assert any("'label 0' and 'label 1' are told apart" in each for each in report.warnings)
    assert not any("label 2" in each for each in report.warnings)
    assert report.leave_one_out
    assert report.leave_one_out.accuracy < 0.9
    counted = sum(each.count for each in report.confused)
    assert counted == (judged.predicted != truth).sum()
    assert report.confused[0].count == max(each.count for each in report.confused)


def test_labels_that_are_mixed_up_now_and_then_are_told_apart() -> None:
    """Two of forty wrong is a line of `confused`, and no warning."""
    truth = np.repeat([0, 1], 20)
    predicted = np.array([1, *[0] * 19, *[1] * 19, 0])
    judged = Judgement(tested=np.ones(40, dtype=np.bool_), predicted=predicted, zero_shot=predicted, mix=0.05)
    report = report_of(["a", "b"], truth, judged)
    assert [(each.label, each.taken_for, each.count) for each in report.confused] == [("a", "b", 1), ("b", "a", 1)]
    assert report.warnings == []


@pytest.mark.parametrize(
    ("right", "count", "expected"), [(0, 10, (0.0, 0.2775)), (5, 10, (0.2366, 0.7634)), (10, 10, (0.7225, 1.0))]
)
def test_wilsons_interval(right: int, count: int, expected: tuple[float, float]) -> None:
    """The published table's values for 95 %."""
    assert wilson(right, count) == pytest.approx(expected, abs=2e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_examples_of_one_label_change_nothing_or_fail() -> None:
    vectors, _, centres = clusters(10, [4, 4])
    examples = ExampleVectors(tuple("abcd"), ("label 0",) * 4, vectors[:4])
    head, report = fit_examples(names(2), examples, centres, scale=SCALE)
    assert head is None
    assert "the words alone decide" in report.warnings[0]
    with pytest.raises(LabelSetFailed, match="two classes"):
        fit_examples(names(2), examples, None, scale=SCALE)
