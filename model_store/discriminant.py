"""Gaussian discriminant analysis of unit image vectors in closed form, and what it says of pictures that are left out.

One Gaussian a class with a shared covariance S (Wang et al., 2024, "A Hard-to-Beat Baseline for Training-Free
CLIP-based Adaptation", equation 4): logits are x' inv(S) mean - mean' inv(S) mean / 2, linear in x. S is shrunk towards
a multiple of I (Ledoit and Wolf, 2004, "A well-conditioned estimator for large-dimensional covariance matrices").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64, I64 = NDArray[np.float64], NDArray[np.int64]
_NO_SCATTER = 1e-12
_LITTLE = 1e-6  # of all scatter; less within classes is rounding, or copies of one picture
_LEAST_SHRINKAGE = 1e-3  # without it few directions of little scatter outweigh all others


@dataclass(frozen=True, kw_only=True)
class GaussianClasses:
    """What was fitted. means: float64 [C, D], zero rows for classes without a picture. sizes: pictures of each class.

    scatter: residuals' inner products [D, D], zero where no class has two pictures. shrinkage: in [0, 1].
    variance: what the covariance is shrunk to, times I.
    """

    means: F64
    sizes: I64
    scatter: F64
    shrinkage: float
    variance: float

    @property
    def present(self) -> NDArray[np.bool_]:
        """Classes with a picture, [C]."""
        return self.sizes > 0

    def precision(self, count: int) -> F64:
        """Inverse of the shrunk covariance [D, D], with the scatter divided by `count` pictures."""
        dim = len(self.scatter)
        covariance = (1 - self.shrinkage) / count * self.scatter + self.shrinkage * self.variance * np.eye(dim)
        return np.asarray(np.linalg.inv(covariance), dtype=np.float64)

    def linear(self) -> tuple[F64, F64]:
        """(weight [D, C], bias [C]) of the logits, less what all classes with a picture have in common.

        A class without a picture has zeros: nothing speaks for it or against it.
        """
        weight = self.precision(int(self.sizes.sum())) @ self.means.T
        bias = -(self.means.T * weight).sum(axis=0) / 2
        here = self.present
        weight[:, here] -= weight[:, here].mean(axis=1, keepdims=True)
        bias[here] -= bias[here].mean()
        return weight, bias


def fit_gaussians(vectors: NDArray[np.floating], truth: I64, *, classes: int) -> GaussianClasses:
    """Fit vectors [n, D] with truth int64 [n] in [0, classes). Classes are equally probable beforehand.

    Where no class has two pictures that differ there is no scatter within one: the covariance is then the mean variance
    of all pictures times I, and the logits follow the distance to the one picture. Shrinkage is .001 at least.

    Raises:
        ValueError: all vectors are equal, or of fewer than two classes.
    """
    x = vectors.astype(np.float64)
    sizes = np.bincount(truth, minlength=classes)
    if (sizes > 0).sum() < 2:
        raise ValueError("pictures of two classes are needed")
    means = np.zeros((classes, x.shape[1]))
    np.add.at(means, truth, x)
    means /= np.maximum(sizes, 1)[:, None]
    residuals = x - means[truth]
    scatter = residuals.T @ residuals
    variance = float(x.var(axis=0).mean())
    if np.trace(scatter) <= _LITTLE * variance * x.size:
        if variance < _NO_SCATTER:
            raise ValueError("all pictures have the same vector: nothing tells the classes apart")
        return GaussianClasses(
            means=means, sizes=sizes, scatter=np.zeros_like(scatter), shrinkage=1.0, variance=variance
        )
    shrinkage, variance = ledoit_wolf(residuals)
    return GaussianClasses(
        means=means, sizes=sizes, scatter=scatter, shrinkage=max(shrinkage, _LEAST_SHRINKAGE), variance=variance
    )


def ledoit_wolf(residuals: F64) -> tuple[float, float]:
    """(shrinkage in [0, 1], mean variance) of centred rows [n, D]."""
    count, dim = residuals.shape
    covariance = residuals.T @ residuals / count
    squares = residuals**2
    variance = float(np.trace(covariance)) / dim
    distance = float((covariance**2).sum() - dim * variance**2)  # squared, of the covariance from variance * I
    noise = float((squares.T @ squares).sum() / count - (covariance**2).sum()) / count
    return (min(noise, distance) / distance if distance > 0 and noise > 0 else 0.0), variance


def left_out_logits(fitted: GaussianClasses, vectors: NDArray[np.floating], truth: I64) -> F64:
    """Centred logits [n, C] of each picture by the classes that the other pictures make.

    Exact for a given shrinkage and variance, which are those of all pictures: leaving one out changes its class's mean,
    and the covariance by a matrix of rank one (Sherman and Morrison, 1950). A class that loses its only picture has 0,
    as every class without one.
    """
    x, count, rows = vectors.astype(np.float64), len(vectors), np.arange(len(vectors))
    precision = fitted.precision(count - 1)
    sizes = fitted.sizes[truth].astype(np.float64)
    residuals = x - fitted.means[truth]
    turned, means = residuals @ precision, fitted.means @ precision
    own = (residuals * turned).sum(axis=1)
    grown = np.divide(sizes, sizes - 1, out=np.zeros(count), where=sizes > 1)  # residual to the mean without it
    share = (1 - fitted.shrinkage) / (count - 1) * grown
    # Squared distance to each mean, then what the removed picture had added to the covariance.
    distances = ((x @ precision) * x).sum(axis=1)[:, None] - 2 * x @ means.T + (fitted.means * means).sum(axis=1)
    along = (turned * x).sum(axis=1)[:, None] - turned @ fitted.means.T
    distances[rows, truth] = grown**2 * own
    along[rows, truth] = grown * own
    distances += (share / (1 - share * own))[:, None] * along**2
    logits = -distances / 2
    here = np.broadcast_to(fitted.present, logits.shape).copy()
    here[rows, truth] = sizes > 1
    logits[~here] = 0.0
    centres = logits.sum(axis=1) / np.maximum(here.sum(axis=1), 1)
    return np.where(here, logits - centres[:, None], 0.0)
