"""Label vectors are the mean of unit prompt vectors, however the prompts arrive; scores follow the manifest."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from model_store.label_vectors import compared_texts, filled, label_means, label_means_of_sums, label_scores
from model_store.manifest import Presence
from model_store.store import Store


def units(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("templates", [1, 7, 80])
def test_the_ways_to_take_the_mean_agree(templates: int) -> None:
    prompts = units(5, templates, 33)
    expected = prompts.astype(np.float64).mean(axis=1)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    ways: list[Callable[[], NDArray[np.float32]]] = [
        lambda: label_means(prompts),
        lambda: label_means(prompts.astype(np.float64)),
        lambda: label_means_of_sums(prompts.astype(np.float64).sum(axis=1)),
    ]
    for way in ways:
        found = way()
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=2e-7)


def test_labels_may_have_different_numbers_of_prompts() -> None:
    groups = [units(2, 8), units(5, 8, seed=1)]
    found = label_means(groups)
    for row, group in zip(found, groups, strict=True):
        np.testing.assert_array_equal(row, label_means([group])[0])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)


def test_where_labels_are_denied_neutral_texts_are_not_looked_at() -> None:
    rule = Presence(positive_templates=("a {}",), neutral_texts=("thing",), scale=1, aggregation="max")
    assert compared_texts(rule) == ((), ("thing",))
    denied = rule.model_copy(update={"negative_templates": ("no {}",)})
    assert compared_texts(denied) == (("no {}",), ())
    assert filled(("no {}", "{}!"), "{cat}") == ("no {cat}", "{cat}!")


def test_scores_take_scale_bias_and_activation_of_the_manifest() -> None:
    manifest = (
        Store(None)
        .list()[0]
        .manifest.model_copy(update={"logit_scale": 2.0, "logit_bias": -1.0, "activation": "sigmoid"})
    )
    cosines = np.array([0.5, -0.25])
    np.testing.assert_allclose(label_scores(cosines, manifest, None), 1 / (1 + np.exp(1 - 2 * cosines)))
    raised = np.exp(2 * cosines)
    np.testing.assert_allclose(label_scores(cosines, manifest, "softmax"), raised / raised.sum())
    assert label_scores(cosines, manifest, "none") is cosines
