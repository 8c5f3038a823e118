"""Gaussian classes against scikit-learn, the training side's own fit, and fitting anew without each picture."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model_store.discriminant import GaussianClasses, fit_gaussians, ledoit_wolf, left_out_logits

F64, I64 = NDArray[np.float64], NDArray[np.int64]


def clusters(seed: int, sizes: list[int], dim: int, *, apart: float = 1.0) -> tuple[F64, I64]:
    """Unit vectors around a centre for each class, and their classes."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(len(sizes)), sizes)
    vectors = rng.normal(size=(len(truth), dim)) + apart * rng.normal(size=(len(sizes), dim))[truth]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), truth


def fitted_without(whole: GaussianClasses, vectors: F64, truth: I64, row: int) -> F64:
    """Centred logits of `row` by what all others make, the slow way, at the shrinkage of all."""
    keep = np.arange(len(vectors)) != row
    x, kept = vectors[keep], truth[keep]
    sizes = np.bincount(kept, minlength=len(whole.sizes))
    means = np.stack([x[kept == k].mean(axis=0) if sizes[k] else np.zeros(x.shape[1]) for k in range(len(sizes))])
    residuals = x - means[kept]
    weight, bias = GaussianClasses(
        means=means,
        sizes=sizes,
        scatter=residuals.T @ residuals,
        shrinkage=whole.shrinkage,
        variance=whole.variance,
    ).linear()
    return vectors[row] @ weight + bias


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**16),
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=5).filter(lambda sizes: max(sizes) > 1),
    dim=st.integers(2, 12),
    absent=st.integers(0, 2),
)
def test_leaving_one_out_is_fitting_without_it(seed: int, sizes: list[int], dim: int, absent: int) -> None:
    vectors, truth = clusters(seed, sizes, dim)
    whole = fit_gaussians(vectors, truth, classes=len(sizes) + absent)
    found = left_out_logits(whole, vectors, truth)
    expected = np.stack([fitted_without(whole, vectors, truth, row) for row in range(len(vectors))])
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found / scale, expected / scale, atol=1e-7)


def test_the_shrinkage_is_scikit_learns() -> None:
    covariance = pytest.importorskip("sklearn.covariance")
    for seed, sizes in ((0, [3, 4]), (1, [20, 20, 20]), (2, [200, 100])):
        vectors, truth = clusters(seed, sizes, 16)
        residuals = vectors - np.stack([vectors[truth == k].mean(axis=0) for k in range(len(sizes))])[truth]
        shrunk, share = covariance.ledoit_wolf(residuals, assume_centered=True)
        found, variance = ledoit_wolf(residuals)
        assert found == pytest.approx(share, abs=1e-12)
        assert variance == pytest.approx(np.trace(shrunk) / 16)


def test_logits_are_those_of_scikit_learns_discriminant() -> None:
    """Up to what all classes share: it takes one covariance, given here, and equal priors."""
    analysis = pytest.importorskip("sklearn.discriminant_analysis")
    vectors, truth = clusters(3, [9, 9, 9, 9], 12)
    found = fit_gaussians(vectors, truth, classes=4)

    class Given:
        def fit(self, rows: F64) -> None:
            share = found.shrinkage
            self.covariance_ = (1 - share) * found.scatter / len(vectors) + share * found.variance * np.eye(12)

    reference = analysis.LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=Given(), priors=[0.25] * 4)
    expected = reference.fit(vectors, truth).decision_function(vectors)
    weight, bias = found.linear()
    np.testing.assert_allclose(
        vectors @ weight + bias, expected - expected.mean(axis=1, keepdims=True), rtol=1e-6, atol=1e-6
    )


@pytest.mark.torch
def test_gda_is_the_same_fit() -> None:
    """The trained head and the taught one are one formula."""
    heads = pytest.importorskip("training.methods.parts.linear_heads")
    for sizes in ([6, 5, 7], [1, 1, 1]):
        vectors, truth = clusters(5, sizes, 20)
        weight, bias = heads.gaussian_discriminant(vectors, truth, classes=3, shrinkage="ledoit_wolf", priors="equal")
        found_weight, found_bias = fit_gaussians(vectors, truth, classes=3).linear()
        np.testing.assert_allclose(found_weight, weight - weight.mean(axis=1, keepdims=True), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(found_bias, bias - bias.mean(), rtol=1e-6, atol=1e-6)


def test_a_class_without_a_picture_has_no_logit() -> None:
    vectors, truth = clusters(7, [4, 4], 8)
    weight, bias = fit_gaussians(vectors, truth * 2, classes=4).linear()
    assert not weight[:, [1, 3]].any()
    assert not bias[[1, 3]].any()
    assert weight[:, [0, 2]].any()
    np.testing.assert_allclose(weight.sum(axis=1), 0, atol=1e-9)


def test_one_picture_a_class_is_the_nearest_picture() -> None:
    vectors, truth = clusters(8, [1] * 6, 8)
    weight, bias = fit_gaussians(vectors, truth, classes=6).linear()
    others, _ = clusters(9, [50], 8)
    nearest = ((others[:, None] - vectors) ** 2).sum(axis=2).argmin(axis=1)
    assert ((others @ weight + bias).argmax(axis=1) == nearest).all()


def test_copies_of_a_picture_do_not_blow_the_logits_up() -> None:
    """Rounding between copies is no scatter, and a scatter in one direction alone is not all there is."""
    single, _ = clusters(11, [1, 1, 1], 8)
    truth = np.repeat([0, 1, 2], 2)
    copies = np.repeat(single, 2, axis=0) + 1e-7 * np.random.default_rng(0).normal(size=(6, 8))
    weight, _ = fit_gaussians(copies, truth, classes=3).linear()
    assert np.abs(weight).max() < 1e3
    step = np.zeros(8)
    step[0] = 0.1
    pairs = np.stack([each + sign * step for each in single for sign in (-1, 1)])
    found = fit_gaussians(pairs, truth, classes=3)
    assert found.shrinkage >= 1e-3
    assert np.abs(found.linear()[0]).max() < 1e6
    assert np.isfinite(left_out_logits(found, pairs, truth)).all()


@pytest.mark.parametrize(
    ("vectors", "truth", "says"),
    [
        (np.eye(3), np.array([1, 1, 1]), "two classes"),
        (np.ones((3, 4)), np.array([0, 1, 2]), "same vector"),
    ],
)
def test_nothing_to_tell_apart_is_refused(vectors: F64, truth: I64, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        fit_gaussians(vectors, truth, classes=3)
