"""Metrics against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from evaluation.metrics import class_mean_accuracy, first_hit_rank, majority_share, mean_estimate, normalize
from evaluation.retrieval import retrieval, title_ids
from evaluation.zero_shot import class_matrix, zero_shot


def test_rank_counts_wrong_candidates_before_the_best_right_one() -> None:
    scores = np.array([[0.9, 0.5, 0.7, 0.1]])
    assert first_hit_rank(scores, np.array([[False, True, False, False]])).tolist() == [2]
    assert first_hit_rank(scores, np.array([[False, True, True, False]])).tolist() == [1]


def test_a_constant_model_has_no_recall() -> None:
    ranks = first_hit_rank(np.zeros((4, 4)), np.eye(4, dtype=bool))
    assert ranks.tolist() == [3, 3, 3, 3]


def test_rank_refuses_a_query_without_an_answer() -> None:
    with pytest.raises(ValueError, match="query 1 has no relevant"):
        first_hit_rank(np.zeros((2, 2)), np.array([[True, False], [False, False]]))


def test_normalize_keeps_zero_rows_finite() -> None:
    np.testing.assert_allclose(normalize(np.array([[3.0, 4.0], [0.0, 0.0]])), [[0.6, 0.8], [0.0, 0.0]])


def test_class_mean_weighs_classes_equally() -> None:
    truth, predicted = np.array([0, 0, 0, 1]), np.array([0, 0, 0, 0])
    assert class_mean_accuracy(predicted, truth) == 0.5
    assert majority_share(truth) == 0.75


def test_the_interval_of_a_mean_is_wilsons_and_repeats() -> None:
    outcomes = np.random.default_rng(1).random(400) < 0.3
    found = mean_estimate(outcomes)
    assert found.value == outcomes.mean()
    known = stats.binomtest(int(outcomes.sum()), 400).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=5e-4)
    assert found == mean_estimate(outcomes)
    twins = mean_estimate(np.repeat(outcomes, 4), groups=np.repeat(np.arange(400), 4))
    assert (twins.low, twins.high) == pytest.approx((found.low, found.high))
    assert twins.n == 1600


def test_no_hit_and_no_miss_leave_the_interval_open() -> None:
    none, every = mean_estimate(np.zeros(40)), mean_estimate(np.ones(40))
    assert (none.low, every.high) == (0, 1)
    assert [none.high, 1 - every.low] == pytest.approx([stats.binomtest(0, 40).proportion_ci(method="wilson").high] * 2)


def test_classes_that_fit_alike_are_no_answer() -> None:
    report = zero_shot(np.ones((3, 2)), np.array([0, 0, 1]), np.full((2, 2), 0.5**0.5, dtype=np.float32))
    assert (report.accuracy.value, report.class_mean) == (0, 0)


def test_equal_titles_are_hits_whatever_their_case() -> None:
    titles = ["Red Shoe", "red shoe", "Blue Cap"]
    assert title_ids(titles).tolist() == [0, 0, 1]
    # Text 0 points at image 1 and text 1 at image 0: both carry the same title, so both are hits.
    images = np.array([[1.0, 0.1, 0], [0.1, 1.0, 0], [0, 0, 1.0]])
    texts = np.array([[0.0, 1.0, 0], [1.0, 0.0, 0], [0, 0, 1.0]])
    report = retrieval(images, texts, titles)
    assert report["t2i_r@1"].value == 1.0
    assert report["chance_t2i_r@1"].value == pytest.approx((2 / 3 + 2 / 3 + 1 / 3) / 3)
    different = retrieval(images, texts, ["a", "b", "c"])
    assert different["t2i_r@1"].value == pytest.approx(1 / 3)


def test_retrieval_queries_restrict_who_asks_but_not_who_answers() -> None:
    vectors = np.eye(3)
    vectors[2] = vectors[0]
    report = retrieval(vectors, np.eye(3), ["a", "b", "c"], queries=np.array([True, False, False]))
    assert report["t2i_r@1"].n == 1
    assert report["t2i_r@1"].value == 0.0  # image 2 ties with image 0 although row 2 does not ask


def test_zero_shot_by_hand() -> None:
    vectors = {"a red": [2.0, 0], "red": [1.0, 0], "a blue": [0, 5.0], "blue": [0, 1.0]}
    classes = class_matrix(lambda texts: np.array([vectors[t] for t in texts]), ["red", "blue"], ["{}", "a {}"])
    np.testing.assert_allclose(classes, np.eye(2))
    report = zero_shot(np.array([[9.0, 1], [1, 2], [3, 1]]), np.array([0, 0, 0]), classes)
    assert report.accuracy.value == pytest.approx(2 / 3)
    assert (report.majority, report.chance) == (1.0, 0.5)


def test_class_vectors_weigh_templates_equally() -> None:
    vectors = {"x": [100.0, 0], "a x": [0, 1.0]}
    classes = class_matrix(lambda texts: np.array([vectors[t] for t in texts]), ["x"], ["{}", "a {}"])
    np.testing.assert_allclose(classes, [[0.5**0.5, 0.5**0.5]])


def test_template_without_a_slot_is_refused() -> None:
    with pytest.raises(ValueError, match="exactly one"):
        class_matrix(lambda texts: np.ones((len(texts), 2)), ["x"], ["a photo"])


def test_all_captions_of_a_picture_are_its_hits() -> None:
    """Three pictures with two captions each: a picture is one candidate, and either caption is right for it."""
    rng = np.random.default_rng(0)
    pictures, titles = ["a", "a", "b", "b", "c", "c"], ["one", "two", "three", "four", "five", "six"]
    vectors = np.eye(3)[[0, 0, 1, 1, 2, 2]]
    texts = vectors + rng.normal(scale=0.01, size=vectors.shape)
    found = retrieval(vectors, texts, titles, pictures=pictures)
    assert (found["t2i_r@1"].value, found["t2i_r@1"].n) == (1.0, 6)
    assert (found["i2t_r@1"].value, found["i2t_r@1"].n) == (1.0, 3)
    assert found["chance_t2i_r@1"].value == pytest.approx(1 / 3)
    assert found["chance_i2t_r@1"].value == pytest.approx(2 / 6)
    # The second caption of "b" says "c": one text of six finds the wrong picture; pictures still find their first.
    texts[3] = vectors[4]
    found = retrieval(vectors, texts, titles, pictures=pictures)
    assert found["t2i_r@1"].value == pytest.approx(5 / 6)
    assert found["i2t_r@1"].value >= 2 / 3
    # A title that two pictures share is right for both; only "x" asks.
    shared = retrieval(
        vectors,
        texts,
        ["x", "two", "x", "four", "five", "six"],
        pictures=pictures,
        queries=np.array([True, False, True, False, False, False]),
    )
    assert shared["chance_t2i_r@1"].value == pytest.approx(2 / 3)
    # Without names every row is a picture of its own, as before.
    plain, named = (retrieval(vectors, texts, titles, pictures=each) for each in (None, list("abcdef")))
    assert plain == named
