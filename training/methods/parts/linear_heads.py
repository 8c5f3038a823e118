"""Linear class heads, in closed form or by one convex fit; the fits are of numpy and scikit-learn only."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from training.methods.parts.class_heads import F64, I64, LinearHead
from training.options import meant

Shrinkage = Literal["ledoit_wolf", "ridge"] | float
_NO_SCATTER = 1e-12


def classes_of(labels: Sequence[str | None], *, least: int, only: Sequence[str] | None = None) -> tuple[str, ...]:
    """The labels that at least `least` pictures show, by name; only: of these alone.

    Raises:
        ValueError: fewer than two are left, or one of `only` is on no picture.
    """
    counts = Counter(label for label in labels if label is not None)
    for name in only or ():
        if name not in counts:
            raise ValueError(f"only: no training picture is of {name!r}{meant(name, counts)}")
    kept = counts if only is None else set(only)
    found = tuple(sorted(label for label in kept if counts[label] >= least))
    if len(found) < 2:
        raise ValueError(f"{len(found)} of {len(kept)} classes have {least} training pictures: a head needs two")
    return found


def truth_of(labels: Sequence[str | None], classes: Sequence[str]) -> I64:
    """Index into `classes`, -1 for what is none of them."""
    index = {name: at for at, name in enumerate(classes)}
    return np.array([-1 if label is None else index.get(label, -1) for label in labels], dtype=np.int64)


def pick_shots(truth: I64, *, classes: int, shots: int, seed: int) -> I64:
    """Rows of `shots` pictures of each class, all of them where a class has fewer; 0 takes every labelled row.

    A class's pictures depend on (seed, class) only, and more shots contain the fewer ones of the same seed.
    """
    if shots == 0:
        return np.flatnonzero(truth >= 0)
    picked = [
        np.random.default_rng((seed, label)).permutation(np.flatnonzero(truth == label))[:shots]
        for label in range(classes)
    ]
    return np.sort(np.concatenate(picked))


def zero_shot_head(classes: NDArray[np.floating], *, scale: float) -> LinearHead:
    """Class vectors [C, D] times the model's own factor, without bias."""
    return LinearHead(
        weight=np.ascontiguousarray(np.float32(scale) * classes.T.astype(np.float32)),
        bias=np.zeros(len(classes), dtype=np.float32),
    )


def mixed(zero_shot: LinearHead, fitted: tuple[F64, F64], share: float) -> LinearHead:
    """zero-shot logits + share * fitted logits; 0 is zero-shot, to the bit.

    What all classes have in common is taken out of the fitted part first: no softmax sees it, and a large inverse
    covariance would leave float32 no digits for what differs.
    """
    weight, bias = fitted
    weight, bias = weight - weight.mean(axis=1, keepdims=True), bias - bias.mean()
    return LinearHead(
        weight=zero_shot.weight + (share * weight).astype(np.float32),
        bias=zero_shot.bias + (share * bias).astype(np.float32),
    )


def gaussian_discriminant(
    vectors: NDArray[np.floating], truth: I64, *, classes: int, shrinkage: Shrinkage, priors: Literal["equal", "counts"]
) -> tuple[F64, F64]:
    """weight [D, C] = inv(S) means, bias [C] = log prior - mean inv(S) mean / 2, one covariance S for all classes.

    vectors [n, D] with truth int64 [n] in [0, classes). Wang et al., 2024, "A Hard-to-Beat Baseline for Training-Free
    CLIP-based Adaptation", equation 4. shrinkage: "ledoit_wolf"; "ridge", the paper's inverse
    D ((n - 1) S + tr(S) I)^-1; or a share s in [0, 1] of the mean variance: (1 - s) S + s tr(S) / D I.
    One picture a class has no scatter within its class: S is then the mean variance of all pictures times I.

    Raises:
        ValueError: a class without a picture, or all vectors equal.
    """
    x, (count, dim) = vectors.astype(np.float64), vectors.shape
    sizes = np.bincount(truth, minlength=classes)
    if (sizes == 0).any():
        raise ValueError(f"class {int(np.argmin(sizes))} has no picture to be fitted on")
    means = np.stack([x[truth == label].mean(axis=0) for label in range(classes)])
    residuals = x - means[truth]
    if (residuals**2).sum() < _NO_SCATTER:
        variance = float(x.var(axis=0).mean())
        if variance < _NO_SCATTER:
            raise ValueError("all pictures have the same vector: nothing tells the classes apart")
        precision = np.eye(dim) / variance
    else:
        precision = _precision(residuals, shrinkage)
    weight = precision @ means.T
    prior = np.full(classes, 1 / classes) if priors == "equal" else sizes / count
    return weight, np.log(prior) - (means.T * weight).sum(axis=0) / 2


def _precision(residuals: F64, shrinkage: Shrinkage) -> F64:
    """Inverse of the shrunk covariance [D, D] of centred rows [n, D]."""
    count, dim = residuals.shape
    if shrinkage == "ledoit_wolf":
        from sklearn.covariance import ledoit_wolf  # a second to import, and few runs want it

        return np.linalg.inv(ledoit_wolf(residuals, assume_centered=True)[0])
    scatter = residuals.T @ residuals
    if shrinkage == "ridge":
        return dim * np.linalg.inv(scatter + np.trace(scatter) / (count - 1) * np.eye(dim))
    covariance = scatter / count
    mean_variance = np.trace(covariance) / dim
    return np.linalg.pinv((1 - shrinkage) * covariance + shrinkage * mean_variance * np.eye(dim), hermitian=True)


def logistic_probe(
    vectors: NDArray[np.floating], truth: I64, *, classes: int, c: float, steps: int
) -> tuple[tuple[F64, F64], bool]:
    """((weight [D, C], bias [C]), did it converge) of multinomial logistic regression with an L2 penalty of 1 / c.

    Raises:
        ValueError: a class without a picture.
    """
    if (np.bincount(truth, minlength=classes) == 0).any():
        raise ValueError("a class has no picture to be fitted on")
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=c, max_iter=steps)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(vectors.astype(np.float64), truth)
    converged = not any(issubclass(one.category, ConvergenceWarning) for one in caught)
    weight, bias = np.asarray(model.coef_, dtype=np.float64).T, np.asarray(model.intercept_, dtype=np.float64)
    if classes == 2:  # scikit-learn gives the difference of the two logits
        weight, bias = np.hstack([-weight / 2, weight / 2]), np.array([-bias[0] / 2, bias[0] / 2])
    return (weight, bias), converged
