"""Tip-Adapter: zero-shot itself at alpha 0, the one-hot of its own keys, and classes that are added by their rows."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.few_shots import drawn
from training.method import create
from training.methods.parts.cache_heads import CacheHead, cache_of
from training.methods.parts.class_heads import LinearHead, read

pytestmark = pytest.mark.torch


def test_alpha_0_is_zero_shot_to_the_bit() -> None:
    problem = drawn()
    cache = cache_of(problem.zero_shot, problem.shots, problem.truth)
    expected = problem.zero_shot(problem.unseen)
    for beta in (0.5, 50.0):
        assert (cache.at((0.0, beta))(problem.unseen) == expected).all()
        assert np.abs(cache.at((5e3, beta))(problem.unseen) - expected).max() > 1


def test_logits_are_the_papers_with_the_mean_in_place_of_the_sum() -> None:
    problem = drawn(sizes=(1, 2, 5))
    head = cache_of(problem.zero_shot, problem.shots, problem.truth).at((7.0, 3.0))
    expected = problem.zero_shot(problem.unseen).astype(np.float64)
    for label in range(3):
        nearness = problem.unseen.astype(np.float64) @ problem.shots[problem.truth == label].T
        expected[:, label] += 7 * np.exp(-3 * (1 - nearness)).mean(axis=1)
    np.testing.assert_allclose(head(problem.unseen), expected, atol=1e-4)
    with torch.inference_mode():
        np.testing.assert_allclose(head.module()(torch.from_numpy(problem.unseen)).numpy(), expected, atol=1e-4)


def test_on_its_own_key_it_returns_the_one_hot_where_beta_is_large() -> None:
    problem = drawn(sizes=(1, 1, 2))
    silent = LinearHead(weight=np.zeros_like(problem.zero_shot.weight), bias=np.zeros(3, dtype=np.float32))
    head = cache_of(silent, problem.shots, problem.truth).at((1.0, 1e4))
    one_hot = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0.5], [0, 0, 0.5]])
    np.testing.assert_allclose(head(problem.shots), one_hot, atol=5e-3)


def test_a_class_with_more_shots_is_not_ahead_for_it() -> None:
    problem = drawn()
    twice = np.concatenate([np.arange(len(problem.truth)), np.flatnonzero(problem.truth == 0)])
    one = cache_of(problem.zero_shot, problem.shots, problem.truth)
    more = cache_of(problem.zero_shot, problem.shots[twice], problem.truth[twice])
    assert len(more.keys) > len(one.keys)
    np.testing.assert_allclose(more(problem.unseen), one(problem.unseen), atol=1e-5)


def test_a_class_is_added_by_appending_its_rows() -> None:
    problem = drawn()
    old, zero_shot = problem.truth < 4, problem.zero_shot
    fewer = LinearHead(weight=np.ascontiguousarray(zero_shot.weight[:, :4]), bias=zero_shot.bias[:4])
    before = cache_of(fewer, problem.shots[old], problem.truth[old]).at((7.0, 3.0))
    after = cache_of(zero_shot, problem.shots, problem.truth).at((7.0, 3.0))
    # The other classes keep their logits, and fitting again gives the appended arrays to the bit.
    np.testing.assert_allclose(after(problem.unseen)[:, :4], before(problem.unseen), atol=1e-5)
    added, each = problem.shots[~old], np.float32(7) * np.float32(1 / 6)
    assert (after.keys == np.vstack([before.keys, added])).all()
    values = np.zeros_like(after.values)
    values[: len(before.keys), :4], values[len(before.keys) :, 4] = before.values, each
    assert (after.values == values).all()


@pytest.mark.parametrize("seed", range(3))
def test_labels_at_random_gain_nothing(seed: int) -> None:
    problem = drawn(seed=seed)
    method = problem.of(create("tip_adapter", {"label": "x"}))
    head, tried = method.choose(problem.shots, problem.truth, problem.validation, problem.expected)
    assert problem.gain(head) > 0.1
    assert tried["alpha"] > 0
    mixed = np.random.default_rng(seed).permutation(problem.truth)
    head, tried = method.choose(problem.shots, mixed, problem.validation, problem.expected)
    assert tried["alpha"] == 0 or problem.gain(head) < 0.02


def test_knobs_are_the_best_on_validation_and_of_equals_the_smallest() -> None:
    problem = drawn()
    given = {"label": "x", "alpha": [30.0, 0.0, 3.0], "beta": [5.0, 1.0]}
    method = problem.of(create("tip_adapter", given))
    head, tried = method.choose(problem.shots, problem.truth, problem.validation, problem.expected)
    found: dict[tuple[float, float], float] = {}
    for alpha, beta in product((0.0, 3.0, 30.0), (1.0, 5.0)):
        logits = problem.zero_shot(problem.validation).astype(np.float64)
        near = np.exp(-beta * (1 - problem.validation @ problem.shots.T))
        logits += alpha * near @ (np.eye(5)[problem.truth] / 6)
        found[alpha, beta] = float((logits.argmax(axis=1) == problem.expected).mean())
    assert (tried["alpha"], tried["beta"]) == max(found, key=lambda knobs: found[knobs])  # in order, so the smallest
    told = {float(alpha): share for alpha, share in tried["accuracy_by_alpha"].items()}
    assert told == {alpha: max(found[alpha, 1.0], found[alpha, 5.0]) for alpha in (0.0, 3.0, 30.0)}
    assert isinstance(head, CacheHead)
    assert head.beta == np.float32(tried["beta"])
    # Validation that zero-shot gets right: every alpha and beta are equals.
    sure = problem.zero_shot(problem.validation).argmax(axis=1)
    easy = problem.of(create("tip_adapter", {**given, "alpha": [1e-6, 0.0]}))
    _, tried = easy.choose(problem.shots, problem.truth, problem.validation, sure)
    assert (tried["alpha"], tried["beta"]) == (0.0, 1.0)


def test_a_stored_head_is_opened_as_what_it_is() -> None:
    problem = drawn()
    head = cache_of(problem.zero_shot, problem.shots, problem.truth).at((7.0, 3.0))
    again = read([LinearHead, CacheHead], head.arrays(), labels="abcde")
    assert isinstance(again, CacheHead)
    assert (again(problem.unseen) == head(problem.unseen)).all()
    with pytest.raises(ValueError, match=r"\['beta', 'bias', 'keys', 'values', 'weight'\] are none of LinearHead"):
        read([LinearHead], head.arrays(), labels="abcde")
    with pytest.raises(ValueError, match="none of CacheHead"):
        read([CacheHead], problem.zero_shot.arrays(), labels="abcde")
    with pytest.raises(ValueError, match="4 labels differ"):
        read([CacheHead], head.arrays(), labels="abcd")
    with pytest.raises(ValueError, match="keys, values and beta have shapes"):
        replace(head, keys=head.keys[1:])


@pytest.mark.parametrize(
    ("options", "said"),
    [({}, "label"), ({"label": "x", "alpha": []}, "grid"), ({"label": "x", "alpha": [-1.0]}, "grid"),
     ({"label": "x", "beta": [0.0]}, "beta"), ({"label": "x", "betas": [1.0]}, "is beta meant")],
)  # fmt: skip
def test_wrong_options_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"(?s)method_options of tip_adapter:.*{said}"):
        create("tip_adapter", options)
