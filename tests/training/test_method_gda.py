"""GDA as a class head: scikit-learn's discriminant where they agree, and zero-shot itself at mix 0."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from evaluation.metrics import normalize
from training.method import create
from training.methods.parts.class_heads import LinearHead, judge_head
from training.methods.parts.linear_heads import (
    classes_of,
    gaussian_discriminant,
    mixed,
    pick_shots,
    truth_of,
    zero_shot_head,
)

pytestmark = pytest.mark.torch


def drawn(sizes: tuple[int, ...], *, dim: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around one centre a class, with unequal scatter along the axes."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(len(sizes)), sizes)
    centres = rng.normal(size=(len(sizes), dim))
    return normalize(centres[truth] + rng.normal(size=(len(truth), dim)) * np.linspace(0.2, 1.5, dim)), truth


@pytest.mark.parametrize("shrinkage", [0.0, 0.3, 1.0])
def test_it_is_sklearns_discriminant_up_to_a_constant_of_each_row(shrinkage: float) -> None:
    vectors, truth = drawn((30, 12, 18))
    weight, bias = gaussian_discriminant(vectors, truth, classes=3, shrinkage=shrinkage, priors="counts")
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(vectors.astype(np.float64), truth)
    ours, expected = vectors @ weight + bias, theirs.decision_function(vectors.astype(np.float64))
    ours, expected = (logits - logits.mean(axis=1, keepdims=True) for logits in (ours, expected))
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("sizes", "equal"), [((20, 20, 20), True), ((30, 12, 18), False)])
def test_with_equal_priors_it_is_sklearns_for_equal_classes_only(sizes: tuple[int, ...], equal: bool) -> None:
    """scikit-learn weighs the covariance of a class by its prior, and not by how many pictures it was seen in."""
    vectors, truth = drawn(sizes)
    weight, bias = gaussian_discriminant(vectors, truth, classes=3, shrinkage=0.3, priors="equal")
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3, priors=[1 / 3] * 3)
    expected = theirs.fit(vectors.astype(np.float64), truth).decision_function(vectors.astype(np.float64))
    ours, expected = (logits - logits.mean(axis=1, keepdims=True) for logits in (vectors @ weight + bias, expected))
    assert (np.abs(ours - expected).max() < 1e-5) == equal


def test_ridge_is_the_papers_inverse() -> None:
    vectors, truth = drawn((9, 9))
    weight, _ = gaussian_discriminant(vectors, truth, classes=2, shrinkage="ridge", priors="equal")
    means = np.stack([vectors[truth == label].mean(axis=0) for label in range(2)]).astype(np.float64)
    covariance = np.cov((vectors - means[truth]).T)
    inverse = 12 * np.linalg.inv(17 * covariance + np.trace(covariance) * np.eye(12))
    np.testing.assert_allclose(weight, inverse @ means.T, rtol=1e-6)


@pytest.mark.parametrize("shrinkage", ["ledoit_wolf", "ridge", 0.2])
def test_permuted_classes_give_permuted_logits(shrinkage: Any) -> None:
    vectors, truth = drawn((10, 14, 8, 9))
    order = np.array([1, 2, 0, 3])
    weight, bias = gaussian_discriminant(vectors, truth, classes=4, shrinkage=shrinkage, priors="counts")
    moved = gaussian_discriminant(vectors, np.argsort(order)[truth], classes=4, shrinkage=shrinkage, priors="counts")
    np.testing.assert_allclose(moved[0], weight[:, order], rtol=1e-9)
    np.testing.assert_allclose(moved[1], bias[order], rtol=1e-9)


def test_one_shot_takes_the_nearest_mean() -> None:
    vectors, truth = drawn((1, 1, 1, 1))
    weight, bias = gaussian_discriminant(vectors, truth, classes=4, shrinkage="ledoit_wolf", priors="equal")
    others = drawn((6, 6, 6, 6), seed=3)[0]
    distances = ((others[:, None, :] - vectors[None, :, :]) ** 2).sum(axis=2)
    assert ((others @ weight + bias).argmax(axis=1) == distances.argmin(axis=1)).all()
    with pytest.raises(ValueError, match="same vector"):
        gaussian_discriminant(np.ones((3, 4)), np.arange(3), classes=3, shrinkage="ridge", priors="equal")
    with pytest.raises(ValueError, match="class 1 has no picture"):
        gaussian_discriminant(vectors, np.zeros(4, dtype=np.int64), classes=2, shrinkage="ridge", priors="equal")


def test_mix_0_is_zero_shot_to_the_bit() -> None:
    vectors, truth = drawn((10, 10, 10))
    zero_shot = zero_shot_head(drawn((1, 1, 1), seed=5)[0], scale=14.3)
    fitted = gaussian_discriminant(vectors, truth, classes=3, shrinkage="ledoit_wolf", priors="equal")
    assert (mixed(zero_shot, fitted, 0.0)(vectors) == zero_shot(vectors)).all()
    assert not np.allclose(mixed(zero_shot, fitted, 0.1)(vectors), zero_shot(vectors))
    added = vectors @ fitted[0] + fitted[1]
    added -= added.mean(axis=1, keepdims=True)  # what all classes share says nothing
    np.testing.assert_allclose(mixed(zero_shot, fitted, 0.1)(vectors), zero_shot(vectors) + 0.1 * added, atol=1e-3)


def test_shots_are_so_many_of_each_class_and_grow() -> None:
    truth = np.array([0, 1, -1, 0, 1, 0, 2, -1, 0, 1])
    two, three = (pick_shots(truth, classes=3, shots=shots, seed=1) for shots in (2, 3))
    assert np.bincount(truth[two]).tolist() == [2, 2, 1]
    assert np.bincount(truth[three]).tolist() == [3, 3, 1]
    assert set(two) < set(three)
    assert any((pick_shots(truth, classes=3, shots=2, seed=seed) != two).any() for seed in range(2, 9))
    assert pick_shots(truth, classes=3, shots=0, seed=1).tolist() == np.flatnonzero(truth >= 0).tolist()


def test_classes_are_what_enough_pictures_show() -> None:
    labels = ["red", None, "blue", "red", "green", "green", "red"]
    assert classes_of(labels, least=2) == ("green", "red")
    assert truth_of(labels, ("green", "red")).tolist() == [1, -1, -1, 1, 0, 0, 1]
    with pytest.raises(ValueError, match="1 of 3 classes have 3 training pictures"):
        classes_of(labels, least=3)
    assert classes_of(labels, least=1, only=("red", "blue")) == ("blue", "red")
    with pytest.raises(ValueError, match="1 of 2 classes have 2 training pictures"):
        classes_of(labels, least=2, only=("red", "blue"))
    with pytest.raises(ValueError, match=r"only: no training picture is of 'gren'; is green meant\?"):
        classes_of(labels, least=1, only=("red", "gren"))


def test_a_judged_head_stands_beside_its_floors() -> None:
    head = LinearHead(weight=np.eye(3, dtype=np.float32), bias=np.array([0, 0, 9], dtype=np.float32))
    numbers = judge_head(head, np.eye(3, dtype=np.float32)[[0, 1, 2, 2]], np.array([0, 1, 2, 2]))
    assert (numbers["accuracy"]["value"], numbers["accuracy"]["n"], numbers["majority"]) == (0.5, 4, 0.5)
    assert (numbers["class_mean"], numbers["chance"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))


@pytest.mark.parametrize(
    ("options", "said"),
    [({}, "label"), ({"label": "x", "mix": []}, "grid"), ({"label": "x", "shrinkage": 2.0}, "shrinkage"),
     ({"label": "x", "mix": [-1.0]}, "grid"), ({"label": "x", "shotz": 1}, "shotz")],
)  # fmt: skip
def test_wrong_options_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"(?s)method_options of gda.*{said}"):
        create("gda", options)
