"""Weights of templates from pictures without labels, against a computation in plain loops, and what must not matter."""

import numpy as np
import pytest
from numpy.typing import NDArray

from model_store.label_vectors import label_means
from model_store.template_weights import (
    TemplateScores,
    template_scores,
    template_weights,
    weighted_label_vectors,
)

F32 = NDArray[np.float32]


def units(*shape: int, seed: int = 0) -> F32:
    vectors = np.random.default_rng(seed).normal(size=shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def by_loops(pictures: F32, texts: F32, reference: F32 | None, scale: float) -> list[float]:
    """As the paper writes it: logits, less their expectation, the largest over labels, the mean over pictures."""

    def logits(shown: F32, prompt: F32) -> list[float]:
        return [scale * float(sum(float(a) * float(b) for a, b in zip(row, prompt, strict=True))) for row in shown]

    scores = []
    for template in range(texts.shape[1]):
        normalised = []
        for label in range(len(texts)):
            found = logits(pictures, texts[label, template])
            expected = sum(found) / len(found)
            if reference is not None:
                of_reference = logits(reference, texts[label, template])
                expected = (expected + sum(of_reference) / len(of_reference)) / 2
            normalised.append([each - expected for each in found])
        scores.append(sum(map(max, zip(*normalised, strict=True))) / len(pictures))
    return scores


@pytest.mark.parametrize("has_reference", [False, True])
def test_scores_and_weights_are_those_of_plain_loops(has_reference: bool) -> None:
    pictures, texts = units(11, 8, seed=1), units(4, 5, 8, seed=2)
    reference = units(7, 8, seed=3) if has_reference else None
    expected = by_loops(pictures, texts, reference, 20.0)
    found = template_scores(pictures, texts, reference=reference, scale=20.0)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    powers = [np.exp(each) for each in expected]
    weights = template_weights(found)
    np.testing.assert_allclose(weights, [each / sum(powers) for each in powers], rtol=1e-4)
    mixed = [[sum(w * t for w, t in zip(weights, row[:, d], strict=True)) for d in range(8)] for row in texts]
    lengths = np.sqrt([[sum(each**2 for each in row)] for row in mixed])
    np.testing.assert_allclose(weighted_label_vectors(texts, weights), mixed / lengths, atol=2e-7)


def test_equal_weights_are_the_mean() -> None:
    texts = units(3, 6, 16)
    np.testing.assert_allclose(weighted_label_vectors(texts, np.full(6, 1 / 6)), label_means(texts), atol=2e-7)


def test_orders_do_not_matter_and_equal_templates_weigh_the_same() -> None:
    pictures, texts = units(30, 16, seed=4), units(5, 9, 16, seed=5)
    texts[:, 7] = texts[:, 2]
    scores = template_scores(pictures, texts, scale=30.0)
    weights = template_weights(scores)
    assert weights[7] == weights[2]
    assert weights.sum() == pytest.approx(1)
    rng = np.random.default_rng(6)
    shuffled = template_scores(rng.permutation(pictures), rng.permutation(texts), scale=30.0)
    np.testing.assert_allclose(shuffled, scores, rtol=1e-5)
    order = rng.permutation(9)
    np.testing.assert_allclose(template_scores(pictures, texts[:, order], scale=30.0), scores[order], rtol=1e-5)


@pytest.mark.parametrize("how", ["softmax", "select"])
def test_a_template_of_noise_weighs_little(how: str) -> None:
    """Pictures near the direction of their label; each template says the labels with an error of its own."""
    rng = np.random.default_rng(7)
    labels = units(6, 32, seed=8)
    pictures = labels[rng.integers(6, size=200)] + 0.1 * rng.normal(size=(200, 32))
    texts = labels[:, None] + 0.05 * rng.normal(size=(6, 8, 32))
    texts[:, 3] = rng.normal(size=(6, 32))
    unit = [(each / np.linalg.norm(each, axis=-1, keepdims=True)).astype(np.float32) for each in (pictures, texts)]
    weights = template_weights(template_scores(*unit, scale=30.0), how)  # pyright: ignore[reportArgumentType]
    assert weights[3] < 0.001
    assert weights.sum() == pytest.approx(1)


def test_what_all_pictures_share_gives_no_template_weight() -> None:
    """A template that says what is in every picture has the largest logits, and tells no label from another."""
    pictures, texts = units(40, 16, seed=9), units(5, 2, 16, seed=10)
    shared = units(16, seed=11)
    pictures = pictures - np.outer(pictures @ shared, shared) + 5 * shared
    before = template_scores(pictures, texts)
    texts[:, 1] += 100 * shared
    np.testing.assert_allclose(template_scores(pictures, texts), before, atol=1e-3)


def test_a_selection_is_above_the_median_by_deviations() -> None:
    scores = np.array([1.0, 2.0, 3.0, 4.0, 5.0])  # median 3, deviations 2 1 0 1 2
    np.testing.assert_array_equal(template_weights(scores, "select"), [0, 0, 0, 0.5, 0.5])
    np.testing.assert_array_equal(template_weights(scores, "select", threshold=1.0), [0, 0, 0, 0, 1.0])
    np.testing.assert_array_equal(template_weights(scores, "select", threshold=9.0), [0, 0, 0, 0, 1.0])
    np.testing.assert_array_equal(template_weights(np.ones(4), "select"), np.full(4, 0.25))


def test_a_label_without_known_words_says_nothing() -> None:
    pictures, texts = units(20, 16, seed=12), units(4, 3, 16, seed=13)
    known = template_scores(pictures, texts[:3])
    texts[3, 1] = 0
    np.testing.assert_array_equal(template_scores(pictures, texts), known)
    nothing = TemplateScores(pictures, 3)
    nothing.add(texts[3])
    np.testing.assert_array_equal(template_weights(nothing.scores()), np.full(3, 1 / 3))
