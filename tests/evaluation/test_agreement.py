"""Agreement of a student with its teacher, by hand and by brute force."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.agreement import centred_distance, found_across, overlap, picture_agreement
from evaluation.metrics import normalize

RNG = np.random.default_rng(0)
TEACHER = normalize(RNG.normal(size=(40, 12)) + 2)  # all vectors share a large mean, as real ones do
STUDENT = normalize(TEACHER + RNG.normal(size=(40, 12)) * 0.1)


def test_a_student_that_is_its_teacher() -> None:
    found = picture_agreement(TEACHER, TEACHER)
    assert found == pytest.approx({"found_across": 1, "cosine": 1, "centred_distance": 0, "overlap_10": 1}, abs=1e-6)


def test_what_all_vectors_share_does_not_count() -> None:
    constant = np.tile(TEACHER.mean(axis=0), (40, 1)).astype(np.float32)
    assert (normalize(constant) * TEACHER).sum(axis=1).mean() > 0.8  # a cosine would call it near
    assert centred_distance(constant, TEACHER) == pytest.approx(1)
    assert found_across(normalize(constant), TEACHER) < 0.1
    moved = TEACHER + np.float32(0.3)
    assert centred_distance(moved, TEACHER) == pytest.approx(0, abs=1e-6)


def test_overlap_is_brute_force() -> None:
    scores = STUDENT @ STUDENT.T, TEACHER @ TEACHER.T
    expected = [
        len({*np.argsort(-own)[:7].tolist()} & {*np.argsort(-its)[:7].tolist()}) / 7
        for own, its in zip(*scores, strict=True)
    ]
    assert overlap(*scores, k=7) == pytest.approx(np.mean(expected))
    assert 0.3 < overlap(*scores, k=7) < 1


def test_found_across_looks_both_ways_and_a_tie_is_a_miss() -> None:
    scores = STUDENT.astype(np.float64) @ TEACHER.T
    ways = (scores.argmax(axis=1) == np.arange(40)).mean(), (scores.argmax(axis=0) == np.arange(40)).mean()
    assert found_across(STUDENT, TEACHER) == pytest.approx(np.mean(ways))
    assert ways[0] != ways[1]
    twice = np.concatenate([TEACHER[:1], TEACHER[:1], TEACHER[2:]])
    assert found_across(twice, twice) == pytest.approx(38 / 40)
