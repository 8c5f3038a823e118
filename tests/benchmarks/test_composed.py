"""Parts of the study of composed queries against plain loops, and its page against its record."""

from __future__ import annotations

import json

import numpy as np

from benchmarks import composed_tables
from benchmarks.composed_data import Gallery, QuestionSet, WordPair
from benchmarks.composed_judge import in_pool, outcomes
from benchmarks.composed_lists import mmr
from benchmarks.composed_presence import at_threshold, auroc
from benchmarks.marked import replace_blocks


def test_the_page_says_what_the_record_says() -> None:
    record = json.loads(composed_tables.KEPT.read_text(encoding="utf-8"))
    page = composed_tables.PAGE.read_text(encoding="utf-8")
    blocks = composed_tables.blocks(record)
    assert all(f"<!-- bench:{name} -->" in page for name in blocks)
    assert replace_blocks(page, blocks) == page


def test_ignored_pictures_are_no_part_of_a_ranking() -> None:
    relevant, harmful, ignored = (np.array(each, dtype=bool) for each in ([0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 1, 0]))
    gallery = Gallery("toy", "heldout", ("a", "b", "c", "d"), np.eye(4, dtype=np.float32), {}, {})
    asked = QuestionSet("toy", gallery, (WordPair("p", "n", "n", relevant, harmful, ignored),))
    found = outcomes(np.array([[0.8, 0.7, 0.9, 0.1]]), asked)  # c is ignored; a is harmful, b and d are right
    assert np.isclose(found.ap[0], (1 / 2 + 2 / 3) / 2)


def test_a_pool_is_ranked_again_and_the_rest_stays_behind() -> None:
    first, scores = np.array([[4.0, 3.0, 2.0, 1.0]]), np.array([[0.1, 0.9, 5.0, 9.0]])
    assert np.argsort(-in_pool(first, scores, 2)[0]).tolist() == [1, 0, 2, 3]


def test_mmr_is_the_loop_of_the_paper() -> None:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(12, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    relevance, similar = random.random(12), vectors @ vectors.T
    chosen: list[int] = []
    while len(chosen) < 6:
        left = [i for i in range(12) if i not in chosen]
        worth = {i: 0.6 * relevance[i] - 0.4 * max((similar[i, j] for j in chosen), default=0.0) for i in left}
        chosen.append(max(left, key=lambda i: worth[i]))
    assert mmr(relevance, similar, balance=0.6, top=6) == chosen


def test_auroc_and_the_answer_by_hand() -> None:
    match, none = np.array([0.9, 0.5, 0.4]), np.array([0.4, 0.1])
    assert np.isclose(auroc(match, none), (2 + 2 + 1.5) / 6)
    assert at_threshold(match, none, 0.45) == {
        "threshold": 0.45,
        "precision": 1 / (1 + 1 / 3),
        "recall": 1.0,
        "false": 1 / 3,
    }
